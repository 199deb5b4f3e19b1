"""Clips of random dynamic scenes, batches of them, and source/target pairs for evaluation."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from recapture_jax.errors import InputError
from recapture_jax.scenes import photos
from recapture_jax.scenes.cameras import CameraPath, sample_camera_path
from recapture_jax.scenes.render import render_frame
from recapture_jax.scenes.sampling import sample_scene
from recapture_jax.scenes.scene import PhotoTextures, Scene

FRAME_RATE = 8.0  # frames per second of scene time
_SPLITS = {"train": 1, "validation": 2, "test": 3}


def render_path(
    scene: Scene, path: CameraPath, height=96, width=160, samples=1, frame_rate=FRAME_RATE
):
    """Films `scene` from time 0 along `path` ([T] cameras).

    Returns a dict: frames [T, H, W, 3] in [0, 1], depth [T, H, W] plane metres, intrinsics
    [T, 3, 3], world_from_camera [T, 4, 4], motion (the path's strength, in image widths).
    """
    times = jnp.arange(path.intrinsics.shape[0]) / frame_rate

    def one(args):
        time, intrinsics, pose = args
        return render_frame(scene, time, intrinsics, pose, height, width, samples)

    # one frame at a time: the working set stays in the cache, and disabled slots cost nothing
    frames, depth = lax.map(one, (times, path.intrinsics, path.world_from_camera))
    return {
        "frames": frames,
        "depth": depth,
        "intrinsics": path.intrinsics,
        "world_from_camera": path.world_from_camera,
        "motion": path.motion,
    }


_STATIC = ("num_frames", "height", "width", "samples", "frame_rate")


@partial(jax.jit, static_argnames=_STATIC)
def render_clip(
    key,
    num_frames=14,
    height=96,
    width=160,
    samples=1,
    frame_rate=FRAME_RATE,
    static_share=0.25,
    textures: PhotoTextures | None = None,
):
    """A random scene filmed along a random path; see `render_path` for the result.

    textures: photographs for some of its surfaces (`photos.load`); all else stays as without them.
    """
    scene, path = sample_clip(key, num_frames, height, width, static_share, textures)
    return render_path(scene, path, height, width, samples, frame_rate)


def sample_clip(
    key, num_frames=14, height=96, width=160, static_share=0.25, textures=None
) -> tuple[Scene, CameraPath]:
    """The scene and the path of `render_clip`."""
    scene_key, path_key = jax.random.split(key)
    scene = photographed(sample_scene(scene_key), textures, scene_key)
    path = sample_camera_path(
        path_key, num_frames, height, width, scene.radius, static_share=static_share
    )
    return scene, path


def photographed(scene: Scene, textures: PhotoTextures | None, key) -> Scene:
    """The scene drawn from `key`, with photographs on some of its surfaces where there are any."""
    return scene if textures is None else photos.paste(scene, textures, jax.random.fold_in(key, 1))


@partial(jax.jit, static_argnames=_STATIC)
def paired_clip(key, num_frames=14, height=96, width=160, samples=2, frame_rate=FRAME_RATE):
    """The same dynamic scene from a static source camera and a target camera that moves from it.

    Returns {"source": ..., "target": ...}, each as `render_path` returns; both cameras and both
    first frames are the same.
    """
    scene_key, path_key = jax.random.split(key)
    scene = sample_scene(scene_key)
    target = sample_camera_path(path_key, num_frames, height, width, scene.radius, static_share=0.0)
    source = CameraPath(
        jnp.broadcast_to(target.intrinsics[:1], target.intrinsics.shape),
        jnp.broadcast_to(target.world_from_camera[:1], target.world_from_camera.shape),
        jnp.zeros(()),
        jnp.zeros((), jnp.int32),
    )
    render = partial(render_path, scene, height=height, width=width, samples=samples)
    return {
        "source": render(source, frame_rate=frame_rate),
        "target": render(target, frame_rate=frame_rate),
    }


def clip_key(seed: int, split: str, index: int):
    """The key of clip number `index` of a split; no two (split, index) of one seed share a key.

    Raises:
        InputError: if `split` is not train, validation or test.
    """
    if split not in _SPLITS:
        raise InputError(f"unknown split {split!r}: expected one of {', '.join(_SPLITS)}")
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _SPLITS[split]), index)


@partial(jax.jit, static_argnames=_STATIC)
def render_clips(keys, textures: PhotoTextures | None = None, **shape):
    """`render_clip` for a [B] array of keys, one compilation; results gain a leading B."""
    return lax.map(partial(render_clip, textures=textures, **shape), keys)


def clip_batches(
    seed: int,
    split: str,
    batch: int,
    start: int = 0,
    textures: PhotoTextures | None = None,
    **shape,
) -> Iterator[dict]:
    """Endless batches of clips of a split, in order from clip number `start`.

    textures, shape (num_frames, height, width, samples, frame_rate): as of `render_clip`.

    Yields dicts as `render_path` returns them, with a leading `batch` axis, and "index" [batch].
    """
    clip_key(seed, split, 0)  # refuse a bad split now, not at the first batch

    def generate():
        first = start
        while True:
            index = np.arange(first, first + batch)
            keys = jnp.stack([clip_key(seed, split, int(i)) for i in index])
            yield render_clips(keys, textures, **shape) | {"index": index}
            first += batch

    return generate()
