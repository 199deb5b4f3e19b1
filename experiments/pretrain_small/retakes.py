"""Held-out clips filmed once more: the same scene from the same first frame, along another move.

A sampler of video is told the first frame and how strong the motion is. Which way the camera goes it
has to guess, so not even a perfect one meets the clip that was filmed: a retake is as far from it as such
a sampler is, or less far, for its objects move as they do in the clip.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pretrain_small.architecture import HEIGHT, NUM_FRAMES, WIDTH
from experiments.pretrain_small.data import FILM, SEED
from recapture_jax.scenes.cameras import (
    MIN_HEIGHT,
    CameraPath,
    motion_strength,
    sample_camera_path,
)
from recapture_jax.scenes.clips import clip_key, render_path, sample_clip
from recapture_jax.scenes.scene import Scene

ALIKE = 1.1  # ratio of the two moves' strengths that is near enough
TRIES = 200  # moves drawn; then the nearest is taken
# Metres, the middle of what cameras look at: where the strength of a retake's move is measured.
PIVOT = (0.0, 0.0, 0.85)


def retakes(split: str, clips: int) -> np.ndarray:
    """Of the first `clips` clips of `data.render_split`: frames `[N, T, H, W, 3]` float32 in [0, 1]."""
    return np.stack([_retake(clip_key(SEED, split, i)) for i in range(clips)])


def _retake(key: jax.Array) -> np.ndarray:
    scene, path = _clip(key)
    moves = jax.random.fold_in(key, 2)  # 0 and 1 made the scene and the path: `split` folds them in
    tries = (another(jax.random.fold_in(moves, i), scene, path) for i in range(TRIES))
    best, nearest = path, np.inf
    while path.motion > 0 and nearest > np.log(ALIKE) and (other := next(tries, None)) is not None:
        apart = float(jnp.abs(jnp.log(other.motion / path.motion)))
        if apart < nearest:
            best, nearest = other, apart
    return np.asarray(_film(scene, best))


_clip = jax.jit(lambda key: sample_clip(key, NUM_FRAMES, HEIGHT, WIDTH))
_film = jax.jit(lambda scene, path: render_path(scene, path, **FILM)["frames"])


@jax.jit
def another(key: jax.Array, scene: Scene, path: CameraPath) -> CameraPath:
    """A move drawn as those of all clips are, made from the first camera of `path` `[T]`."""
    drawn = sample_camera_path(
        key, len(path.intrinsics), HEIGHT, WIDTH, scene.radius, static_share=0.0
    )
    zoom = drawn.intrinsics[:, 0, 0] / drawn.intrinsics[0, 0, 0]
    lens = jnp.repeat(path.intrinsics[:1], len(zoom), axis=0)
    lens = lens.at[:, 0, 0].multiply(zoom).at[:, 1, 1].multiply(zoom)
    start = path.world_from_camera[0] @ jnp.linalg.inv(drawn.world_from_camera[0])
    poses = start[None] @ drawn.world_from_camera
    poses = poses.at[:, 2, 3].max(MIN_HEIGHT)
    strength = motion_strength(lens, poses, jnp.asarray(PIVOT), scene.radius, WIDTH)
    return CameraPath(lens, poses, strength, drawn.move)
