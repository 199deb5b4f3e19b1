"""Forward splatting of coloured depth maps, in two passes, differentiable.

Every source pixel is a point. It is drawn with a tent kernel whose footprint follows the local
magnification m = (f_target / f_source) (z_source / z_target), separately in x and y:

    R = clip(3/4 m, 1, taps)                        half-width in target pixels
    k = max(0, 1 - |du| / R) max(0, 1 - |dv| / R)   over a window of (2 * taps)^2 pixels, k > 1e-3

1. scatter-min: z_min of each target pixel over the points that cover its centre, which are those
   within m / 2 + 0.2 of it (their own square and a little more, so that the squares of a
   surface leave no crack); without such points there is no limit;
2. scatter-add of k * colour and k over the points with z - e <= z_min (1 + tau), where e is how far
   the point's own surface recedes over the width of its kernel: s_x 2 R_x / m_x + s_y 2 R_y / m_y.
   s is the step of z to the neighbouring source pixel, the smaller one of both sides and none where
   it is over a tenth of z: that is an edge. Without e a floor seen at a grazing angle would keep
   only the nearest of the points that share a pixel.

Points of torn depth (`masks.torn_in_view`) take part in the first pass alone: they hide what lies
behind them, so a pixel that they are nearest to takes the colour of the other points of their
surface or is a hole, and never shows the background.

So a near surface hides a far one wherever it covers the pixel, up to a magnification of 2 * taps - 1;
just outside its outline it is blended in by the tails of its kernels instead of growing by a pixel.
The result depends neither on the farthest point of the frame nor on points behind the camera.
At unit magnification and integer positions the kernel is the pixel itself, so no move gives back
the source. A smaller picture is anti-aliased by the same rule: R stays 1 target pixel, so a target
pixel is the tent-weighted mean of all the source pixels of its surface within a pixel of it, which
is what a resize with a linear low-pass filter takes; beside an outline, points that do not cover its
centre give it their share of both surfaces.

What stays fixed in a derivative is what selects: z_min, the windows and the visibility tests.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from recapture_jax.camera import pose
from recapture_jax.camera.pinhole import resize_intrinsics
from recapture_jax.camera.trajectory import Trajectory
from recapture_jax.errors import InputError
from recapture_jax.geometry import windows
from recapture_jax.geometry.masks import torn_in_view
from recapture_jax.geometry.projection import MIN_DEPTH, displaced, in_own_unit
from recapture_jax.geometry.windows import Points, View

MAX_STEP = 0.1
"""A step of depth to the next pixel over this share of it is an edge, not a slope."""

MIN_MAGNIFICATION = 0.1
"""Below this the depth tolerance on slopes grows no further."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SplatResult:
    """A splatted view (a pytree).

    Attributes:
        colors: `[H, W, C]` kernel-weighted mean colour, 0 in holes.
        depth: `[H, W]` kernel-weighted mean depth in the target camera, 0 in holes; None if not
            asked for.
        weight: `[H, W]` sum of kernels.
        mask: `[H, W]` bool, True where a point was drawn.
    """

    colors: jax.Array
    depth: jax.Array | None
    weight: jax.Array
    mask: jax.Array


def splat(
    colors: jax.Array,
    depth: jax.Array,
    valid: jax.Array | None,
    source_intrinsics: jax.Array,
    target_intrinsics: jax.Array,
    source_from_target: jax.Array,
    *,
    torn: jax.Array | None = None,
    taps: int = 2,
    tau: float = 0.02,
    adapt: bool = False,
    with_depth: bool = True,
    height: int | None = None,
    width: int | None = None,
) -> SplatResult:
    """One frame with depth, seen by another camera.

    Args:
        colors: `[H, W, C]` any channels.
        depth: `[H, W]` plane depth; points that are not finite and positive are not drawn.
        valid: `[H, W]` bool, points to draw, or None for all.
        source_intrinsics: `[3, 3]` pixels; target_intrinsics: `[3, 3]` pixels.
        source_from_target: `[4, 4]` pose of the target camera in the source camera's frame.
        torn: `[H, W]` bool, points that hide what lies behind them but have no colour, or None.
        taps: half the window; surfaces stay closed up to a magnification of 2 * taps - 1.
        tau: relative depth within which points of one pixel are one surface.
        adapt: tile by tile, loop over the smallest window that holds every kernel, instead of
            2 * taps always: the same result sooner. Under vmap the tiles of all frames wait for
            the largest window among them, so map over frames instead.
        with_depth: also average the depth; without it the result's is None.
        height: of the target, the source's by default; likewise width.

    Returns:
        A SplatResult of the target's size.
    """
    height = colors.shape[0] if height is None else height
    width = colors.shape[1] if width is None else width
    view = View(height, width, taps, None if adapt else 2 * taps)
    drawn = jnp.isfinite(depth) & (depth > 0)
    if valid is not None:
        drawn &= valid
    cameras = (source_intrinsics, target_intrinsics, pose.inverse(source_from_target))
    points = _seen_from(view, colors, depth, drawn, cameras, with_depth)
    limit = windows.nearest(view, points) * (1 + tau)
    if torn is not None:
        points = dataclasses.replace(points, x=jnp.where(torn, view.away, points.x))
    total = windows.weighted_sum(view, points, limit).reshape(height, width, -1)

    weight = total[..., -1]
    mask = weight > 0
    mean = total[..., :-1] / jnp.where(mask, weight, 1.0)[..., None]
    seen_depth = mean[..., -1] if with_depth else None
    return SplatResult(mean[..., : colors.shape[-1]], seen_depth, weight, mask)


