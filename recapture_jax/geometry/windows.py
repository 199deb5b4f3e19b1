"""Points drawn over windows of target pixels: the two scatters of `splat.py`.

The source is walked in tiles. The arrays of a tile fit into a CPU's cache, each tile takes the
smallest window that holds its own kernels, and a tile out of view costs nothing. Such a window is
known when the program runs, not when it is compiled, so what is differentiated is the same sum with
a window of fixed size over the whole source at once.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

MIN_KERNEL = 1e-3
"""Kernel values up to this are rounding noise around an exact hit and are not drawn."""

COVER_MARGIN = 0.2
"""Target pixels by which the squares of neighbouring points overlap on each side."""

TILE = 16384
"""Points of a tile, at most: it has whole rows of the source, at least one."""

WINDOWS = (2, 3, 4, 6)
"""Sides, in pixels, of the windows that a derivative chooses from; n holds magnification n - 3/4."""


class View(NamedTuple):
    """Of a splat, what is known when it is compiled.

    Attributes:
        height: of the target, pixels; likewise width.
        taps: half the largest window.
        window: side of the window of all points; None: each tile the smallest one.
    """

    height: int
    width: int
    taps: int
    window: int | None

    @property
    def away(self) -> float:
        """Position of what is not drawn: no window reaches the image from there."""
        return -2.0 * self.taps


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Points:
    """Source points as the target sees them, each array `[H, W]` (a pytree).

    Attributes:
        x: pixel index (pixel j has its centre at j), `View.away` for what is not drawn.
        y: likewise.
        z: depth in the target camera.
        front: z less what the point's own surface recedes over the width of its kernel.
        magnification: z_source / z_target.
        values: `[H, W, C]` to be averaged.
        growth: `[2]`, f_target / f_source along x and y.
    """

    x: jax.Array
    y: jax.Array
    z: jax.Array
    front: jax.Array
    magnification: jax.Array
    values: jax.Array
    growth: jax.Array

    def rows(self, start: jax.Array | int = 0, count: int | None = None) -> "Points":
        """Points of `count` rows (default: all), with arrays `[N]`, values `[N, C]`."""
        height, width = self.x.shape
        size = width * (height if count is None else count)

        def cut(x):
            # Flat before it is cut: a part of a flat array is what a compiler reads straight on.
            flat = x.reshape(-1, *x.shape[2:])
            return (
                flat if count is None else jax.lax.dynamic_slice_in_dim(flat, start * width, size)
            )

        arrays = dataclasses.replace(self, growth=self.x)
        return dataclasses.replace(jax.tree.map(cut, arrays), growth=self.growth)

    def axes(self, view: View) -> tuple[tuple[jax.Array, jax.Array, int], ...]:
        """Along x and along y: positions, magnifications, length of the target."""
        grown = [growth * self.magnification for growth in self.growth]
        return (self.x, grown[0], view.width), (self.y, grown[1], view.height)


def reach(magnification: jax.Array, taps: int) -> jax.Array:
    """Half-width of a kernel, target pixels."""
    return jnp.clip((magnification + 0.75) / 2, 1.0, float(taps))


def cover(magnification: jax.Array) -> jax.Array:
    """Half-width of the square that a point covers, target pixels."""
    return jnp.maximum(magnification, 1.0) / 2 + COVER_MARGIN


def nearest(view: View, points: Points) -> jax.Array:
    """Depth `[height * width]` of the nearest point that covers each pixel's centre, else inf."""

    def keep_nearest(nearest, tile, cell, _):
        return nearest.at[cell].min(tile.z, mode="drop")

    empty = jnp.full((view.height * view.width,), jnp.inf, points.z.dtype)
    return _over_tiles(view, jax.lax.stop_gradient(points), True, keep_nearest, empty)


def weighted_sum(view: View, points: Points, limit: jax.Array) -> jax.Array:
    """Sums of kernel times values, and of kernels, over the points in front of a pixel's limit.

    Args:
        view: static.
        points: what is drawn.
        limit: `[height * width]`.

    Returns:
        `[height * width, C + 1]`.
    """
    return (_sum if view.window else _sum_of_tiles)(view, points, limit)


