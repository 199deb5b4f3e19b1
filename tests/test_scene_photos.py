"""Photographs on the surfaces of scenes: filtering, tiling, what they leave alone, bad folders."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from recapture_jax.errors import InputError
from recapture_jax.scenes import photos
from recapture_jax.scenes.clips import clip_key, render_clip
from recapture_jax.scenes.sampling import sample_scene
from recapture_jax.scenes.scene import NUM_SLOTS, SURROUND

SIDE = 8
TOP = (0.0, 0.0, 1.0)  # of a flat face seen from above
sample = jax.jit(photos.sample)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two photographs: a coloured one of noise, and a grey one; and something else."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(rgb).save(folder / "a.png")
    Image.fromarray(rgb[..., 0]).save(folder / "b.png")
    (folder / "notes.txt").write_text("not a photograph")
    return folder


@pytest.fixture(scope="module")
def textures(folder):
    return photos.load(folder, SIDE)


def at(textures, x, y, footprint, flat=TOP, z=0.0, index=0):
    """Colours `[P, 3]` at points of photographs one metre wide."""
    x, y, z, footprint = np.broadcast_arrays(*(np.float32(v) for v in (x, y, z, footprint)))
    points = [jnp.asarray(c.ravel()) for c in (x, y, z)]
    ones = jnp.ones_like(points[0])
    index = jnp.full(ones.shape, index)
    flat = [ones * f for f in flat]
    rgb, grey = sample(textures, index, ones, points, flat, jnp.asarray(footprint.ravel()))
    return np.stack(rgb, -1), np.asarray(grey)


def test_texels_are_met_exactly_and_a_wide_pixel_sees_their_mean(textures, folder):
    linear = (np.asarray(Image.open(folder / "a.png"), np.float32) / 255) ** 2.2
    centres = (np.arange(SIDE) + 0.5) / SIDE
    x, y = np.meshgrid(centres, centres)
    rgb, grey = at(textures, x, y, 0.0)
    np.testing.assert_allclose(rgb.reshape(SIDE, SIDE, 3), linear, atol=1e-6)
    assert not grey.any()
    pooled = linear.reshape(SIDE // 2, 2, SIDE // 2, 2, 3).mean((1, 3))
    x, y = np.meshgrid(*[(np.arange(SIDE // 2) + 0.5) / (SIDE // 2)] * 2)
    np.testing.assert_allclose(
        at(textures, x, y, 2 / SIDE)[0].reshape(pooled.shape), pooled, atol=1e-6
    )
    wide, _ = at(textures, x, y, 50.0)
    np.testing.assert_allclose(wide, np.broadcast_to(linear.mean((0, 1)), wide.shape), atol=1e-6)


def test_tiles_are_mirrored_without_seams(textures):
    x = np.linspace(0.02, 0.98, 13)
    here, _ = at(textures, x, 0.3, 0.1)
    for other in (-x, 2.0 - x, 2.0 + x):
        np.testing.assert_allclose(at(textures, other, 0.3, 0.1)[0], here, atol=1e-5)
    near = at(textures, np.array([0.999, 1.001]), 0.3, 0.0)[0]
    np.testing.assert_allclose(near[0], near[1], atol=1e-4)


def test_every_face_shows_its_own_two_axes_and_curved_ones_their_longest(textures):
    top, _ = at(textures, 0.2, 0.7, 0.0)
    np.testing.assert_allclose(
        at(textures, 0.2, 9.9, 0.0, (0.0, 1.0, 0.0), z=0.7)[0], top, atol=1e-6
    )
    np.testing.assert_allclose(
        at(textures, 9.9, 0.2, 0.0, (1.0, 0.0, 0.0), z=0.7)[0], top, atol=1e-6
    )
    curved = (0.0, 0.0, 0.0)
    np.testing.assert_allclose(at(textures, 0.2, 0.7, 0.0, curved, z=2.0)[0], top, atol=1e-6)
    np.testing.assert_allclose(at(textures, 3.0, 0.2, 0.0, curved, z=0.7)[0], top, atol=1e-6)


def test_grey_photographs_take_the_colour_of_their_surface(textures):
    rgb, grey = at(textures, 0.4, 0.4, 50.0, index=1)
    assert grey.all()
    np.testing.assert_allclose(rgb, 1.0, atol=1e-5)  # a factor of mean one


def test_pasting_is_deterministic_and_spares_the_dome(textures):
    keys = jax.random.split(jax.random.key(3), 64)
    scenes = jax.jit(jax.vmap(sample_scene))(keys)
    paste = jax.jit(jax.vmap(lambda s, k: photos.paste(s, textures, k).photos.index))
    index = np.asarray(paste(scenes, keys))
    np.testing.assert_array_equal(index, np.asarray(paste(scenes, keys)))
    outdoors = ~np.asarray(scenes.room)
    assert (index[outdoors, SURROUND] == -1).all()
    assert (index[~outdoors, SURROUND] >= 0).any()
    share = (index[:, :NUM_SLOTS] >= 0).mean()
    assert abs(share - photos.SHARE) < 0.05
    assert set(np.unique(index)) == {-1, 0, 1}


def test_only_colours_change(textures):
    key, shape = clip_key(0, "train", 1), {"num_frames": 2, "height": 24, "width": 40}
    plain, with_photos = render_clip(key, **shape), render_clip(key, **shape, textures=textures)
    for name in ("depth", "intrinsics", "world_from_camera", "motion"):
        np.testing.assert_array_equal(plain[name], with_photos[name])
    change = np.abs(np.asarray(plain["frames"]) - np.asarray(with_photos["frames"])).max(-1)
    assert 0.02 < (change > 0.02).mean() < 0.98
    nowhere = dataclasses.replace(sample_scene(key), photos=textures)
    assert (np.asarray(nowhere.photos.index) == -1).all()


@pytest.mark.parametrize(
    ("name", "said"), [("missing", "has no photographs"), ("broken", "cannot be read as an image")]
)
def test_bad_folders_are_refused(tmp_path, name, said):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("text")
    with pytest.raises(InputError, match=said):
        photos.load(tmp_path / name)


def test_the_side_is_a_power_of_two(folder):
    with pytest.raises(InputError, match="power of two"):
        photos.load(folder, 100)
