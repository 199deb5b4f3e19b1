"""Rendered views for the oracle: a source frame with exact depth, and the exact novel view."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax.camera.moves import build_trajectory
from recapture_jax.camera.pinhole import resize_intrinsics
from recapture_jax.camera.trajectory import Trajectory, pivot_depth_from_depth
from recapture_jax.scenes.cameras import sample_camera_path
from recapture_jax.scenes.clips import clip_key
from recapture_jax.scenes.render import render_frame
from recapture_jax.scenes.sampling import sample_scene

TIME = 0.7  # seconds into the scene
SAMPLES = 2  # 2 x 2 rays per pixel


@dataclasses.dataclass(frozen=True)
class Source:
    """A frame of a random scene.

    Attributes:
        scene: for `scenes.render`.
        colors: `[H, W, 3]` float32 in [0, 1].
        depth: `[H, W]` exact plane depth of the pixel centres, metres.
        intrinsics: `[3, 3]` pixels.
        world_from_camera: `[4, 4]`.
    """

    scene: object
    colors: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray
    world_from_camera: np.ndarray

    def trajectory(self, sentence: str) -> Trajectory:
        """One camera, where the moves of the sentence end."""
        pivot = pivot_depth_from_depth(self.depth)
        path = build_trajectory(sentence, 2, self.intrinsics, pivot)
        return path.at(slice(1, None))

    def finer(self, detail: int) -> np.ndarray:
        """`[detail H, detail W, 3]`: the source camera's own picture with more pixels."""
        size = tuple(detail * side for side in self.depth.shape)
        intrinsics = resize_intrinsics(jnp.asarray(self.intrinsics), self.depth.shape, size)
        colors, _ = _render(self.scene, TIME, intrinsics, self.world_from_camera, *size)
        return np.asarray(colors)

    def truth(self, path: Trajectory) -> np.ndarray:
        """`[H, W, 3]`: what that camera sees of the scene."""
        world_from_target = self.world_from_camera @ np.asarray(path.cameras.world_from_camera[0])
        intrinsics = path.cameras.intrinsics[0]
        colors, _ = _render(self.scene, TIME, intrinsics, world_from_target, *self.depth.shape)
        return np.asarray(colors)


def source(seed: int, index: int, height: int, width: int) -> Source:
    """Test scene number `index`, seen by its source camera."""
    scene_key, path_key = jax.random.split(clip_key(seed, "test", index))
    scene, camera = _sample(scene_key, path_key, height, width)
    colors, depth = _render(scene, TIME, *camera, height, width)
    return Source(scene, *(np.asarray(x) for x in (colors, depth, *camera)))


@functools.partial(jax.jit, static_argnames=("height", "width"))
def _sample(scene_key, path_key, height, width):
    scene = sample_scene(scene_key)
    path = sample_camera_path(path_key, 2, height, width, scene.radius, static_share=1.0)
    return scene, (path.intrinsics[0], path.world_from_camera[0])


@functools.partial(jax.jit, static_argnames=("height", "width"))
def _render(scene, time, intrinsics, world_from_camera, height, width):
    return render_frame(scene, time, intrinsics, world_from_camera, height, width, SAMPLES)
