"""Masks against scipy-free loops; what may never be eroded; the tearing rule."""

import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax.camera import pose
from recapture_jax.camera.pinhole import intrinsics_from_fov
from recapture_jax.errors import InputError
from recapture_jax.geometry.masks import (
    close_small_holes,
    erode,
    hole_share,
    mean_pool,
    min_pool,
    tearing_mask,
    torn_in_view,
)


def test_erode_matches_loops_and_spares_the_border():
    mask = np.random.default_rng(0).uniform(size=(2, 9, 12)) > 0.1
    for radius in (0, 1, 2):
        expected = np.zeros_like(mask)
        for t, i, j in np.ndindex(mask.shape):
            rows = slice(max(i - radius, 0), i + radius + 1)
            columns = slice(max(j - radius, 0), j + radius + 1)
            expected[t, i, j] = mask[t, rows, columns].all()
        np.testing.assert_array_equal(erode(jnp.asarray(mask), radius), expected)
    assert erode(jnp.ones((2, 9, 12), bool), 2).all()


def test_close_small_holes_fills_thin_holes_with_neighbour_colour():
    mask = np.ones((12, 16), bool)
    mask[:, 5] = mask[3:5, 10:12] = False  # one column; a 2x2 hole
    mask[:, 0] = False  # at the border
    frame = np.full((12, 16, 3), 0.25, np.float32) * mask[..., None]
    filled, closed = close_small_holes(jnp.asarray(frame), jnp.asarray(mask))
    assert closed.all()
    np.testing.assert_allclose(filled, 0.25, rtol=1e-6)


def test_close_small_holes_leaves_wide_holes_and_known_pixels_alone():
    rng = np.random.default_rng(1)
    mask = np.ones((14, 14), bool)
    mask[4:8, 4:9] = False
    frame = rng.uniform(size=(14, 14, 2)).astype(np.float32) * mask[..., None]
    filled, closed = close_small_holes(jnp.asarray(frame), jnp.asarray(mask))
    np.testing.assert_array_equal(closed, mask)
    np.testing.assert_array_equal(filled, frame)


def test_min_pool_is_known_only_where_every_pixel_is():
    mask = np.ones((3, 16, 24), bool)
    mask[1, 9, 23] = False
    expected = np.ones((3, 2, 3), bool)
    expected[1, 1, 2] = False
    np.testing.assert_array_equal(min_pool(jnp.asarray(mask), 8), expected)
    with pytest.raises(InputError, match="8x8"):
        min_pool(jnp.ones((3, 17, 24), bool), 8)


def test_mean_pool_is_the_known_share_of_each_latent():
    mask = np.random.default_rng(1).uniform(size=(3, 16, 24)) > 0.3
    expected = [
        [[m[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].mean() for j in range(3)] for i in range(2)]
        for m in mask
    ]
    np.testing.assert_allclose(mean_pool(jnp.asarray(mask), 8), expected, rtol=1e-6)


def test_hole_share():
    mask = np.ones((2, 4, 5), bool)
    mask[1, :2] = False
    np.testing.assert_allclose(hole_share(jnp.asarray(mask)), [0, 0.5], atol=1e-7)


def test_tearing_mask_matches_loops():
    depth = np.random.default_rng(2).uniform(1.0, 1.08, (8, 11)).astype(np.float32)
    expected = np.zeros(depth.shape, bool)
    for i, j in np.ndindex(depth.shape):
        window = depth[max(i - 2, 0) : i + 3, max(j - 2, 0) : j + 3].astype(np.float64)
        expected[i, j] = (window.max() - window.min()) / window.mean() > 0.07
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(tearing_mask(jnp.asarray(depth), 0.07), expected)


def test_tearing_mask_ignores_invalid_depth():
    depth = jnp.ones((8, 8)).at[4, 4].set(100.0)
    assert tearing_mask(depth).any()
    assert not tearing_mask(depth, valid=depth < 50).any()


@pytest.fixture(scope="module")
def step():
    """Two planes that meet in a vertical step at column 20; 64 px focal length."""
    depth = jnp.where(jnp.arange(40) < 20, 2.0, 4.0)
    return jnp.broadcast_to(depth[None], (24, 40)), intrinsics_from_fov(21.24, 24, 40)


def test_torn_points_stay_without_parallax(step):
    depth, k = step
    assert tearing_mask(depth).any()
    zoomed = k.at[:2, :2].multiply(1.8)
    for turn in (jnp.eye(4), pose.rotation_y(0.2), pose.rotation_x(-0.1), pose.rotation_z(0.3)):
        assert not torn_in_view(depth, k, zoomed, turn).any()


def test_torn_points_go_where_parallax_tears_them(step):
    depth, k = step

    def move(x):
        return pose.translation(jnp.array([x, 0.0, 0.0]))

    focal = float(k[0, 0])
    # A sideways move b shifts the layers apart by f b (1/2 - 1/4) pixels.
    below, above = 0.9 / (0.25 * focal), 1.1 / (0.25 * focal)
    assert not torn_in_view(depth, k, k, move(below)).any()
    torn = np.asarray(torn_in_view(depth, k, k, move(above)))
    np.testing.assert_array_equal(torn, np.asarray(tearing_mask(depth)))
    assert torn[:, 18:22].all() and torn.sum() == 24 * 4
    through = pose.translation(jnp.array([0.0, 0.0, 3.0]))  # past the near plane
    assert torn_in_view(depth, k, k, through)[:, 18:22].all()
