"""Projection: closed forms, pixel centres, what is behind the camera, gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from recapture_jax.geometry.projection import pixel_centres, project, unproject
from recapture_jax.geometry.safe_math import safe_divide, safe_norm

K = np.array([[50, 0, 8.5], [0, 60, 5], [0, 0, 1]], np.float32)


def test_unproject_matches_loops_with_half_pixel_centres():
    depth = np.random.default_rng(0).uniform(1, 5, (6, 9)).astype(np.float32)
    points = np.asarray(unproject(jnp.asarray(depth), K))
    for i in range(6):
        for j in range(9):
            ray = np.linalg.inv(K.astype(np.float64)) @ [j + 0.5, i + 0.5, 1]
            np.testing.assert_allclose(points[i, j], ray * depth[i, j], rtol=1e-5, atol=1e-6)


def test_project_inverts_unproject():
    depth = jnp.asarray(np.random.default_rng(1).uniform(0.1, 100, (6, 9)), jnp.float32)
    pixels, z = project(unproject(depth, K), K)
    np.testing.assert_allclose(pixels, pixel_centres(6, 9), atol=3e-6)
    np.testing.assert_array_equal(z, depth)


def test_points_behind_the_camera_land_outside_every_image():
    points = jnp.array([[0.0, 0, -1], [0.1, 0.1, 0], [0, 0, 5e-4], [0, 0, 2e-3]])
    pixels, z = project(points, K)
    assert (pixels[:3] < -1e5).all()
    np.testing.assert_allclose(pixels[3], [8.5, 5])
    np.testing.assert_array_equal(z, points[:, 2])
    gradient = jax.grad(lambda p: project(p, K)[0].sum())(points)
    assert np.isfinite(gradient).all() and (gradient[:3] == 0).all()


def test_safe_math_values_and_gradients():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(safe_norm(x), [5, 0])
    np.testing.assert_allclose(
        jax.grad(lambda x: safe_norm(x).sum())(x), [[0.6, 0.8], [0, 0]], rtol=1e-6
    )
    denominator = jnp.array([2.0, 0.0])
    np.testing.assert_allclose(safe_divide(jnp.ones(2), denominator, 7.0), [0.5, 7])
    gradient = jax.grad(lambda d: safe_divide(jnp.ones(2), d).sum())(denominator)
    np.testing.assert_allclose(gradient, [-0.25, 0])
