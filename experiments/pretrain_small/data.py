"""Rendered clips on disk: uint8 shards, written once, resumable shard by shard."""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from experiments.kubric4d import controls, rendered, rig
from experiments.pretrain_small.architecture import FPS, HEIGHT, NUM_FRAMES, WIDTH
from recapture_jax.scenes.cameras import motion_strength
from recapture_jax.scenes.clips import clip_batches
from recapture_jax.scenes.scene import PhotoTextures

SHARD = 64  # clips
SEED = 0  # of `render_split`
# Of its clips; 2x2 rays a pixel, so that edges are those of a camera, not of a sampler.
FILM = {"height": HEIGHT, "width": WIDTH, "samples": 2, "frame_rate": float(FPS)}
TRAINING_SPLITS = ("train", "gradual", "photos")


def write_shards(workdir: pathlib.Path, split: str, clips: int, make) -> None:
    """Writes the shards of a split that are not there yet, `clips` clips or a few more.

    make: clip number of a shard's start -> frames `[64, T, H, W, 3]` uint8 and motion `[64]`.
    """
    folder = workdir / "clips" / split
    folder.mkdir(parents=True, exist_ok=True)
    shards = -(-clips // SHARD)
    for index in range(len(list(folder.glob("[0-9]*.npz"))), shards):
        frames, motion = make(index * SHARD)
        temporary = folder / f".{index:05d}.tmp.npz"
        np.savez(temporary, frames=frames, motion=motion)
        os.replace(temporary, folder / f"{index:05d}.npz")
        logging.info("%s: shard %d of %d", split, index + 1, shards)


def render_split(
    workdir: pathlib.Path, split: str, clips: int, textures: PhotoTextures | None = None
) -> None:
    """Renders the first `clips` clips of a split that are not there yet; textures: photographs on surfaces."""

    def make(start: int):
        batches = clip_batches(
            SEED, split, SHARD // 8, start, textures, num_frames=NUM_FRAMES, **FILM
        )
        parts = [jax.device_get(next(batches)) for _ in range(8)]
        frames = np.concatenate([p["frames"] for p in parts])
        motion = np.concatenate([p["motion"] for p in parts])
        return np.round(frames * 255).astype(np.uint8), motion

    write_shards(workdir, split, clips, make)


def render_gradual(
    workdir: pathlib.Path, clips: int, textures: PhotoTextures | None = None
) -> None:
    """Renders `clips` training scenes as the protocol of `experiments.kubric4d` films them.

    Its cameras are farther away and move farther than those of `render_split`. Scenes and moves of its
    validation and test splits share nothing with these.
    """
    intrinsics = jnp.asarray(rig.intrinsics((HEIGHT, WIDTH)), jnp.float32)
    lenses = jnp.broadcast_to(intrinsics, (NUM_FRAMES, 3, 3))

    def film(index: int):
        scene = rendered.make(index, "train", textures=textures)
        control = controls.draw(f"train{index}", 0)
        poses = jnp.asarray(control.poses(), jnp.float32)
        times = rendered.seconds(control.frames())
        frames, _, _ = rendered.film(scene, times, intrinsics, poses, (HEIGHT, WIDTH))
        centre = jnp.asarray(rig.CENTRE, jnp.float32)
        motion = motion_strength(lenses, poses, centre, scene.radius, WIDTH)
        return np.round(np.asarray(frames) * 255).astype(np.uint8), float(motion)

    def make(start: int):
        frames, motion = zip(*(film(i) for i in range(start, start + SHARD)), strict=True)
        return np.stack(frames), np.array(motion, np.float32)

    write_shards(workdir, "gradual", clips, make)


def load_split(workdir: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames `[N, T, H, W, 3]` uint8 and motion `[N]` of all shards on disk."""
    paths = sorted((workdir / "clips" / split).glob("[0-9]*.npz"))
    if not paths:
        raise FileNotFoundError(f"no {split} clips under {workdir}: run --stage=render first")
    shards = [np.load(p) for p in paths]
    return np.concatenate([s["frames"] for s in shards]), np.concatenate(
        [s["motion"] for s in shards]
    )


def training_splits(workdir: pathlib.Path) -> list[str]:
    """The splits to train on: rendered clips, and the others where they were made."""
    folder = workdir / "clips"
    return [s for s in TRAINING_SPLITS if s == "train" or (folder / s).is_dir()]


def load_training(workdir: pathlib.Path) -> np.ndarray:
    """Frames of all training splits."""
    return np.concatenate([load_split(workdir, s)[0] for s in training_splits(workdir)])


class Journal:
    """Appends one JSON line per record: the learning curve."""

    def __init__(self, path: pathlib.Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def write(self, **record) -> None:
        with self._path.open("a") as file:
            file.write(
                json.dumps(
                    {k: float(v) if not isinstance(v, str) else v for k, v in record.items()}
                )
                + "\n"
            )
        logging.info(
            "%s",
            " ".join(
                f"{k} {v:.5g}" if not isinstance(v, str) else f"{k} {v}" for k, v in record.items()
            ),
        )
