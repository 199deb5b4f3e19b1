"""Held-out clips filmed along another move: what `--stage=evaluate` compares samples with."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pretrain_small import retakes
from experiments.pretrain_small.architecture import HEIGHT, NUM_FRAMES, WIDTH
from experiments.pretrain_small.data import SEED
from recapture_jax.scenes.cameras import MIN_HEIGHT, motion_strength
from recapture_jax.scenes.clips import clip_key, sample_clip


def test_a_retake_starts_alike_and_moves_as_far_elsewhere(monkeypatch):
    filmed = []
    monkeypatch.setattr(retakes, "_film", lambda _, path: filmed.append(path) or np.zeros(1))
    retakes.retakes("test", 8)
    draw = jax.jit(lambda key: sample_clip(key, NUM_FRAMES, HEIGHT, WIDTH))
    moved = 0
    for i, path in enumerate(filmed):
        scene, clip = draw(clip_key(SEED, "test", i))
        for name in ("intrinsics", "world_from_camera"):
            first, other = getattr(clip, name)[0], getattr(path, name)[0]
            np.testing.assert_allclose(other, first, atol=1e-5 * float(jnp.abs(first).max()))
        if clip.motion == 0:
            np.testing.assert_array_equal(path.world_from_camera, clip.world_from_camera)
            continue
        moved += 1
        assert path.world_from_camera[:, 2, 3].min() >= MIN_HEIGHT
        cameras = path.intrinsics, path.world_from_camera
        strength = motion_strength(*cameras, jnp.asarray(retakes.PIVOT), scene.radius, WIDTH)
        np.testing.assert_allclose(path.motion, strength, rtol=1e-4)
        assert max(strength / clip.motion, clip.motion / strength) < 1.5
        change = path.world_from_camera[-1] - clip.world_from_camera[-1]
        zoom = path.intrinsics[-1, 0, 0] / clip.intrinsics[-1, 0, 0]
        assert jnp.abs(change).max() > 0.02 or abs(zoom - 1) > 0.01
    assert moved >= 4
