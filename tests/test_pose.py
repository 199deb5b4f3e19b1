"""Poses: group axioms, sign conventions, look_at, interpolation; intrinsics helpers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax.camera import pose
from recapture_jax.camera.pinhole import (
    Camera,
    crop_intrinsics,
    intrinsics_from_fov,
    resize_intrinsics,
)
from recapture_jax.errors import InputError


def random_poses(count, seed=0):
    """Rigid poses from QR decompositions, independent of the code under test."""
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (count, 1, 1))
    for p in poses:
        q, r = np.linalg.qr(rng.normal(size=(3, 3)))
        q = q * np.sign(np.diag(r))
        q[:, 0] *= np.linalg.det(q)
        p[:3, :3], p[:3, 3] = q, rng.normal(size=3)
    return poses.astype(np.float32)


def test_group_axioms():
    a, b, c = (random_poses(5, seed) for seed in range(3))
    identity = np.eye(4, dtype=np.float32)

    def close(x, y):
        np.testing.assert_allclose(x, y, atol=2e-6)

    close(pose.compose(pose.compose(a, b), c), pose.compose(a, pose.compose(b, c)))
    close(pose.compose(a, identity), a)
    close(pose.compose(identity, a), a)
    close(pose.compose(a, pose.inverse(a)), np.broadcast_to(identity, a.shape))
    close(pose.compose(pose.inverse(a), a), np.broadcast_to(identity, a.shape))
    close(pose.inverse(pose.compose(a, b)), pose.compose(pose.inverse(b), pose.inverse(a)))
    product = np.asarray(pose.compose(a, b, c))  # closure: still rigid
    close(product[:, :3, :3] @ product[:, :3, :3].swapaxes(1, 2), np.tile(np.eye(3), (5, 1, 1)))
    close(np.linalg.det(product[:, :3, :3]), np.ones(5))
    close(product, a.astype(np.float64) @ b @ c)


def test_transform_points_chains():
    a_from_b, b_from_c = random_poses(2)
    points = np.random.default_rng(1).normal(size=(4, 5, 3)).astype(np.float32)
    once = pose.transform_points(pose.compose(a_from_b, b_from_c), points)
    twice = pose.transform_points(a_from_b, pose.transform_points(b_from_c, points))
    np.testing.assert_allclose(once, twice, atol=2e-6)


@pytest.mark.parametrize(
    "rotation, start, towards",
    [
        (pose.rotation_x, [0, 0, 1], [0, -1, 0]),  # tilt up: forward turns to -y
        (pose.rotation_y, [0, 0, 1], [1, 0, 0]),  # pan right: forward turns to +x
        (pose.rotation_z, [1, 0, 0], [0, 1, 0]),  # roll cw: right turns to down
    ],
)
def test_axis_rotation_signs(rotation, start, towards):
    angles = jnp.array([0.0, 0.3, np.pi / 2])
    moved = np.asarray(rotation(angles))[:, :3, :3] @ np.array(start, np.float32)
    np.testing.assert_array_equal(rotation(0.0), np.eye(4))
    expected = np.cos(angles)[:, None] * np.array(start) + np.sin(angles)[:, None] * towards
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_look_at_centres_the_target_and_stays_upright():
    rng = np.random.default_rng(2)
    eye, target = rng.normal(size=(2, 6, 3)).astype(np.float32)
    world_from_camera = pose.look_at(eye, target)
    for i in range(6):
        seen = pose.transform_points(pose.inverse(world_from_camera[i]), target[i])
        distance = np.linalg.norm(target[i] - eye[i])
        np.testing.assert_allclose(seen, [0, 0, distance], atol=3e-6)
        np.testing.assert_allclose(world_from_camera[i, :3, 3], eye[i])
    rotation = np.asarray(world_from_camera[:, :3, :3])
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
    assert (rotation[:, 1, 1] > 0).all()  # the camera's down has a part along the world's down
    np.testing.assert_allclose(rotation[:, 1, 0], 0, atol=1e-6)  # no roll: x stays horizontal


def test_look_at_known_cases():
    np.testing.assert_allclose(
        pose.look_at(np.zeros(3), np.array([0, 0, 2.0])), np.eye(4), atol=1e-7
    )
    straight_up = np.asarray(pose.look_at(np.zeros(3), np.array([0, -3.0, 0])))
    np.testing.assert_allclose(straight_up[:3, 2], [0, -1, 0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(straight_up), 1, atol=1e-6)


def test_interpolate_is_slerp_and_lerp():
    angle = jnp.array([0.0, 0.25, 0.5, 1.0])
    start = pose.compose(pose.rotation_y(0.2), pose.translation(jnp.array([1.0, 0.0, 0.0])))
    end = pose.compose(start, pose.rotation_z(2.0))
    between = pose.interpolate(start, end, angle)
    expected = pose.compose(start, pose.rotation_z(2.0 * angle))
    np.testing.assert_allclose(between, expected, atol=2e-6)
    # Nearly equal and equal rotations, and the derivative there.
    near = pose.compose(start, pose.rotation_z(1e-4))
    half = pose.compose(start, pose.rotation_z(5e-5))
    np.testing.assert_allclose(pose.interpolate(start, near, 0.5), half, atol=1e-6)
    gradient = jax.grad(lambda a: pose.interpolate(start, start, a).sum())(0.5)
    assert np.isfinite(gradient)


def test_quaternion_round_trip_covers_half_turns():
    rotations = np.concatenate(
        [random_poses(8)[:, :3, :3], [np.diag([1.0, -1, -1]), np.diag([-1.0, -1, 1]), np.eye(3)]]
    ).astype(np.float32)
    back = pose.rotation_from_quaternion(pose.quaternion_from_rotation(rotations))
    np.testing.assert_allclose(back, rotations, atol=2e-6)


def test_intrinsics_from_fov():
    k = intrinsics_from_fov(90, 100, 200)
    np.testing.assert_allclose(k, [[50, 0, 100], [0, 50, 50], [0, 0, 1]], rtol=1e-6)
    assert intrinsics_from_fov(90, 100, 200, axis="horizontal")[0, 0] == pytest.approx(100)
    assert intrinsics_from_fov(90, 300, 200, axis="longer")[0, 0] == pytest.approx(150)
    for bad in (dict(fov_deg=0), dict(fov_deg=180), dict(fov_deg=float("nan")), dict(axis="diag")):
        with pytest.raises(InputError):
            intrinsics_from_fov(**{"fov_deg": 50, "height": 10, "width": 10} | bad)


def test_resize_and_crop_follow_the_pixels():
    """The image position of a fixed ray moves exactly as the pixels do."""
    k = np.array([[80, 0, 33], [0, 90, 21], [0, 0, 1]], np.float32)
    ray = np.array([0.1, -0.2, 1.0], np.float32)
    u, v, _ = k @ ray
    resized = resize_intrinsics(k, (40, 60), (80, 30))
    np.testing.assert_allclose((resized @ ray)[:2], [u / 2, v * 2], rtol=1e-6)
    cropped = crop_intrinsics(k, top=4, left=7)
    np.testing.assert_allclose((cropped @ ray)[:2], [u - 7, v - 4], rtol=1e-6)
    np.testing.assert_allclose(resize_intrinsics(k[None], (40, 60), (80, 30))[0], resized)


def test_camera_is_a_pytree():
    camera = Camera(jnp.eye(3), jnp.eye(4))
    doubled = jax.jit(lambda c: jax.tree.map(lambda x: 2 * x, c))(camera)
    assert isinstance(doubled, Camera) and doubled.world_from_camera[0, 0] == 2