def _sum(view: View, points: Points, limit: jax.Array) -> jax.Array:
    def accumulate(total, tile, cell, kernel):
        in_front = tile.front <= limit.at[cell].get(mode="clip")
        cell = jnp.where(in_front, cell, outside)
        # The values of points that are not drawn may be nan, which would spoil the gradients.
        values = jnp.where((tile.x > view.away)[:, None], tile.values, 0.0)
        payload = jnp.concatenate([values, jnp.ones_like(values[:, :1])], axis=-1)
        return total.at[cell].add(payload * kernel[:, None], mode="drop")

    outside = view.height * view.width
    empty = jnp.zeros((outside, points.values.shape[-1] + 1), points.values.dtype)
    return _over_tiles(view, points, False, accumulate, empty)


_sum_of_tiles = jax.custom_jvp(_sum, nondiff_argnums=(0,))


@_sum_of_tiles.defjvp
def _sum_of_tiles_jvp(view, primals, tangents):
    points, _ = primals
    sides = [side for side in WINDOWS if side < 2 * view.taps] + [2 * view.taps]
    enough = (jnp.asarray(sides[:-1]) < jnp.maximum(*_sides(view, points, False))).sum()
    derivatives = [functools.partial(_derivative, view._replace(window=side)) for side in sides]
    change = jax.lax.switch(enough, derivatives, primals, tangents)
    return _sum_of_tiles(view, *primals), change


def _derivative(view, primals, tangents):
    return jax.jvp(functools.partial(_sum, view), primals, tangents)[1]


def _over_tiles(view: View, points: Points, covered: bool, body: Callable, canvas):
    """Folds `body(canvas, tile, cell, kernel)` over all taps of all points.

    Args:
        view: static.
        points: what is drawn.
        covered: of the window, only what a point covers.
        body: takes the canvas, points with arrays `[N]` and for each its pixel `[N]`
            (height * width where there is none) and its kernel there.
        canvas: the first one.
    """
    if view.window:
        return _over_window(view, points.rows(), [view.window] * 2, covered, body, canvas)
    height, width = points.x.shape
    size = max(n for n in range(1, height + 1) if height % n == 0 and n * width <= max(TILE, width))

    def over_tile(index, canvas):
        tile = points.rows(index * size, size)
        return _over_window(view, tile, _sides(view, tile, covered), covered, body, canvas)

    return jax.lax.fori_loop(0, height // size, over_tile, canvas)


def _sides(view: View, points: Points, covered: bool) -> list[jax.Array]:
    """Sides along x and y of the window that holds all kernels, at most 2 * taps."""
    taps = view.taps
    seen = (points.x > -taps) & (points.x < view.width - 1 + taps)
    seen &= (points.y > -taps) & (points.y < view.height - 1 + taps)
    largest = jnp.where(seen, points.magnification, -1.0).max()
    sides = []
    for growth in points.growth:
        # A kernel is 0 at its reach, but what is covered includes its rim.
        grown = growth * largest
        side = jnp.floor(2 * cover(grown)) + 1 if covered else jnp.ceil(2 * reach(grown, taps))
        side = jnp.where(largest < 0, 0, jnp.minimum(side, 2 * taps))
        sides.append(side.astype(jnp.int32))
    return sides


def _over_window(view: View, points: Points, sides, covered: bool, body: Callable, canvas):
    """`_over_tiles` of one tile, arrays `[N]`, with windows of sides[0] x sides[1] pixels."""
    outside = view.height * view.width
    (x, grown_x, width), (y, grown_y, height) = points.axes(view)

    def first(position, side):
        return jnp.floor(position + 0.5 * (side & 1)) - ((side - 1) >> 1)

    def along(cell, position, grown, length):
        apart = jnp.abs(cell - position)
        drawn = (cell >= 0) & (cell < length)
        if covered:
            drawn &= apart <= cover(grown)
        return jnp.where(drawn, jnp.maximum(0.0, reach(grown, view.taps) - apart), 0.0)

    left, top = first(x, sides[0]), first(y, sides[1])
    area = reach(grown_x, view.taps) * reach(grown_y, view.taps)

    def over_row(i, canvas):
        row = top + i
        down = along(row, y, grown_y, height)

        def over_column(j, canvas):
            column = left + j
            # One division last: compilers do not repeat it in each place that uses the kernel.
            kernel = down * along(column, x, grown_x, width) / area
            cell = row.astype(jnp.int32) * width + column.astype(jnp.int32)
            return body(canvas, points, jnp.where(kernel > MIN_KERNEL, cell, outside), kernel)

        return jax.lax.fori_loop(0, sides[0], over_column, canvas)

    return jax.lax.fori_loop(0, sides[1], over_row, canvas)
