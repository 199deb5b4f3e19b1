"""What a camera path asks of a clip, in numbers, and how much of it the clip can show.

The strength of a move that leaves at most a given share unknown is found by search: the depth is
thinned to about `_SIDE` pixels, splatted for a handful of strengths, and the strength where the
limit is crossed is narrowed down by bisection. What the thinned clip says is scaled by how far it
is off, and the advice is checked at full size in its worst frame.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax.camera import pose
from recapture_jax.camera.moves import Move, parse_moves
from recapture_jax.camera.pinhole import crop_intrinsics, resize_intrinsics
from recapture_jax.camera.trajectory import Trajectory
from recapture_jax.errors import InputError
from recapture_jax.geometry import masks
from recapture_jax.geometry.projection import MIN_DEPTH, displaced, in_frame, in_own_unit
from recapture_jax.geometry.splat import render_anchor
from recapture_jax.stages import anchor as anchor_stage

_SIDE = 96  # shorter side of the thinned clip, pixels
_LOWER = tuple(k / 8 for k in range(1, 9))  # strengths tried, as shares of the move
_HIGHER = (1.25, 1.5, 2.0, 3.0, 4.0)
_BISECTIONS = 6
_ENLARGED = 3.0  # times; more than that is not advised, though it uncovers nothing,
_TURNED = 90.0  # nor looking at more than that many degrees from where the source looked: at backs
_ROUNDS = 4  # searches, when the full size says more than the thinned one did


@dataclasses.dataclass(frozen=True)
class Advice:
    """Advice in words and in numbers.

    Attributes:
        text: one sentence.
        moves: the sentence of moves that keeps the limit, '' where there is none to give.
        hole_share: of `moves` in its worst frame, checked at full size; None without `moves`.
    """

    text: str
    moves: str = ""
    hole_share: float | None = None


def longest_holes(known: np.ndarray) -> list[int]:
    """Pixels across the largest hole of each frame of a mask `[T, H, W]`.

    Every unknown pixel lies in a run along its row and one along its column; the shorter of the two
    is what has to be bridged there, and the longest of these counts.
    """
    return [int(np.minimum(_runs(~k, 1), _runs(~k, 0)).max()) for k in np.asarray(known)]


def _runs(unknown: np.ndarray, axis: int) -> np.ndarray:
    """Length of the run along an axis that each True of `[H, W]` lies in, 0 elsewhere."""
    unknown = np.moveaxis(unknown, axis, 1)
    count = unknown.shape[1]
    index = np.arange(count, dtype=np.int16 if count < 2**15 else np.int32)[None]  # half the memory
    before = np.maximum.accumulate(np.where(unknown, -1, index), axis=1)
    after = np.where(unknown, count, index)[:, ::-1]
    after = np.minimum.accumulate(after, axis=1)[:, ::-1]
    return np.moveaxis(np.where(unknown, after - before - 1, 0), 1, axis)


def parallax_and_tears(
    depth: np.ndarray,
    intrinsics: np.ndarray,
    path: Trajectory,
    tearing: float | None,
    surfaces: np.ndarray | None = None,
) -> tuple[list[float], list[float]]:
    """How far near and far things part, and the share of points on torn depth, per frame.

    Args:
        depth: `[T, H, W]`.
        intrinsics: `[3, 3]` or `[T, 3, 3]` of the source.
        path: the cameras.
        tearing: threshold of `masks.torn_in_view`; None: nothing is torn.
        surfaces: `[T, H, W]` bool, what is not sky; None: all.

    Returns:
        Parallax in pixels: the largest distance between where a visible point lands and where it
        would land were it as far as the farthest point of its frame. Shares in [0, 1].
    """
    intrinsics = jnp.broadcast_to(jnp.asarray(intrinsics), (len(depth), 3, 3))
    surfaces = jnp.ones(depth.shape, bool) if surfaces is None else jnp.asarray(surfaces)
    args = jnp.asarray(depth), surfaces, intrinsics, path.cameras, path.pivot_depth, tearing
    parts, torn = _measure(*args)
    return [float(p) for p in parts], [float(t) for t in torn]


@jax.jit
def _measure(depth, surfaces, intrinsics, cameras, pivot_depth, tearing):
    depth, cameras = in_own_unit(depth, cameras, pivot_depth)

    def one(view):
        depth, solid, source, camera = view
        views = (source, camera.intrinsics, pose.inverse(camera.world_from_camera))
        u, v, z = displaced(depth, *views)
        far_u, far_v, far_z = displaced(depth * 0 + depth.max(), *views)
        visible = in_frame(u, v, z, depth.shape) & (far_z > MIN_DEPTH)
        parallax = jnp.where(visible, jnp.hypot(u - far_u, v - far_v), 0.0).max()
        if tearing is None:
            return parallax, jnp.zeros(())
        cameras = (source, camera.intrinsics, camera.world_from_camera)
        return parallax, masks.torn_in_view(depth, *cameras, tearing, valid=solid).mean()

    return jax.lax.map(one, (depth, surfaces, intrinsics, cameras))


class HoleSearch:
    """Hole shares of camera paths over one clip, quickly at a small size or exactly."""

    def __init__(self, config, depth: np.ndarray, intrinsics: np.ndarray, surfaces=None):
        """config: the `anchor` group; depth `[T, H, W]`; intrinsics `[3, 3]` or `[T, 3, 3]`.

        surfaces: `[T, H, W]` bool, what is not sky; None: all.
        """
        self.config, self.surfaces = config, surfaces
        self.depth, self.intrinsics = np.asarray(depth), np.asarray(intrinsics)
        size = self.depth.shape[1:]
        self.step = max(1, min(size) // _SIDE)
        self.thin = self.depth[:, self.step // 2 :: self.step, self.step // 2 :: self.step]

    def quick(self, path: Trajectory) -> np.ndarray:
        """Hole shares `[T]` of the thinned clip, without the tearing filter, made for full size."""
        return self._holes(self.thin, self._thinned(self.intrinsics), self._over_thin(path), None)

    def beyond(self, path: Trajectory) -> bool:
        """Whether some frame is so enlarged, or looks so far from the source, that no holes are no recommendation."""
        grown = anchor_stage.magnification(
            self.thin, self._thinned(self.intrinsics), self._over_thin(path)
        )
        ahead = np.asarray(path.cameras.world_from_camera)[:, 2, 2]
        return bool(grown.max() > _ENLARGED or ahead.min() < math.cos(math.radians(_TURNED)))

    def _over_thin(self, path: Trajectory) -> Trajectory:
        cameras = path.cameras
        cameras = dataclasses.replace(cameras, intrinsics=self._thinned(cameras.intrinsics))
        return dataclasses.replace(path, cameras=cameras)

    def exact(self, path: Trajectory, frame: int) -> float:
        """Hole share of one frame at full size, as the run has it."""
        part = slice(frame, frame + 1)
        path = path.at(part)
        intrinsics = self.intrinsics if self.intrinsics.ndim == 2 else self.intrinsics[part]
        tearing = anchor_stage.tearing_threshold(self.config, self.depth.shape[1:])
        surfaces = None if self.surfaces is None else jnp.asarray(self.surfaces[part])
        grown = anchor_stage.magnification(self.depth[part], intrinsics, path)[0]
        detail = anchor_stage.DETAIL if grown > anchor_stage.ENLARGED else 1
        return float(self._holes(self.depth[part], intrinsics, path, tearing, surfaces, detail)[0])

    def _holes(self, depth, intrinsics, path, tearing, surfaces=None, detail=1) -> np.ndarray:
        frames, height, width = depth.shape
        blank = jnp.zeros((frames, detail * height, detail * width, 1))
        settings = {"taps": self.config.taps, "tau": self.config.tau, "tearing_threshold": tearing}
        settings["surfaces"] = surfaces
        _, known = render_anchor(blank, jnp.asarray(depth), intrinsics, path, **settings)
        return np.asarray(masks.hole_share(known))

    def _thinned(self, intrinsics) -> jax.Array:
        """Intrinsics of the thinned clip, whose pixel i shows what pixel step i + step // 2 did."""
        offset = self.step // 2 + 0.5 - self.step / 2
        size = self.thin.shape[1:]
        moved = crop_intrinsics(jnp.asarray(intrinsics), offset, offset)
        return resize_intrinsics(moved, (size[0] * self.step, size[1] * self.step), size)