def _seen_from(view: View, colors, depth, drawn, cameras, with_depth: bool) -> Points:
    """Every source pixel in the target; cameras: both intrinsics and target_from_source."""
    source, target, _ = cameras
    safe_depth = jnp.where(drawn, depth, 1.0)
    u, v, z = displaced(safe_depth, *cameras)
    drawn &= z > MIN_DEPTH
    magnification = safe_depth / jnp.where(z > MIN_DEPTH, z, 1.0)
    growth = jnp.stack([target[i, i] / source[i, i] for i in (0, 1)])
    # The clip keeps far points in int32 range.
    x, y = (
        jnp.where(drawn, jnp.clip(position - 0.5, view.away, length - view.away), view.away)
        for position, length in ((u, view.width), (v, view.height))
    )
    recedes = sum(
        step * 2 * windows.reach(grown, view.taps) / jnp.maximum(grown, MIN_MAGNIFICATION)
        for step, grown in zip(
            _steps(z, drawn), [growth[i] * magnification for i in (0, 1)], strict=True
        )
    )
    front = jax.lax.stop_gradient(z - recedes)
    values = jnp.concatenate([colors, z[..., None]], axis=-1) if with_depth else colors
    return Points(x, y, z, front, magnification, values, growth)


def _steps(z: jax.Array, drawn: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Step of z `[H, W]` to the next pixel of its surface, along x and along y."""
    # A border and gaps so far away that any step to them is an edge. Padded once and sliced: a
    # shift inside the arithmetic is what a CPU is slow at.
    far = 0.5 * jnp.finfo(z.dtype).max
    z = jnp.pad(jnp.where(drawn, z, far), 1, constant_values=far)
    middle = z[1:-1, 1:-1]
    steps = []
    for behind, ahead in ((z[1:-1, :-2], z[1:-1, 2:]), (z[:-2, 1:-1], z[2:, 1:-1])):
        step = jnp.minimum(jnp.abs(middle - behind), jnp.abs(middle - ahead))
        steps.append(jnp.where(step > MAX_STEP * middle, 0.0, step))
    return tuple(steps)


def render_anchor(
    frames: jax.Array,
    depth: jax.Array,
    source_intrinsics: jax.Array,
    trajectory: Trajectory,
    *,
    valid: jax.Array | None = None,
    surfaces: jax.Array | None = None,
    taps: int = 4,
    tau: float = 0.02,
    tearing_threshold: float | None = 0.05,
    height: int | None = None,
    width: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The clip seen along a trajectory: frame t of the source splatted into camera t.

    Args:
        frames: `[T, k H, k W, 3]` in [0, 1]; with a whole k above 1, pictures of more pixels than the
            depth has, for cameras that come nearer: every one of them is drawn.
        depth: `[T, H, W]` plane depth, in the units of the trajectory's translations.
        source_intrinsics: `[3, 3]` or `[T, 3, 3]`, pixels of the depth.
        trajectory: T cameras relative to the source camera of the same frame.
        valid: `[T, H, W]` bool, pixels that may be drawn, or None for all.
        surfaces: `[T, H, W]` bool, pixels that are not sky, or None for all: an outline against the
            sky is no smeared depth, and is not torn.
        taps: half the largest window: surfaces stay closed up to a magnification of 2 * taps - 1.
            Each tile takes the smallest window that holds its kernels, so it costs no time.
        tau: see `splat`.
        tearing_threshold: take no colour from points on depth steps that the target would see torn
            apart (`masks.torn_in_view`), though they still hide what is behind; None: from all.
        height: of the target, the depth's by default; likewise width.

    Returns:
        frames `[T, H, W, 3]`, 0 in holes, and the raw mask `[T, H, W]` bool.

    Raises:
        InputError: when frames, depth and trajectory do not have the same number of frames, or
            the size of frames is no whole multiple of that of the depth.
    """
    num_frames = trajectory.num_frames
    if frames.ndim != 4 or frames.shape[0] != num_frames:
        raise InputError(
            f"frames have shape {frames.shape}: expected [T, H, W, 3] with T = {num_frames}, the "
            "length of the trajectory"
        )
    detail = max(1, frames.shape[1] // depth.shape[1]) if depth.ndim == 3 else 1
    expected = num_frames, *(side / detail for side in frames.shape[1:3])
    for name, value in (("depth", depth), ("valid", valid), ("surfaces", surfaces)):
        if value is not None and value.shape != expected:
            raise InputError(
                f"{name} has shape {value.shape}: expected {frames.shape[:3]}, one value per pixel "
                "of the frames; resize it (depth by nearest neighbour)"
            )
    source_intrinsics = jnp.asarray(source_intrinsics)
    if source_intrinsics.ndim == 2:
        source_intrinsics = jnp.broadcast_to(source_intrinsics, (num_frames, 3, 3))
    views = (frames, depth, valid, surfaces, source_intrinsics, trajectory.cameras)
    sizes = {"taps": taps, "height": height, "width": width}
    return _render_views(views, trajectory.pivot_depth, tau, tearing_threshold, **sizes)


@functools.partial(jax.jit, static_argnames=("taps", "height", "width"))
def _render_views(views, pivot_depth, tau, tearing_threshold, **sizes):
    """One frame after the other: a frame's taps are much larger than the frame."""
    colors, depth, *others, cameras = views
    depth, cameras = in_own_unit(depth, cameras, pivot_depth)
    views = (colors, depth, *others, cameras)
    return jax.lax.map(lambda view: _render_view(view, tau, tearing_threshold, **sizes), views)


# A program of its own, so that it is traced once for clips of any length.
@functools.partial(jax.jit, static_argnames=("taps", "height", "width"))
def _render_view(view, tau, tearing_threshold, *, taps, height, width):
    colors, depth, valid, surfaces, source_intrinsics, camera = view
    cameras = (source_intrinsics, camera.intrinsics, camera.world_from_camera)
    keep = jnp.isfinite(depth) & (depth > 0)
    if valid is not None:
        keep &= valid
    torn = None
    if tearing_threshold is not None:
        safe_depth = jnp.where(keep, depth, 1.0)
        solid = keep if surfaces is None else keep & surfaces
        torn = torn_in_view(safe_depth, *cameras, tearing_threshold, valid=solid)
    size = depth.shape
    detail = colors.shape[0] // size[0]
    if detail > 1:
        depth = upsampled(depth, keep, detail)
        keep, torn = (x if x is None else _repeated(x, detail) for x in (keep, torn))
        finer = resize_intrinsics(source_intrinsics, size, depth.shape)
        cameras = (finer, *cameras[1:])
    result = splat(
        colors,
        depth,
        keep,
        *cameras,
        torn=torn,
        taps=taps,
        tau=tau,
        adapt=True,
        with_depth=False,
        height=height or size[0],
        width=width or size[1],
    )
    return result.colors, result.mask


def upsampled(depth: jax.Array, valid: jax.Array, factor: int) -> jax.Array:
    """Depth with `factor` times the pixels a side: planes stay planes, edges stay edges.

    Between the four pixels around it 1 / z is interpolated linearly, which is exact for planes, unless one
    of them is not valid or a step of over `MAX_STEP` is among them: there the nearest pixel's is taken.

    Args:
        depth: `[H, W]`.
        valid: `[H, W]` bool, finite and positive depths.
        factor: a whole number.

    Returns:
        `[factor H, factor W]`.
    """
    inverse = jnp.where(valid, 1.0 / jnp.where(valid, depth, 1.0), 0.0)
    corners = [(inverse, 1.0)]
    for axis, length in enumerate(depth.shape):
        position = (jnp.arange(length * factor, dtype=depth.dtype) + 0.5) / factor - 0.5
        low = jnp.clip(jnp.floor(position), 0, max(length - 2, 0))  # at the border: beyond both
        share = jnp.expand_dims(position - low, 1 - axis)
        ends = [jnp.clip(low + i, 0, length - 1).astype(jnp.int32) for i in (0, 1)]
        corners = [
            (jnp.take(values, end, axis), weight * near)
            for values, weight in corners
            for end, near in zip(ends, (1 - share, share), strict=True)
        ]
    values = jnp.stack([values for values, _ in corners])
    smooth = values.max(0) < values.min(0) * (1 + MAX_STEP)  # never where one is not valid
    mean = sum(values * weight for values, weight in corners)
    return jnp.where(smooth, 1.0 / jnp.where(smooth, mean, 1.0), _repeated(depth, factor))


def _repeated(x: jax.Array, factor: int) -> jax.Array:
    return jnp.repeat(jnp.repeat(x, factor, 0), factor, 1)
