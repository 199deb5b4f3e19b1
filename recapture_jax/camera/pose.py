"""Rigid poses as 4x4 matrices.

`a_from_b` maps homogeneous points in frame b to frame a, so names chain like fractions:
`world_from_target = world_from_source @ source_from_target`. Camera frames are OpenCV (x right,
y down, z forward), hence a positive rotation about +y pans right, about +x tilts up and about +z
rolls clockwise seen from behind the camera. Angles here are radians (film moves use degrees).
Everything broadcasts over leading axes, is differentiable, and runs at full matmul precision: the
default of TPUs and recent GPUs (8 to 10 mantissa bits) would shift pixels. What makes, chains and
inverts poses computes NumPy arrays in NumPy, at their own precision: planning a path is a hundred
small products, each of which JAX would compile for longer than a preview may take.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax.geometry.safe_math import safe_divide, safe_norm

_HIGHEST = jax.lax.Precision.HIGHEST


def _namespace(*arrays) -> types.ModuleType:
    """numpy where all of the arrays are NumPy's, else jax.numpy."""
    return np if all(isinstance(a, np.ndarray) for a in arrays) else jnp


def from_rotation_translation(rotation: jax.Array, translation: jax.Array) -> jax.Array:
    """Pose `[..., 4, 4]` from a rotation `[..., 3, 3]` and a translation `[..., 3]`."""
    xp = _namespace(rotation, translation)
    batch = np.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
    rotation = xp.broadcast_to(rotation, (*batch, 3, 3))
    translation = xp.broadcast_to(translation, (*batch, 3))
    top = xp.concatenate([rotation, translation[..., None]], axis=-1)
    bottom = xp.broadcast_to(xp.array([0, 0, 0, 1], top.dtype), (*batch, 1, 4))
    return xp.concatenate([top, bottom], axis=-2)


def _axis_rotation(angle: jax.Array, first: int, second: int) -> jax.Array:
    """Rotation in the (first, second) plane that turns axis `first` towards axis `second`."""
    xp = _namespace(angle)
    if xp is jnp:  # also numbers
        angle = jnp.asarray(angle, jnp.result_type(angle, jnp.float32))
    plane, turn = np.zeros((4, 4)), np.zeros((4, 4))
    plane[first, first] = plane[second, second] = turn[second, first] = 1
    turn[first, second] = -1
    lead = (1,) * angle.ndim + (4, 4)
    plane, turn, rest = (
        xp.asarray(m.reshape(lead), angle.dtype) for m in (plane, turn, np.eye(4) - plane)
    )
    angle = angle[..., None, None]
    return rest + xp.cos(angle) * plane + xp.sin(angle) * turn


def rotation_x(angle: jax.Array) -> jax.Array:
    """Pose `[..., 4, 4]` rotating by `angle` (radians) about +x: positive tilts a camera up."""
    return _axis_rotation(angle, 1, 2)


def rotation_y(angle: jax.Array) -> jax.Array:
    """Pose `[..., 4, 4]` rotating by `angle` (radians) about +y: positive pans a camera right."""
    return _axis_rotation(angle, 2, 0)


def rotation_z(angle: jax.Array) -> jax.Array:
    """Pose `[..., 4, 4]` rotating by `angle` (radians) about +z: positive rolls clockwise."""
    return _axis_rotation(angle, 0, 1)


def translation(offset: jax.Array) -> jax.Array:
    """Pose `[..., 4, 4]` that moves by `offset` `[..., 3]` without turning."""
    return from_rotation_translation(np.eye(3, dtype=offset.dtype), offset)


def compose(*poses: jax.Array) -> jax.Array:
    """Product of poses `[..., 4, 4]`, leading axes broadcast: `compose(a_from_b, b_from_c)`."""
    batch = np.broadcast_shapes(*(pose.shape[:-2] for pose in poses))
    xp = _namespace(*poses)
    poses = [xp.broadcast_to(pose, (*batch, 4, 4)) for pose in poses]
    return functools.reduce(_product, poses)


def inverse(a_from_b: jax.Array) -> jax.Array:
    """`b_from_a` `[..., 4, 4]` of a rigid `a_from_b`: the transposed rotation, no linear solve."""
    rotation = a_from_b[..., :3, :3].swapaxes(-1, -2)
    offset = -_product(rotation, a_from_b[..., :3, 3:])
    return from_rotation_translation(rotation, offset[..., 0])


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return a @ b if _namespace(a, b) is np else jnp.matmul(a, b, precision=_HIGHEST)


def transform_points(a_from_b: jax.Array, points_b: jax.Array) -> jax.Array:
    """Points `[..., 3]` of frame b seen in frame a; one pose `[4, 4]` for all of them."""
    rotated = jnp.einsum("ij,...j->...i", a_from_b[:3, :3], points_b, precision=_HIGHEST)
    offset = a_from_b[:3, 3].reshape((1,) * (points_b.ndim - 1) + (3,))
    return rotated + offset