def _said(name: str, holes: np.ndarray) -> tuple[float, str]:
    """The largest hole share and a sentence on it."""
    frame, last = int(np.argmax(holes)), len(holes) - 1
    worst = float(holes[frame])
    where = "at the end" if frame == last else f"in frame {frame} of {last}"
    says = f"{name} leaves {_percent(worst)} unknown {where}"
    return worst, says if worst > 0 else f"{name} leaves nothing unknown"


def as_it_is(name: str, holes: np.ndarray, limit: float) -> Advice:
    """How far a path whose strength cannot be changed stays within the limit; as `advise`."""
    holes = np.asarray(holes)
    worst, says = _said(name, holes)
    if worst <= limit:
        return Advice(f"{says}, which is within {_percent(limit)}")
    safe = int(np.argmax(holes > limit)) - 1
    return Advice(
        f"{says}; up to frame {max(safe, 0)} of {len(holes) - 1} it stays within {_percent(limit)}"
    )


def advise(
    sentence: str,
    plan: Callable[[str], Trajectory],
    search: HoleSearch,
    holes: np.ndarray,
    limit: float,
) -> Advice:
    """How strong the moves of a sentence may be for at most `limit` unknown in every frame.

    Args:
        sentence: in the move language.
        plan: a sentence to its cameras; InputError where it cannot be filmed.
        search: over the clip.
        holes: hole shares `[T]` of the sentence as it is, at full size.
        limit: share of unknown pixels, in (0, 1).
    """
    moves = parse_moves(sentence)
    if not any(move.direction for move in moves):
        return as_it_is(sentence, holes, limit)
    worst, says = _said(sentence, np.asarray(holes))
    if worst <= limit and search.beyond(plan(sentence)):
        return as_it_is(sentence, holes, limit)
    share, kept = _strength(moves, plan, search, worst, limit)
    advised = _words(scaled(moves, share))
    within = f"within {_percent(limit)}"
    if worst <= limit and share >= _HIGHER[-1]:
        return Advice(f"{says}; even {_HIGHER[-1]:g} times the move stays {within}")
    if worst <= limit and (kept is None or share <= 1.0 or advised == _words(moves)):
        return Advice(f"{says}, {within}; hardly more movement is advisable")
    if worst <= limit:
        return Advice(f"{says}; up to {advised} stays {within}", advised, kept)
    if kept is None or not any(move.signed for move in scaled(moves, share) if move.direction):
        return Advice(f"{says}, and no weaker form of it stays {within}")
    return Advice(f"{says}; {advised} keeps it under {_percent(limit)}", advised, kept)


