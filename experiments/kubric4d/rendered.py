"""Scenes of our own renderer under Kubric-4D's cameras, in memory or in its layout on disk.

Objects, ground and dome are those of `recapture_jax.scenes`, without the backdrop and the halls, which
the cameras at 15 metres would stand in. Depth and target views are exact.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kubric4d import layout, rig
from recapture_jax.camera.pose import inverse
from recapture_jax.evaluation.occlusion import in_view
from recapture_jax.scenes.clips import clip_key, photographed
from recapture_jax.scenes.render import render_frame_index
from recapture_jax.scenes.sampling import sample_scene
from recapture_jax.scenes.scene import (
    BACKDROP,
    NUM_SLOTS,
    PhotoTextures,
    Scene,
    object_poses,
)

SAMPLES = 2  # 2 x 2 rays a pixel
GENERATOR = "recapture_jax.scenes"


@jax.jit
def _sample(key, textures: PhotoTextures | None) -> Scene:
    scene = photographed(sample_scene(key), textures, key)
    open_air = scene.enabled & ~jnp.asarray(BACKDROP)
    return dataclasses.replace(scene, enabled=open_air, room=jnp.zeros((), bool))


def make(
    index: int, split: str = "test", seed: int = 0, textures: PhotoTextures | None = None
) -> Scene:
    """Scene number `index` of a split; splits share nothing with each other or with training.

    textures: photographs for some of its surfaces (`recapture_jax.scenes.photos.load`).

    Raises:
        InputError: an unknown split.
    """
    return _sample(clip_key(seed, split, index), textures)


@functools.partial(jax.jit, static_argnames=("size", "samples"))
def film(scene: Scene, times, intrinsics, world_from_camera, size, samples: int = SAMPLES):
    """Films a scene.

    Args:
        times: `[T]` seconds.
        intrinsics: `[3, 3]` pixels; world_from_camera: `[T, 4, 4]`.
        size: static (height, width); samples: static, rays a pixel along each side.

    Returns:
        frames `[T, H, W, 3]` in [0, 1]; plane depth `[T, H, W]` metres of the pixel centres; what
        they see `[T, H, W]` uint8: 0 the surroundings, k object number k.
    """

    def one(args):
        time, pose = args
        return render_frame_index(scene, time, intrinsics, pose, *size, samples)

    frames, depth, index = jax.lax.map(one, (times, world_from_camera))
    return frames, depth, jnp.where(index < NUM_SLOTS, index + 1, 0).astype(jnp.uint8)


def seconds(frames: np.ndarray) -> np.ndarray:
    """Scene time of recorded frames."""
    return np.asarray(frames, np.float32) / rig.FRAME_RATE


def record(scene: Scene, view: int, frames: np.ndarray, size: tuple[int, int]) -> layout.View:
    """Frames of one of the sixteen cameras, as they would be read from disk."""
    intrinsics = rig.intrinsics(size)
    pose = np.tile(rig.poses(np.array(rig.VIEWS[view])), (len(frames), 1, 1))
    cameras = jnp.asarray(intrinsics, jnp.float32), jnp.asarray(pose, jnp.float32)
    rgb, depth, labels = jax.device_get(film(scene, seconds(frames), *cameras, tuple(size)))
    return layout.View(
        np.round(rgb * 255).astype(np.uint8),
        (depth * layout.ray_lengths(size, intrinsics)).astype(np.float32),
        intrinsics,
        pose,
        labels,
    )


def write(
    root: pathlib.Path,
    indices: Sequence[int],
    *,
    split: str = "test",
    seed: int = 0,
    num_frames: int = rig.RECORDED_FRAMES,
    size: tuple[int, int] = rig.RECORDED_SIZE,
    views: Sequence[int] = range(len(rig.VIEWS)),
) -> list[str]:
    """Writes scenes `scn<index>` in Kubric-4D's layout; views that are finished stay as they are.

    The metadata says under "generator" that these are not Kubric's.

    Returns:
        Names of the scenes.
    """
    names = []
    frames = np.arange(num_frames)
    for index in indices:
        names.append(name := f"scn{index:05d}")
        scene = None
        for view in views:
            if (root / name / f"{name}_p0_v{view}.json").exists():
                continue
            scene = make(index, split, seed) if scene is None else scene
            notes = {"generator": GENERATOR, "split": split, "random_seed": seed}
            layout.write_view(root, name, view, record(scene, view, frames, size), notes)
    return names


@jax.jit
def exact_flow(scene: Scene, times, depth, labels, intrinsics, world_from_camera):
    """Where every pixel's surface point goes until the next frame, and whether it is seen there.

    Args:
        times: `[T]` seconds; depth, labels: as `film` returns them.
        intrinsics: `[3, 3]` pixels; world_from_camera: `[T, 4, 4]`.

    Returns:
        flow `[T-1, H, W, 2]` pixels (right, down), and seen `[T-1, H, W]` bool.
    """
    height, width = depth.shape[1:]
    u, v = jnp.meshgrid(jnp.arange(width) + 0.5, jnp.arange(height) + 0.5)
    pixel = jnp.stack([u, v], axis=-1)
    centre = intrinsics[:2, 2].reshape(1, 1, 2)
    focal = jnp.stack([intrinsics[0, 0], intrinsics[1, 1]]).reshape(1, 1, 2)
    still = jnp.eye(3)[None], jnp.zeros((1, 3))

    def poses(time):
        """Rotation and position of the surroundings and then of every slot."""
        return [
            jnp.concatenate(pair) for pair in zip(still, object_poses(scene, time), strict=True)
        ]

    def one(args):
        time, then, z, index, here, there, next_depth = args
        rays = jnp.concatenate([(pixel - centre) / focal, jnp.ones_like(z)[..., None]], axis=-1)
        world = (z[..., None] * rays) @ here[:3, :3].T + here[:3, 3].reshape(1, 1, 3)
        (turn, place), (next_turn, next_place) = poses(time), poses(then)
        move = next_turn @ jnp.swapaxes(turn, -1, -2)
        offset = next_place - jnp.einsum("nij,nj->ni", move, place)
        index = index.astype(jnp.int32)
        moved = jnp.einsum("hwij,hwj->hwi", move[index], world) + offset[index]
        camera = inverse(there)
        seen = moved @ camera[:3, :3].T + camera[:3, 3].reshape(1, 1, 3)
        arrived = seen[..., :2] / seen[..., 2:] * focal + centre
        return arrived - pixel, in_view(arrived, seen[..., 2], next_depth)

    pairs = (times[:-1], times[1:], depth[:-1], labels[:-1])
    return jax.lax.map(one, (*pairs, world_from_camera[:-1], world_from_camera[1:], depth[1:]))
