"""Forward splatting of coloured depth maps, in two passes, differentiable.

Every source pixel is a point. It is drawn with a tent kernel whose footprint follows the local
magnification m = (f_target / f_source) (z_source / z_target), separately in x and y:

    R = clip(m, 1, 2 * taps - 1) / 2 + 1/2          half-width in target pixels
    k = max(0, 1 - |du| / R) max(0, 1 - |dv| / R)   over a window of (2 * taps)^2 pixels, k > 1e-3

1. scatter-min: z_min of each target pixel over all the kernels that reach it;
2. scatter-add of k * colour and k over the points with z <= z_min (1 + tau).

So a near surface hides a far one wherever its kernels touch, up to a magnification of 2 * taps - 1,
and the result depends neither on the farthest point of the frame nor on points behind the camera.
At unit magnification and integer positions the kernel is the pixel itself (rounding leaves k below
1e-3 next to it), so no move gives back the source.

What stays fixed in a derivative is what selects: z_min, the windows and the visibility tests.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from recapture_jax.camera import pose
from recapture_jax.camera.trajectory import Trajectory
from recapture_jax.errors import InputError
from recapture_jax.geometry.masks import torn_in_view
from recapture_jax.geometry.projection import MIN_DEPTH, project, unproject

MIN_KERNEL = 1e-3
"""Kernel values up to this are rounding noise around an exact hit and are not drawn."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SplatResult:
    """A splatted view (a pytree).

    Attributes:
        colors: `[H, W, C]` kernel-weighted mean colour, 0 in holes.
        depth: `[H, W]` kernel-weighted mean depth in the target camera, 0 in holes.
        weight: `[H, W]` sum of kernels.
        mask: `[H, W]` bool, True where a point was drawn.
    """

    colors: jax.Array
    depth: jax.Array
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
    taps: int = 2,
    tau: float = 0.02,
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
        taps: half the window; surfaces stay closed up to a magnification of 2 * taps - 1.
        tau: relative depth within which points of one pixel are one surface.
        height: of the target, the source's by default; likewise width.

    Returns:
        A SplatResult of the target's size.
    """
    channels = colors.shape[-1]
    height = colors.shape[0] if height is None else height
    width = colors.shape[1] if width is None else width

    drawn = jnp.isfinite(depth) & (depth > 0)
    if valid is not None:
        drawn &= valid
    safe_depth = jnp.where(drawn, depth, 1.0)
    points = pose.transform_points(
        pose.inverse(source_from_target), unproject(safe_depth, source_intrinsics)
    )
    pixels, z = project(points, target_intrinsics)
    drawn = (drawn & (z > MIN_DEPTH)).reshape(-1)
    magnification = safe_depth / jnp.where(z > MIN_DEPTH, z, 1.0)

    z = z.reshape(-1)
    reach = [
        jnp.clip(
            (target_intrinsics[i, i] / source_intrinsics[i, i] * magnification).reshape(-1),
            1.0,
            2 * taps - 1,
        )
        * 0.5
        + 0.5
        for i in (0, 1)
    ]
    # In index coordinates pixel j has its centre at j. The clip keeps far points in int32 range.
    x = jnp.clip(pixels[..., 0].reshape(-1) - 0.5, -2.0 * taps, width + 2.0 * taps)
    y = jnp.clip(pixels[..., 1].reshape(-1) - 0.5, -2.0 * taps, height + 2.0 * taps)
    left, top = jnp.floor(x), jnp.floor(y)
    # Taps outside the image or with a negligible kernel get an index past the canvas, which the
    # scatters drop (on CPUs quicker than one shared dump cell, whose additions wait in line).
    outside = height * width

    def tap(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Cell index and kernel `[N]` of one neighbour of every point."""
        column, row = left + offset[0], top + offset[1]
        kernel = jnp.maximum(0.0, 1.0 - jnp.abs(column - x) / reach[0])
        kernel *= jnp.maximum(0.0, 1.0 - jnp.abs(row - y) / reach[1])
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        cell = row.astype(jnp.int32) * width + column.astype(jnp.int32)
        return jnp.where(drawn & inside & (kernel > MIN_KERNEL), cell, outside), kernel

    z_fixed = jax.lax.stop_gradient(z)

    def keep_nearest(z_min, offset):
        cell, _ = tap(offset)
        return z_min.at[cell].min(z_fixed, mode="drop"), None

    # Depth is summed apart from the colours so that a caller who ignores it does not pay for it.
    payload = jnp.concatenate([colors.reshape(-1, channels), jnp.ones_like(z)[:, None]], axis=-1)
    # Colours of points that are not drawn may be nan; a nan would also spoil the gradients.
    payload = jnp.where(drawn[:, None], payload, 0.0)

    def accumulate(totals, offset):
        total, total_depth = totals
        cell, kernel = tap(offset)
        in_front = z_fixed <= limit.at[cell].get(mode="fill", fill_value=0.0)
        kernel = jnp.where(in_front, kernel, 0.0)
        total = total.at[cell].add(payload * kernel[:, None], mode="drop")
        return (total, total_depth.at[cell].add(z * kernel, mode="drop")), None

    steps = jnp.arange(1 - taps, taps + 1, dtype=x.dtype)
    offsets = jnp.stack(jnp.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    empty = jnp.full((outside,), jnp.inf, z.dtype)
    z_min, _ = jax.lax.scan(keep_nearest, empty, offsets)
    limit = z_min * (1 + tau)
    empty = (jnp.zeros((outside, channels + 1), payload.dtype), jnp.zeros((outside,), z.dtype))
    (total, total_depth), _ = jax.lax.scan(accumulate, empty, offsets)

    weight = total[:, -1]
    mask = weight > 0
    divisor = jnp.where(mask, weight, 1.0)
    return SplatResult(
        colors=(total[:, :-1] / divisor[:, None]).reshape(height, width, channels),
        depth=(total_depth / divisor).reshape(height, width),
        weight=weight.reshape(height, width),
        mask=mask.reshape(height, width),
    )


def render_anchor(
    frames: jax.Array,
    depth: jax.Array,
    source_intrinsics: jax.Array,
    trajectory: Trajectory,
    *,
    valid: jax.Array | None = None,
    taps: int = 2,
    tau: float = 0.02,
    tearing_threshold: float | None = 0.05,
    height: int | None = None,
    width: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The clip seen along a trajectory: frame t of the source splatted into camera t.

    Args:
        frames: `[T, H, W, 3]` in [0, 1].
        depth: `[T, H, W]` plane depth, in the units of the trajectory's translations.
        source_intrinsics: `[3, 3]` or `[T, 3, 3]`, pixels.
        trajectory: T cameras relative to the source camera of the same frame.
        valid: `[T, H, W]` bool, pixels that may be drawn, or None for all.
        taps: see `splat`; tau likewise.
        tearing_threshold: drop points on depth steps that the target would see torn apart
            (`masks.torn_in_view`); None draws every point.
        height: of the target, the source's by default; likewise width.

    Returns:
        frames `[T, H, W, 3]`, 0 in holes, and the raw mask `[T, H, W]` bool.

    Raises:
        InputError: when frames, depth and trajectory do not have the same number of frames, or
            frames and depth not the same size.
    """
    num_frames = trajectory.num_frames
    if frames.ndim != 4 or frames.shape[0] != num_frames:
        raise InputError(
            f"frames have shape {frames.shape}: expected [T, H, W, 3] with T = {num_frames}, the "
            "length of the trajectory"
        )
    for name, value in (("depth", depth), ("valid", valid)):
        if value is not None and value.shape != frames.shape[:3]:
            raise InputError(
                f"{name} has shape {value.shape}: expected {frames.shape[:3]}, one value per pixel "
                "of the frames; resize it (depth by nearest neighbour)"
            )
    source_intrinsics = jnp.asarray(source_intrinsics)
    if source_intrinsics.ndim == 2:
        source_intrinsics = jnp.broadcast_to(source_intrinsics, (num_frames, 3, 3))
    views = (frames, depth, valid, source_intrinsics, trajectory.cameras)
    return _render_views(views, tau, tearing_threshold, taps=taps, height=height, width=width)


@functools.partial(jax.jit, static_argnames=("taps", "height", "width"))
def _render_views(views, tau, tearing_threshold, *, taps, height, width):
    """One frame after the other: a frame's taps are much larger than the frame."""

    def render(view):
        colors, depth, valid, source_intrinsics, camera = view
        cameras = (source_intrinsics, camera.intrinsics, camera.world_from_camera)
        keep = jnp.isfinite(depth) & (depth > 0)
        if valid is not None:
            keep &= valid
        if tearing_threshold is not None:
            safe_depth = jnp.where(keep, depth, 1.0)
            keep &= ~torn_in_view(safe_depth, *cameras, tearing_threshold, valid=keep)
        result = splat(
            colors, depth, keep, *cameras, taps=taps, tau=tau, height=height, width=width
        )
        return result.colors, result.mask

    return jax.lax.map(render, views)
