"""The masked losses against plain numpy, and what must not pass through a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax.diffusion import edm
from recapture_jax.tuning.losses import joint_loss, v_loss

SHAPE = (3, 2, 4, 5, 4)  # [B, T, h, w, c]
SIGMA = np.array([0.05, 2.0, 90.0], np.float32)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    f, z, eps = (rng.standard_normal(SHAPE).astype(np.float32) for _ in range(3))
    mask = rng.random(SHAPE[:-1]) < 0.6
    return f, z, eps, mask


def by_loops(f, z, eps, mask, form, normalise):
    total, share = 0.0, 0.0
    for index in np.ndindex(*SHAPE[:-1]):
        s = float(SIGMA[index[0]])
        weight = 1 / (1 + s * s) if form == "eps" else 1.0
        for c in range(SHAPE[-1]):
            z_, eps_, f_ = (float(a[index + (c,)]) for a in (z, eps, f))
            target = (eps_ - s * z_) / np.sqrt(1 + s * s)
            total += float(mask[index]) * weight * (f_ - target) ** 2
            share += float(mask[index])
    return total / (share if normalise == "mask" else np.prod(SHAPE))


@pytest.mark.parametrize("form", ["v", "eps"])
@pytest.mark.parametrize("normalise", ["all", "mask"])
def test_loss_against_loops(arrays, form, normalise):
    f, z, eps, mask = arrays
    got = v_loss(f, z, eps, SIGMA, mask, form=form, normalise=normalise)
    assert got.dtype == jnp.float32 and got.shape == ()
    np.testing.assert_allclose(got, by_loops(f, z, eps, mask, form, normalise), rtol=2e-6)
    # float weights
    soft = np.where(mask, 0.25, 0.0).astype(np.float32)
    got = v_loss(f, z, eps, SIGMA, soft, form=form, normalise=normalise)
    np.testing.assert_allclose(got, by_loops(f, z, eps, soft, form, normalise), rtol=2e-6)


def test_without_a_mask_it_is_the_plain_mean(arrays):
    f, z, eps, _ = arrays
    ones = np.ones(SHAPE[:-1], bool)
    plain = v_loss(f, z, eps, SIGMA)
    np.testing.assert_allclose(plain, by_loops(f, z, eps, ones, "v", "all"), rtol=2e-6)
    for normalise in ("all", "mask"):
        np.testing.assert_allclose(
            v_loss(f, z, eps, SIGMA, ones, normalise=normalise), plain, rtol=1e-6
        )


def test_eps_form_is_the_masked_error_of_the_implied_noise(arrays):
    f, z, eps, mask = arrays
    wide = [a.astype(np.float64) for a in (f, z, eps)]
    with jax.enable_x64(True):
        x = edm.add_noise(wide[1], wide[2], SIGMA)
        implied = np.asarray(edm.noise_from_v(jnp.asarray(wide[0]), x, SIGMA))
    expected = (mask[..., None] * (implied - wide[2]) ** 2).mean()
    np.testing.assert_allclose(v_loss(f, z, eps, SIGMA, mask, form="eps"), expected, rtol=2e-6)


def test_ratio_of_the_forms_is_one_plus_sigma_squared(arrays):
    f, z, eps, mask = arrays
    for sigma in (0.05, 1.0, 30.0):
        v = v_loss(f, z, eps, sigma, mask)
        literal = v_loss(f, z, eps, sigma, mask, form="eps")
        np.testing.assert_allclose(v / literal, 1 + sigma**2, rtol=1e-6)


@pytest.mark.parametrize("normalise", ["all", "mask"])
def test_gradient_is_exactly_zero_where_masked_and_right_elsewhere(arrays, normalise):
    f, z, eps, mask = arrays
    gradient = np.asarray(jax.grad(v_loss)(f, z, eps, SIGMA, mask, normalise=normalise))
    assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).all()
    target = np.asarray(edm.v_target(z, eps, SIGMA))
    share = mask.sum() * SHAPE[-1] if normalise == "mask" else np.prod(SHAPE)
    expected = 2 * mask[..., None] * (f - target) / share
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("where", ["prediction", "latents", "noise"])
def test_nothing_bad_leaks_from_behind_the_mask(arrays, bad, where):
    f, z, eps, mask = arrays
    clean = jax.value_and_grad(v_loss)(f, z, eps, SIGMA, mask)
    dirty = {"prediction": f.copy(), "latents": z.copy(), "noise": eps.copy()}
    dirty[where][~mask] = bad
    value, gradient = jax.value_and_grad(v_loss)(*dirty.values(), SIGMA, mask)
    assert value == clean[0]
    np.testing.assert_array_equal(gradient, clean[1])


def test_bad_latents_behind_the_mask_do_not_reach_parameters(arrays):
    # through a per-pixel network, as a stand-in for what comes before the loss
    f, z, eps, mask = arrays
    hidden = z.copy()
    hidden[~mask] = np.nan

    def loss(scale, target):
        return v_loss(scale * f, target, eps, SIGMA, mask, normalise="mask")

    assert jax.grad(loss)(2.0, hidden) == jax.grad(loss)(2.0, z)
    # a known NaN must show, not be swept away
    hidden[mask] = np.nan
    assert np.isnan(loss(2.0, hidden))


@pytest.mark.parametrize("normalise", ["all", "mask"])
def test_an_empty_mask_gives_zero_loss_and_zero_gradient(arrays, normalise):
    f, z, eps, mask = arrays
    value, gradient = jax.value_and_grad(v_loss)(
        f, z, eps, SIGMA, np.zeros_like(mask), normalise=normalise
    )
    assert value == 0 and (np.asarray(gradient) == 0).all()


def test_half_precision_prediction_is_compared_in_float32(arrays):
    f, z, eps, mask = arrays
    half = jnp.asarray(f, jnp.bfloat16)
    got = v_loss(half, z, eps, SIGMA, mask)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(
        got, by_loops(np.asarray(half, np.float32), z, eps, mask, "v", "all"), rtol=2e-6
    )


def test_shapes_and_options_are_checked(arrays):
    f, z, eps, mask = arrays
    with pytest.raises(ValueError, match="shapes must agree"):
        v_loss(f, z[:1], eps, SIGMA)
    with pytest.raises(ValueError, match="mask of shape"):
        v_loss(f, z, eps, SIGMA, mask[..., None])
    with pytest.raises(ValueError, match="normalise 'sum'"):
        v_loss(f, z, eps, SIGMA, mask, normalise="sum")
    with pytest.raises(ValueError, match="form 'x0'"):
        v_loss(f, z, eps, SIGMA, mask, form="x0")


def test_joint_loss_weights_each_part_and_its_gradient():
    assert joint_loss(2.0, 3.0) == 5.0
    assert joint_loss(2.0, 3.0, temporal_weight=0.5, spatial_weight=10.0) == 31.0
    gradient = jax.grad(lambda t, s: joint_loss(t, s, temporal_weight=0.5), argnums=(0, 1))(
        2.0, 3.0
    )
    assert gradient == (0.5, 1.0)
