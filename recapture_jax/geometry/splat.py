"""Forward splatting of coloured depth maps, in two passes, differentiable.

Every source pixel is a point. It is drawn with a tent kernel whose footprint follows the local
magnification m = (f_target / f_source) (z_source / z_target), separately in x and y:

    R = clip((m + 3/4) / 2, 1, taps)                half-width in target pixels
    k = max(0, 1 - |du| / R) max(0, 1 - |dv| / R)   over a window of (2 * taps)^2 pixels, k > 1e-3

1. scatter-min: z_min of each target pixel over the points that cover its centre, which are those
   within max(m, 1) / 2 + 0.2 of it (their own square and a little more, so that the squares of a
   surface leave no crack); without such points there is no limit;
2. scatter-add of k * colour and k over the points with z - e <= z_min (1 + tau), where e is how far
   the point's own surface recedes over the width of its kernel: s_x 2 R_x / m_x + s_y 2 R_y / m_y.
   s is the step of z to the neighbouring source pixel, the smaller one of both sides and none where
   it is over a tenth of z: that is an edge. Without e a floor seen at a grazing angle would keep
   only the nearest of the points that share a pixel.

So a near surface hides a far one wherever it covers the pixel, up to a magnification of 2 * taps - 1;
just outside its outline it is blended in by the tails of its kernels instead of growing by a pixel.
The result depends neither on the farthest point of the frame nor on points behind the camera.
At unit magnification and integer positions the kernel is the pixel itself, so no move gives back
the source. A smaller picture is anti-aliased by the same rule: R stays 1 target pixel, so a target
pixel is the tent-weighted mean of all the source pixels of its surface within a pixel of it, which
is what a resize with a linear low-pass filter takes.

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
from recapture_jax.geometry.projection import MIN_DEPTH, reproject

MIN_KERNEL = 1e-3
"""Kernel values up to this are rounding noise around an exact hit and are not drawn."""

WINDOWS = (2, 3, 4, 6)
"""Sides of the windows that `adapt` chooses from, in pixels; n holds a magnification of n - 3/4."""

COVER_MARGIN = 0.2
"""Target pixels by which the squares of neighbouring points overlap on each side."""

MAX_STEP = 0.1
"""A step of depth to the next pixel over this share of it is an edge, not a slope."""

MIN_MAGNIFICATION = 0.1
"""Below this the depth tolerance on slopes grows no further."""


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
    adapt: bool = False,
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
        adapt: loop over the smallest window that holds every kernel of this frame, instead of
            2 * taps always: the same result sooner. Under vmap all windows would be computed.
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
    target_from_source = pose.inverse(source_from_target)
    pixels, z = reproject(safe_depth, source_intrinsics, target_intrinsics, target_from_source)
    drawn &= z > MIN_DEPTH
    magnification = safe_depth / jnp.where(z > MIN_DEPTH, z, 1.0)

    magnified = [target_intrinsics[i, i] / source_intrinsics[i, i] * magnification for i in (0, 1)]
    reach = [jnp.clip((m + 0.75) / 2, 1.0, float(taps)).reshape(-1) for m in magnified]
    cover = [jnp.maximum(m, 1.0).reshape(-1) / 2 + COVER_MARGIN for m in magnified]
    # In index coordinates pixel j has its centre at j. The clip keeps far points in int32 range.
    x = jnp.clip(pixels[..., 0].reshape(-1) - 0.5, -2.0 * taps, width + 2.0 * taps)
    y = jnp.clip(pixels[..., 1].reshape(-1) - 0.5, -2.0 * taps, height + 2.0 * taps)
    # Taps outside the image or with a negligible kernel get an index past the canvas, which the
    # scatters drop (on CPUs quicker than one shared dump cell, whose additions wait in line).
    outside = height * width
    recedes = sum(
        step * 2 * r.reshape(step.shape) / jnp.maximum(m, MIN_MAGNIFICATION)
        for step, r, m in zip(_steps(z, drawn), reach, magnified, strict=True)
    )
    drawn, z = drawn.reshape(-1), z.reshape(-1)
    z_fixed = jax.lax.stop_gradient(z)
    front = z_fixed - jax.lax.stop_gradient(recedes.reshape(-1))
    # Depth is summed apart from the colours so that a caller who ignores it does not pay for it.
    payload = jnp.concatenate([colors.reshape(-1, channels), jnp.ones_like(z)[:, None]], axis=-1)
    # Colours of points that are not drawn may be nan; a nan would also spoil the gradients.
    payload = jnp.where(drawn[:, None], payload, 0.0)

    def draw(side: int) -> tuple[jax.Array, jax.Array]:
        """Both passes over windows of side x side pixels: sums `[H * W, C + 1]`, `[H * W]`."""
        steps = jnp.arange(side, dtype=x.dtype) - (side - 1) // 2

        def along(position, reach, cover, length):
            """First cell `[N]`; kernels `[side, N]`, 0 outside the image; those of covered cells."""
            first = jnp.floor(position + 0.5 * (side % 2))
            cell = first[None] + steps[:, None]
            apart = jnp.abs(cell - position[None])
            kernel = jnp.maximum(0.0, 1.0 - apart / reach[None])
            kernel = jnp.where(drawn[None] & (cell >= 0) & (cell < length), kernel, 0.0)
            return first.astype(jnp.int32), kernel, jnp.where(apart <= cover[None], kernel, 0.0)

        left, across, across_covered = along(x, reach[0], cover[0], width)
        top, down, down_covered = along(y, reach[1], cover[1], height)
        corner = top * width + left
        columns = steps.astype(jnp.int32)
        rows = columns * width

        def over_window(body, carry, across, down):
            """Folds `body(carry, cell, kernel)` over the taps."""

            def over_row(carry, row):
                def over_column(carry, column):
                    kernel = row[0] * column[0]
                    cell = corner + (row[1] + column[1])
                    return body(carry, jnp.where(kernel > MIN_KERNEL, cell, outside), kernel), None

                return jax.lax.scan(over_column, carry, (across, columns))[0], None

            return jax.lax.scan(over_row, carry, (down, rows))[0]

        def keep_nearest(z_min, cell, _):
            return z_min.at[cell].min(z_fixed, mode="drop")

        def accumulate(totals, cell, kernel):
            total, total_depth = totals
            in_front = front <= limit.at[cell].get(mode="fill", fill_value=0.0)
            # The barrier keeps the compiler from doing this arithmetic once per channel in the
            # scalar loop of a CPU's scatter.
            cell, kernel = jax.lax.optimization_barrier(
                (jnp.where(in_front, cell, outside), kernel)
            )
            total = total.at[cell].add(payload * kernel[:, None], mode="drop")
            return total, total_depth.at[cell].add(z * kernel, mode="drop")

        empty = jnp.full((outside,), jnp.inf, z.dtype)
        limit = over_window(keep_nearest, empty, across_covered, down_covered) * (1 + tau)
        empty = (jnp.zeros((outside, channels + 1), payload.dtype), jnp.zeros((outside,), z.dtype))
        return over_window(accumulate, empty, across, down)

    if adapt:
        sides = [side for side in WINDOWS if side < 2 * taps] + [2 * taps]
        seen = drawn & (x > -taps) & (x < width - 1 + taps) & (y > -taps) & (y < height - 1 + taps)
        widest = jnp.where(seen, jnp.maximum(*reach), 1.0).max()
        enough = (jnp.asarray(sides[:-1]) < 2 * widest).sum()
        draws = [functools.partial(draw, side) for side in sides]
        total, total_depth = jax.lax.switch(enough, draws)
    else:
        total, total_depth = draw(2 * taps)

    weight = total[:, -1]
    mask = weight > 0
    divisor = jnp.where(mask, weight, 1.0)
    return SplatResult(
        colors=(total[:, :-1] / divisor[:, None]).reshape(height, width, channels),
        depth=(total_depth / divisor).reshape(height, width),
        weight=weight.reshape(height, width),
        mask=mask.reshape(height, width),
    )


def _steps(z: jax.Array, drawn: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Step of z `[H, W]` to the next pixel of its surface, along x and along y."""
    steps = []
    for axis in (1, 0):
        step = jnp.abs(jnp.diff(jnp.where(drawn, z, jnp.nan), axis=axis))
        step = jnp.where(jnp.isnan(step), jnp.inf, step)
        ahead, behind = (
            jnp.pad(step, [side if i == axis else (0, 0) for i in (0, 1)], constant_values=jnp.inf)
            for side in ((0, 1), (1, 0))
        )
        step = jnp.minimum(ahead, behind)
        steps.append(jnp.where(step > MAX_STEP * z, 0.0, step))
    return tuple(steps)


def render_anchor(
    frames: jax.Array,
    depth: jax.Array,
    source_intrinsics: jax.Array,
    trajectory: Trajectory,
    *,
    valid: jax.Array | None = None,
    taps: int = 4,
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
        taps: half the largest window: surfaces stay closed up to a magnification of 2 * taps - 1.
            Each frame takes the smallest window that holds its kernels, so it costs no time.
        tau: see `splat`.
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
            colors,
            depth,
            keep,
            *cameras,
            taps=taps,
            tau=tau,
            adapt=True,
            height=height,
            width=width,
        )
        return result.colors, result.mask

    return jax.lax.map(render, views)