def look_at(eye: jax.Array, target: jax.Array, up: jax.Array | None = None) -> jax.Array:
    """`world_from_camera` `[..., 4, 4]` of a camera at `eye` that sees `target` in its centre.

    Args:
        eye: `[..., 3]` camera position; it must differ from `target`.
        target: `[..., 3]` point that the camera looks at.
        up: `[..., 3]` world direction that points up in the image; (0, -1, 0) by default. Where
            the camera looks straight along `up`, another axis takes its place.
    """
    eye, target = (jnp.asarray(x, jnp.float32) for x in (eye, target))
    up = jnp.asarray((0.0, -1.0, 0.0) if up is None else up, jnp.float32)
    eye, target, up = jnp.broadcast_arrays(eye, target, up)
    forward = _normalise(target - eye)
    # The world axis least parallel to the view stands in for a useless `up`.
    spare = jax.nn.one_hot(jnp.argmin(jnp.abs(forward), axis=-1), 3, dtype=forward.dtype)
    right = jnp.cross(forward, up)
    useless = safe_norm(right, keepdims=True) < 1e-6 * safe_norm(up, keepdims=True)
    right = _normalise(jnp.where(useless, jnp.cross(forward, spare), right))
    down = jnp.cross(forward, right)
    return from_rotation_translation(jnp.stack([right, down, forward], axis=-1), eye)


def quaternion_from_rotation(rotation: jax.Array) -> jax.Array:
    """Unit quaternion (w, x, y, z) `[..., 4]` of a rotation `[..., 3, 3]`, up to sign.

    Each candidate divides by one of the four components; the largest one is at least 1/2.
    """
    m = rotation
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    x, y, z = (
        m[..., 2, 1] - m[..., 1, 2],
        m[..., 0, 2] - m[..., 2, 0],
        m[..., 1, 0] - m[..., 0, 1],
    )
    xy, xz, yz = (
        m[..., 0, 1] + m[..., 1, 0],
        m[..., 0, 2] + m[..., 2, 0],
        m[..., 1, 2] + m[..., 2, 1],
    )
    # Rows are 4 * q_i * (w, x, y, z); the diagonal holds 4 * q_i^2.
    rows = jnp.stack(
        [
            jnp.stack([1 + xx + yy + zz, x, y, z], -1),
            jnp.stack([x, 1 + xx - yy - zz, xy, xz], -1),
            jnp.stack([y, xy, 1 - xx + yy - zz, yz], -1),
            jnp.stack([z, xz, yz, 1 - xx - yy + zz], -1),
        ],
        axis=-2,
    )
    largest = jnp.argmax(jnp.diagonal(rows, axis1=-2, axis2=-1), axis=-1)
    return _normalise(jnp.take_along_axis(rows, largest[..., None, None], axis=-2)[..., 0, :])


def rotation_from_quaternion(quaternion: jax.Array) -> jax.Array:
    """Rotation `[..., 3, 3]` of a quaternion (w, x, y, z) `[..., 4]` of any non-zero length."""
    w, x, y, z = jnp.moveaxis(_normalise(quaternion), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return jnp.stack([jnp.stack(row, -1) for row in rows], axis=-2)


def interpolate(start: jax.Array, end: jax.Array, share: jax.Array) -> jax.Array:
    """Pose between `start` (share 0) and `end` (share 1): slerp of rotation, lerp of position.

    Args:
        start: `[..., 4, 4]`.
        end: `[..., 4, 4]`.
        share: `[...]`; all three broadcast over their leading axes.

    The rotation takes the shorter way round and turns at constant speed.
    """
    share = jnp.asarray(share, start.dtype)
    batch = jnp.broadcast_shapes(start.shape[:-2], end.shape[:-2], share.shape)
    start, end = (jnp.broadcast_to(pose, (*batch, 4, 4)) for pose in (start, end))
    share = jnp.broadcast_to(share, batch)[..., None]
    q0 = quaternion_from_rotation(start[..., :3, :3])
    q1 = quaternion_from_rotation(end[..., :3, :3])
    q1 = jnp.where(jnp.sum(q0 * q1, -1, keepdims=True) < 0, -q1, q1)
    # The chord, unlike the arc cosine of the dot product, is exact for close rotations.
    angle = 2 * jnp.arctan2(safe_norm(q0 - q1, keepdims=True), safe_norm(q0 + q1, keepdims=True))
    sine = jnp.sin(angle)
    weight0 = safe_divide(jnp.sin((1 - share) * angle), sine, minimum=1e-6)
    weight1 = safe_divide(jnp.sin(share * angle), sine, minimum=1e-6)
    close = jnp.abs(sine) <= 1e-6
    weight0 = jnp.where(close, 1 - share, weight0)
    weight1 = jnp.where(close, share, weight1)
    rotation = rotation_from_quaternion(weight0 * q0 + weight1 * q1)
    offset = (1 - share) * start[..., :3, 3] + share * end[..., :3, 3]
    return from_rotation_translation(rotation, offset)


def _normalise(x: jax.Array) -> jax.Array:
    norm = safe_norm(x, keepdims=True)
    return safe_divide(x, jnp.broadcast_to(norm, x.shape))
