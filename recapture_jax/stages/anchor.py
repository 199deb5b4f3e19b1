"""Stage 1: the clip seen along the camera path, with a mask of what is known.

Multiview models for orbits plug in here later: they give other frames, the mask stays that of the splat.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax.camera import moves, pose, trajectory
from recapture_jax.camera import path as camera_path
from recapture_jax.camera.formats import read_as
from recapture_jax.camera.timing import source_frames
from recapture_jax.camera.trajectory import Trajectory
from recapture_jax.depth.base import DepthMap
from recapture_jax.errors import InputError
from recapture_jax.geometry import masks
from recapture_jax.geometry.projection import displaced, in_frame, in_own_unit
from recapture_jax.geometry.splat import render_anchor
from recapture_jax.video import resize
from recapture_jax.video.clip import Clip

# `anchor.tearing` is meant for frames of this short side: on smaller ones the same surface spans
# fewer pixels, so its depth changes by more over the filter's window.
TEARING_SIDE = 576

# Frames that a path enlarges by more are splatted from pictures of more pixels, `DETAIL` times as many
# a side: the points of small ones show as squares.
ENLARGED, DETAIL = 1.2, 2
_NEAREST = 8.0  # times nearer: points at the camera's own place would outweigh all others


@dataclasses.dataclass(frozen=True)
class Anchor:
    """The rough re-filmed clip.

    Attributes:
      frames: `[T, H, W, 3]` float32 in [0, 1]; holes are filled with the colours around them.
      mask: `[T, H, W]` bool, the known pixels after closing and eroding: what the losses trust.
      raw_mask: `[T, H, W]` bool, the pixels some source point landed on.
      trajectory: the cameras it was filmed with.
    """

    frames: np.ndarray
    mask: np.ndarray
    raw_mask: np.ndarray
    trajectory: Trajectory


def plan_trajectory(
    config,
    clip: Clip,
    depth: DepthMap,
    start: int = 0,
    stride: int = 1,
    num_source_frames: int | None = None,
    own: np.ndarray | None = None,
) -> Trajectory:
    """The cameras of the `camera` group, relative to the source camera of each frame.

    Args:
      config: the `camera` group; its `time` says which source frame each frame of `clip` shows.
      clip: what is filmed, in that time.
      depth: of the clip.
      start, stride: of the `video` group; source frame n is frame `start + stride * n` of the file
        of source poses.
      num_source_frames: of the clip as it was read; None: those of `clip`.
      own: `world_from_source` of the source frames, in depth units, where they came with the depth;
        `config.poses` goes before.

    Raises:
      InputError: for a bad camera file, or moves or poses that do not fit the clip.
    """
    pivot = config.pivot_depth or trajectory.pivot_depth_from_depth(
        np.where(depth.surfaces[0], depth.depth[0], np.inf)
    )
    intrinsics = np.asarray(clip.intrinsics)
    count, kind = clip.num_frames, depth.kind
    sources = num_source_frames or count
    shown = source_frames(config.time or "play", sources)
    source = read_as(config.poses, config.poses_format)[1] if config.poses else None
    if source is not None:
        scale = config.poses_scale or None
        own = camera_path.source_poses(source, sources, start, stride, depth_kind=kind, scale=scale)
    if config.path:
        path, scale = read_as(config.path, config.path_format, count)[1], config.path_scale
        if config.path_world == "poses":
            first = camera_path.select(source, 1, start + stride * int(shown[0]))
            path, scale = camera_path.relative_to(path, first), config.poses_scale
        film = camera_path.to_trajectory(
            path, count, intrinsics, float(pivot), depth_kind=kind, scale=scale or None
        )
    else:
        film = moves.build_trajectory(config.moves, count, intrinsics, float(pivot))
    if own is None and config.mode == "relative":
        return film
    poses = trajectory.relative_poses(film, config.mode, own, config.stabilise, shown)
    return trajectory.with_poses(film, poses)


def render(
    config,
    clip: Clip,
    depth: DepthMap,
    path: Trajectory,
    finer: Callable[[np.ndarray], Iterable[np.ndarray]] | None = None,
) -> Anchor:
    """Splats every frame into its new camera.

    Args:
      config: the `anchor` group.
      clip: source, with its lens.
      depth: of every frame, at the size of the clip.
      path: cameras relative to the source camera of each frame.
      finer: gives the frames of these indices `[N]` one after another at a whole multiple of the clip's size,
        `[k H, k W, 3]` each; asked for those that the path enlarges (`ENLARGED`). None: `resampled`.

    Raises:
      InputError: if nothing of the source is in view in some frame.
    """
    lens = jnp.asarray(clip.intrinsics)
    settings = {
        "taps": config.taps,
        "tau": config.tau,
        "tearing_threshold": tearing_threshold(config, clip.size),
    }

    def splat(pictures, picked):
        return render_anchor(
            jnp.asarray(pictures),
            jnp.asarray(depth.depth[picked]),
            lens if lens.ndim == 2 else lens[picked],
            path.at(picked),
            surfaces=jnp.asarray(depth.surfaces[picked]),
            **settings,
        )

    enlarged = np.flatnonzero(magnification(depth.depth, lens, path) > ENLARGED)
    frames, raw_mask = splat(clip.frames, slice(None))
    if enlarged.size:
        frames, raw_mask = np.array(frames), np.array(raw_mask)
        pictures = finer(enlarged) if finer else resampled(clip, enlarged)
        # One program, however many there are, and one large picture on the device.
        for t, picture in zip(enlarged, pictures, strict=True):
            seen, known = splat(picture[None], np.array([t]))
            frames[t], raw_mask[t] = seen[0], known[0]
    # Traced while the splat runs, for nothing here waits for it yet.
    finished, mask = _finish(frames, raw_mask, config.close // 2, config.erode)
    raw_mask = np.asarray(raw_mask)
    empty = np.flatnonzero(~raw_mask.any(axis=(1, 2)))
    if empty.size:
        raise InputError(
            f"nothing of the source is in view in frame {empty[0]} of {clip.num_frames} along "
            f"{path.name!r}; take a smaller move (config.camera.moves)"
        )
    return Anchor(np.asarray(finished), np.asarray(mask), raw_mask, path)


def tearing_threshold(config, size: tuple[int, int]) -> float | None:
    """`config.anchor.tearing` for frames of (height, width) pixels; None for no filter."""
    return config.tearing * max(1.0, TEARING_SIDE / min(size)) or None


def resampled(clip: Clip, frames: np.ndarray) -> Iterator[np.ndarray]:
    """These frames of a clip, each at `DETAIL` times its size."""
    size = tuple(DETAIL * side for side in clip.size)
    return (resize.resample(clip.frames[t], size) for t in frames)


def magnification(depth: np.ndarray, intrinsics: jax.Array, path: Trajectory) -> np.ndarray:
    """By how much a path enlarges what it shows of each frame: `[T]` float32, the mean over what is in view.

    Points count by the area that they cover in the new view, also where something nearer hides them: a bit too little
    of a subject that grows before a far background.

    Args:
      depth: `[T, H, W]`.
      intrinsics: `[3, 3]` or `[T, 3, 3]` of the source, pixels.
      path: T cameras.
    """
    intrinsics = jnp.broadcast_to(jnp.asarray(intrinsics), (len(depth), 3, 3))
    return np.asarray(
        _magnification(jnp.asarray(depth), intrinsics, path.cameras, path.pivot_depth)
    )


@jax.jit
def _magnification(depth, intrinsics, cameras, pivot_depth):
    depth, cameras = in_own_unit(depth, cameras, pivot_depth)

    def one(view):
        depth, source, camera = view
        valid = jnp.isfinite(depth) & (depth > 0)
        target_from_source = pose.inverse(camera.world_from_camera)
        depth = jnp.where(valid, depth, 1.0)
        u, v, z = displaced(depth, source, camera.intrinsics, target_from_source)
        visible = valid & in_frame(u, v, z, depth.shape)
        nearer = jnp.where(visible, depth / jnp.where(visible, z, 1.0), 0.0)
        nearer = jnp.minimum(nearer, _NEAREST)
        longer = camera.intrinsics[0, 0] / source[0, 0]
        return longer * (nearer**3).sum() / jnp.maximum((nearer**2).sum(), 1e-6)

    return jax.lax.map(one, (depth, intrinsics, cameras))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _finish(frames: jax.Array, raw_mask: jax.Array, close: int, erode: int):
    def one(view):
        frame, mask = masks.close_small_holes(*view, close)
        return masks.fill_holes(frame, mask), masks.erode(mask, erode)

    return jax.lax.map(one, (frames, raw_mask))


def hole_shares(anchor: Anchor) -> list[float]:
    """Share of unknown pixels (raw mask) per frame."""
    return [round(float(s), 4) for s in masks.hole_share(jnp.asarray(anchor.raw_mask))]
