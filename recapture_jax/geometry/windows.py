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

TILE = 49152
"""Points of a tile, at most: it has whole rows of the source, at least one."""

WINDOWS = (2, 3, 4, 6)
"""Sides, in pixels, of the windows that a derivative chooses from."""


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

        arrays = dataclasses.replace(self, growth=None)
        return dataclasses.replace(jax.tree.map(cut, arrays), growth=self.growth)

    def axes(self, view: View) -> tuple[tuple[jax.Array, jax.Array, int], ...]:
        """Along x and along y: positions, magnifications, length of the target."""
        grown = [growth * self.magnification for growth in self.growth]
        return (self.x, grown[0], view.width), (self.y, grown[1], view.height)


def reach(magnification: jax.Array, taps: int) -> jax.Array:
    """Half-width of a kernel, target pixels.

    At m itself an enlarged surface would be interpolated linearly; three quarters of it take about half the
    pixels, reach less over outlines and lose 0.1 to 0.3 dB.
    """
    return jnp.clip(0.75 * magnification, 1.0, float(taps))


def cover(magnification: jax.Array) -> jax.Array:
    """Half-width of the square that a point covers, target pixels."""
    return magnification / 2 + COVER_MARGIN


def nearest(view: View, points: Points) -> jax.Array:
    """Depth `[height * width]` of the nearest point that covers each pixel's centre, else inf."""
    outside = view.height * view.width

    def prepare(points):
        spans = [
            _span(position, jnp.minimum(cover(grown), view.taps - MIN_KERNEL), length)
            for position, grown, length in points.axes(view)
        ]
        return _counts(spans), (_first_cell(view, spans), points.z)

    def keep_nearest(canvas, tile, i, j):
        (across, down), (cell, z) = tile
        cell = jnp.where((i < down) & (j < across), cell + i * view.width + j, outside)
        return canvas.at[cell].min(z, mode="drop")

    empty = jnp.full((outside,), jnp.inf, points.z.dtype)
    return _over_tiles(view, jax.lax.stop_gradient(points), prepare, keep_nearest, empty)


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
    outside = view.height * view.width

    def prepare(points):
        spans = _kernel_spans(view, points)
        kernels = [
            (position - first, 1.0 / reach(grown, view.taps))
            for (position, grown, _), (first, _) in zip(points.axes(view), spans, strict=True)
        ]
        # The values of points that are not drawn may be nan, which would spoil the gradients.
        values = jnp.where((points.x > view.away)[:, None], points.values, 0.0)
        payload = jnp.concatenate([values, jnp.ones_like(values[:, :1])], axis=-1)
        return _counts(spans), (_first_cell(view, spans), kernels, points.front, payload)

    def accumulate(canvas, tile, i, j):
        (across, down), (cell, (along_x, along_y), front, payload) = tile

        def kernel(index, count, along):
            inside = jnp.maximum(0.0, 1.0 - jnp.abs(index - along[0]) * along[1])
            return jnp.where(index < count, inside, 0.0)

        weight = kernel(i, down, along_y) * kernel(j, across, along_x)
        cell = cell + i * view.width + j
        drawn = (weight > MIN_KERNEL) & (front <= limit.at[cell].get(mode="clip"))
        cell = jnp.where(drawn, cell, outside)
        return canvas.at[cell].add(payload * weight[:, None], mode="drop")

    empty = jnp.zeros((outside, points.values.shape[-1] + 1), points.values.dtype)
    return _over_tiles(view, points, prepare, accumulate, empty)


_sum_of_tiles = jax.custom_jvp(_sum, nondiff_argnums=(0,))


@_sum_of_tiles.defjvp
def _sum_of_tiles_jvp(view, primals, tangents):
    points, _ = primals
    sides = [side for side in WINDOWS if side < 2 * view.taps] + [2 * view.taps]
    largest = jnp.maximum(*_largest(_counts(_kernel_spans(view, points))))
    enough = (jnp.asarray(sides[:-1]) < largest).sum()
    derivatives = [functools.partial(_derivative, view._replace(window=side)) for side in sides]
    change = jax.lax.switch(enough, derivatives, primals, tangents)
    return _sum_of_tiles(view, *primals), change


def _derivative(view, primals, tangents):
    return jax.jvp(functools.partial(_sum, view), primals, tangents)[1]


def _kernel_spans(view: View, points: Points):
    """Along x and along y: the pixels at which kernels are over MIN_KERNEL."""
    return [
        _span(position, reach(grown, view.taps) * (1 - MIN_KERNEL), length)
        for position, grown, length in points.axes(view)
    ]


def _span(position: jax.Array, half: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """First pixel (float) and number (float, not over 0 for none) of those within half of a position."""
    first = jnp.maximum(jnp.ceil(position - half), 0.0)
    last = jnp.minimum(jnp.floor(position + half), length - 1.0)
    return jax.lax.stop_gradient((first, last - first + 1))


def _counts(spans) -> list[jax.Array]:
    """Sides along x and along y (float) of the window that each point needs; 0 for none."""
    (_, across), (_, down) = spans
    seen = (across > 0) & (down > 0)
    return [jnp.where(seen, count, 0.0) for count in (across, down)]


def _largest(counts) -> list[jax.Array]:
    # Of floats: a CPU takes seven times as long for the maximum of integers.
    return [count.max().astype(jnp.int32) for count in counts]


def _first_cell(view: View, spans) -> jax.Array:
    (left, _), (top, _) = spans
    return top.astype(jnp.int32) * view.width + left.astype(jnp.int32)


def _over_tiles(view: View, points: Points, prepare: Callable, body: Callable, canvas):
    """Folds `body(canvas, tile, i, j)` over the rows i and columns j of all windows.

    Args:
        view: static.
        points: what is drawn, arrays `[H, W]`.
        prepare: makes of the points of a tile, arrays `[N]`, a tile: what `_counts` gives, and what
            else the body needs.
        body: draws, of each point of the tile, what falls on pixel (i, j) of its window.
        canvas: the first one.
    """
    height, width = points.x.shape

    def over_window(tile, sides, canvas):
        def over_row(i, canvas):
            return jax.lax.fori_loop(0, sides[0], lambda j, c: body(c, tile, i, j), canvas)

        return jax.lax.fori_loop(0, sides[1], over_row, canvas)

    if view.window:
        return over_window(prepare(points.rows()), [view.window] * 2, canvas)
    rows = max(n for n in range(1, height + 1) if height % n == 0 and n * width <= max(TILE, width))

    def over_tile(index, canvas):
        tile = prepare(points.rows(index * rows, rows))
        return over_window(tile, _largest(tile[0]), canvas)

    return jax.lax.fori_loop(0, height // rows, over_tile, canvas)