def _strength(moves, plan, search, worst: float, limit: float) -> tuple[float, float | None]:
    """The largest share of the moves that keeps the limit, and its worst hole share (None: none).

    What the thinned clip says is off by a factor that changes slowly with the strength: it is
    taken where the full size is known, at first from the moves as they are.
    """

    def thinned(share: float) -> np.ndarray:
        return search.quick(plan(_words(scaled(moves, share))))

    def exceeds(share: float) -> bool:
        path = plan(_words(scaled(moves, share)))
        return search.beyond(path) or bias * search.quick(path).max() > limit

    def ratio(exact: float, quick: float) -> float:
        return exact / quick if quick > 0 else 1.0

    bias = ratio(worst, float(thinned(1.0).max()))
    tried = _HIGHER if worst <= limit else _LOWER
    for _ in range(_ROUNDS):
        share = _crossing(exceeds, tried)
        quick = thinned(share)
        frame = int(np.argmax(quick))
        kept = search.exact(plan(_words(scaled(moves, share))), frame)
        if kept <= limit:
            return share, kept
        bias = 1.02 * max(bias, ratio(kept, float(quick[frame])))
        tried = _LOWER + _HIGHER
    return share, None


def _crossing(exceeds: Callable[[float], bool], tried: tuple[float, ...]) -> float:
    """The share below which nothing of `tried` exceeds the limit, narrowed down by bisection."""

    def over(share: float) -> bool:
        try:
            return bool(exceeds(share))
        except InputError:  # it cannot be filmed: through the pivot, over the top
            return True

    low = 0.0 if tried[0] < 1 else 1.0
    for high in tried:
        if over(high):
            break
        low = high
    else:
        return low
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if over(middle) else (middle, high)
    return low


def scaled(moves: tuple[Move, ...], share: float) -> tuple[Move, ...]:
    """The moves at a share of their amount, rounded towards none to what one would write."""
    return tuple(_scaled(move, share) for move in moves)


def _scaled(move: Move, share: float) -> Move:
    if not move.direction:
        return move
    if move.name == "zoom":
        factor = move.amount**share
        amount = (
            1 + _shortened(factor - 1, 2) if factor > 1 else 1 / (1 + _shortened(1 / factor - 1, 2))
        )
        return dataclasses.replace(move, amount=round(amount, 4))
    amount = share * move.amount
    places = 0 if abs(amount) >= 10 else 1 if abs(amount) >= 1 else 3
    return dataclasses.replace(move, amount=_shortened(amount, places))


def _shortened(value: float, places: int) -> float:
    """The value with so many decimal places, towards 0."""
    unit = 10.0**places
    return round(math.copysign(math.floor(abs(value) * unit + 1e-6) / unit, value), places)


def _words(moves: tuple[Move, ...]) -> str:
    return "; ".join(map(str, moves))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share == 0 or share >= 0.1 else f"{100 * share:.1f} %"
