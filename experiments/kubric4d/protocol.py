"""What one evaluation compares: a source clip, a move, the true target clip, the occluded pixels."""

import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kubric4d import layout, pointcloud, rendered, rig
from experiments.kubric4d.controls import Control
from recapture_jax.camera.pinhole import Camera
from recapture_jax.camera.trajectory import Trajectory, pivot_depth_from_depth
from recapture_jax.errors import InputError
from recapture_jax.evaluation.images import frame_scores
from recapture_jax.evaluation.occlusion import occluded
from recapture_jax.evaluation.perceptual import Lpips
from recapture_jax.evaluation.temporal import temporal_flickering, warp_error
from recapture_jax.scenes.scene import PhotoTextures
from recapture_jax.video import resize

SIZES = {"tiny": (64, 96), "small": (96, 144), "full": (256, 384)}
"""(height, width) in pixels; the published protocol is 'full', the small prior knows 'small'."""


@dataclass(frozen=True)
class Sample:
    """A source clip and the truth of its re-filming.

    Attributes:
        name: scene and sample.
        source: `[T, H, W, 3]` float32 in [0, 1].
        depth: `[T, H, W]` float32 plane depth of the source, metres.
        intrinsics: `[3, 3]` float32 pixels, of source and target.
        source_from_target: `[T, 4, 4]` float32.
        truth: `[T, H, W, 3]` float32, what the moving camera sees.
        occluded: `[T, H, W]` bool, target pixels the source camera does not see.
        kind: how the truth was made: 'exact', 'splat' (GCD's, quirks included) or 'splat, clean'.
        flow: `[T-1, H, W, 2]` pixels, where every point of the truth is in the next frame; seen:
            `[T-1, H, W]` bool, whether it is seen there. None where the truth is a splat.
    """

    name: str
    source: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    source_from_target: np.ndarray
    truth: np.ndarray
    occluded: np.ndarray
    kind: str
    flow: np.ndarray | None = None
    seen: np.ndarray | None = None

    def trajectory(self) -> Trajectory:
        """The target cameras relative to the source, for the anchor stage."""
        matrix = np.tile(self.intrinsics, (len(self.source), 1, 1))
        cameras = Camera(jnp.asarray(matrix), jnp.asarray(self.source_from_target))
        pivot = float(pivot_depth_from_depth(jnp.asarray(self.depth[0])))
        return Trajectory(cameras, pivot, self.name)


def rendered_sample(
    index: int,
    control: Control,
    size: tuple[int, int],
    split: str = "test",
    seed: int = 0,
    textures: PhotoTextures | None = None,
) -> Sample:
    """A scene of our renderer: exact truth, occlusion by exact depth; the rest as of `rendered.make`."""
    scene = rendered.make(index, split, seed, textures)
    matrix = jnp.asarray(rig.intrinsics(size), jnp.float32)
    frames = control.frames()
    target = control.poses(len(frames))
    start = np.tile(rig.poses(np.array(control.spherical_start)), (len(frames), 1, 1))
    times, views = rendered.seconds(frames), []
    for poses in (start, target):
        poses = jnp.asarray(poses, jnp.float32)
        views.append(rendered.film(scene, times, matrix, poses, size))
    (source, depth, _), (truth, target_depth, labels) = views
    flow = rendered.exact_flow(scene, times, target_depth, labels, matrix, poses)
    relative = (np.linalg.inv(start) @ target).astype(np.float32)
    hidden = occluded(target_depth, matrix, depth, matrix, jnp.asarray(relative))
    found = (source, depth, truth, hidden, flow)
    source, depth, truth, hidden, flow = jax.device_get(found)
    name, matrix = f"scn{index:05d}", np.asarray(matrix)
    return Sample(name, source, depth, matrix, relative, truth, hidden, "exact", *flow)


def recorded_sample(
    root: pathlib.Path,
    scene: str,
    control: Control,
    size: tuple[int, int],
    *,
    views: Sequence[int] = range(len(rig.VIEWS)),
    faithful: bool = True,
    render_size: tuple[int, int] = pointcloud.RENDER_SIZE,
) -> Sample:
    """A scene in Kubric-4D's layout: source and truth splatted from the points of all views.

    As in the published evaluation the source clip is the rendering at the source pose, not the
    recorded one. Its depth is the recorded one, which no published baseline is given.

    Args:
        views: cameras to merge, the source among them.
        faithful: see `pointcloud`; False only for data of our own.
        render_size: (height, width) of the splat, before it is reduced to `size`.

    Raises:
        InputError: as `layout.read_view`, or the move starts elsewhere than at the source camera.
    """
    if not np.allclose(control.spherical_start, rig.SOURCE, atol=0.05):
        raise InputError(
            f"{scene}: the move starts at {tuple(control.spherical_start)}, depth was recorded at {rig.SOURCE} "
            "(azimuth, elevation, radius): expected a move that starts there"
        )
    picked = control.frames()
    read = {v: layout.read_view(root, scene, v, picked) for v in views}
    recorded = read[rig.SOURCE_VIEW]
    matrix = rig.intrinsics(render_size)
    target = control.poses(len(picked))
    start = rig.poses(np.array(control.spherical_start))
    clouds = list(read.values())
    rest = (size, faithful, render_size)
    frames = range(len(picked))
    source = [pointcloud.rendering(clouds, t, matrix, start, *rest) for t in frames]
    truth = [pointcloud.rendering(clouds, t, matrix, target[t], *rest) for t in frames]
    hidden = [pointcloud.occlusion(recorded, t, matrix, target[t], *rest) for t in frames]
    plane = layout.plane_depth(recorded.distance, recorded.intrinsics)
    fit = resize.cover(recorded.size, size)
    return Sample(
        scene,
        np.stack(source),
        resize.resize_depth(plane, fit).astype(np.float32),
        rig.intrinsics(size).astype(np.float32),
        (np.linalg.inv(start) @ target).astype(np.float32),
        np.stack(truth),
        np.stack(hidden),
        "splat" if faithful else "splat, clean",
    )


def judge(sample: Sample, lpips: Sequence[Lpips] = ()) -> Callable[[np.ndarray], dict]:
    """From a clip `[T, H, W, 3]` in [0, 1], as large as the sample's, to what a record says of it.

    "scores" of every frame, "flicker" and, where the truth's flow is known, "warp".

    Args:
        sample: with the truth.
        lpips: perceptual distances to take.
    """
    distances = [distance.against(sample.truth, sample.occluded) for distance in lpips]

    def measures(frames: np.ndarray) -> dict:
        scores = frame_scores(frames, sample.truth, sample.occluded)
        for distance in distances:
            scores |= distance(frames)
        found = {"scores": scores, "flicker": temporal_flickering(frames)}
        if sample.flow is not None:
            found["warp"] = warp_error(frames, sample.flow, sample.seen)
        return found

    return measures
