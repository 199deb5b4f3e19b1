"""EDM identities in float64, coefficients against plain formulas, sigma distribution, schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax.diffusion import edm
from recapture_jax.diffusion.karras import karras_sigmas, karras_tail
from recapture_jax.errors import InputError

SHAPE = (6, 2, 3, 4, 2)  # [B, T, h, w, c]
LEVELS = np.array([0.002, 0.05, 0.7, 2.0, 28.0, 700.0])  # one per clip


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def draw(seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for _ in range(3)]  # z, eps, F


def test_identities_hold_elementwise_in_float64(x64):
    z, eps, v = map(jnp.asarray, draw())
    s = jnp.asarray(LEVELS)
    column = s.reshape(-1, 1, 1, 1, 1)
    x = edm.add_noise(z, eps, s)
    v_error = (v - edm.v_target(z, eps, s)) ** 2
    z_error = (edm.denoised_from_v(v, x, s) - z) ** 2
    eps_error = (edm.noise_from_v(v, x, s) - eps) ** 2
    assert v_error.dtype == jnp.float64
    # What is left is the rounding of x at sigma 700 and of |D - z| at sigma 0.002.
    np.testing.assert_allclose(
        z_error, column**2 / (1 + column**2) * v_error, rtol=1e-9, atol=1e-18
    )
    np.testing.assert_allclose(eps_error, v_error / (1 + column**2), rtol=1e-9, atol=1e-18)
    weighted = (1 + column**2) / column**2 * z_error
    np.testing.assert_allclose(weighted, v_error, rtol=1e-9, atol=1e-12)


def test_target_is_what_makes_the_denoiser_exact(x64):
    z, eps, _ = map(jnp.asarray, draw())
    s = jnp.asarray(LEVELS)
    x, target = edm.add_noise(z, eps, s), edm.v_target(z, eps, s)
    np.testing.assert_allclose(edm.denoised_from_v(target, x, s), z, rtol=0, atol=1e-12)
    np.testing.assert_allclose(edm.noise_from_v(target, x, s), eps, rtol=0, atol=1e-12)


def test_coefficients_in_float32_against_float64_formulas():
    s = np.geomspace(0.002, 700, 50).astype(np.float32)
    wide = s.astype(np.float64)
    for got, expected in [
        (edm.c_skip(s), 1 / (wide**2 + 1)),
        (edm.c_out(s), -wide / np.sqrt(wide**2 + 1)),
        (edm.c_in(s), 1 / np.sqrt(wide**2 + 1)),
        (edm.c_noise(s), 0.25 * np.log(wide)),
    ]:
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=4e-7, atol=2e-8)
    # unit variance in and out, for data of unit variance
    np.testing.assert_allclose(edm.c_in(s) ** 2 * (1 + s**2), np.ones(50), rtol=1e-6)
    np.testing.assert_allclose(edm.c_skip(s) + edm.c_out(s) ** 2, np.ones(50), rtol=1e-6)


def test_half_precision_sigma_is_widened_before_any_maths():
    s = jnp.asarray(300.0, jnp.float16)  # its square overflows float16
    assert edm.c_in(s).dtype == jnp.float32
    np.testing.assert_allclose(edm.c_in(s), 1 / np.sqrt(300.0**2 + 1), rtol=1e-6)
    z = jnp.ones(SHAPE, jnp.bfloat16)
    assert edm.add_noise(z, z, 1.0).dtype == jnp.float32
    assert edm.v_target(z, z, s).dtype == jnp.float32


@pytest.mark.parametrize("per_clip", [False, True])
def test_precondition_scales_input_embeds_level_and_combines(per_clip):
    z, eps, _ = draw(1)
    s = LEVELS.astype(np.float32) if per_clip else np.float32(3.0)
    column = np.broadcast_to(np.reshape(np.float64(s), (-1, 1, 1, 1, 1)), SHAPE)
    x = (z + column * eps).astype(np.float32)
    seen = {}

    def network(x_in, t, cond):
        seen.update(x_in=x_in, t=t, cond=cond)
        return (jnp.sin(x_in) + t.reshape(-1, 1, 1, 1, 1)).astype(jnp.bfloat16)

    got = edm.precondition(network)(jnp.asarray(x), s, "anything")
    x_in = x / np.sqrt(column**2 + 1)
    np.testing.assert_allclose(seen["x_in"], x_in, rtol=1e-6, atol=1e-7)
    t = 0.25 * np.log(np.broadcast_to(s, SHAPE[0]))
    np.testing.assert_allclose(seen["t"], t, rtol=1e-6)
    assert seen["cond"] == "anything" and seen["t"].shape == (SHAPE[0],)
    f = np.asarray(network(seen["x_in"], seen["t"], None), np.float64)
    expected = x / (column**2 + 1) - column / np.sqrt(column**2 + 1) * f
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)


def test_loss_weights():
    np.testing.assert_array_equal(edm.loss_weight(LEVELS, "v"), np.ones(6))
    weight = edm.loss_weight(LEVELS, "eps")
    np.testing.assert_allclose(weight, 1 / (1 + LEVELS**2), rtol=1e-6)
    with pytest.raises(ValueError, match="'x0'"):
        edm.loss_weight(1.0, "x0")


def test_sigma_samples_follow_the_clipped_lognormal():
    s = np.asarray(edm.sample_sigma(jax.random.key(0), (200_000,)))
    assert s.dtype == np.float32
    quantiles = np.exp(0.7 + 1.6 * np.array([-1.6448536, -0.6744898, 0.0, 0.6744898, 1.6448536]))
    np.testing.assert_allclose(np.quantile(s, [0.05, 0.25, 0.5, 0.75, 0.95]), quantiles, rtol=0.03)
    # the quoted share of the weight of the eps form above sigma 2
    weight = np.asarray(edm.loss_weight(s, "eps"))
    assert weight.mean() == pytest.approx(0.35, abs=0.01)
    assert weight[s > 2].sum() / weight.sum() == pytest.approx(0.07, abs=0.01)

    narrow = edm.sample_sigma(
        jax.random.key(1), (4, 500), mean=-1.2, std=1.2, sigma_min=0.1, sigma_max=1.0
    )
    assert narrow.shape == (4, 500)
    assert narrow.min() == np.float32(0.1) and narrow.max() == 1.0
    assert float(jnp.median(narrow)) == pytest.approx(np.exp(-1.2), rel=0.1)


def test_karras_25_steps_against_the_published_list():
    # SVD's default schedule, to the digits it is usually printed with.
    printed = (
        "700 545.7 421.6 322.5 244.0 182.5 134.9 98.27 70.54 49.81 34.54 23.47 15.59 10.10 6.354"
        " 3.870 2.269 1.273 .6781 .3394 .1574 .0664 .0248 .0079 .002 0"
    ).split()
    sigmas = karras_sigmas(25)
    assert sigmas.shape == (26,) and sigmas.dtype == np.float32
    for got, text in zip(sigmas, printed, strict=True):
        digits = len(text.partition(".")[2])
        assert abs(got - float(text)) <= 0.5001 * 10.0**-digits, (got, text)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_karras_ends(n):
    sigmas = karras_sigmas(n, sigma_min=0.01, sigma_max=80.0, rho=5.0)
    assert sigmas.shape == (n + 1,)
    assert sigmas[0] == np.float32(80.0) and sigmas[-1] == 0
    if n > 1:
        assert sigmas[-2] == pytest.approx(0.01, rel=1e-6)
    assert (np.diff(sigmas) < 0).all()
    if n == 3:  # equally spaced after the 1/rho power
        assert sigmas[1] == pytest.approx(((80**0.2 + 0.01**0.2) / 2) ** 5, rel=1e-6)


def test_karras_tail_starts_at_the_asked_level():
    tail = karras_tail(6.354, 8)
    np.testing.assert_array_equal(tail, karras_sigmas(8, sigma_max=6.354))
    assert tail[0] == np.float32(6.354) and tail[-1] == 0 and tail.shape == (9,)
    np.testing.assert_array_equal(karras_tail(2.0, 1), np.array([2.0, 0.0], np.float32))


@pytest.mark.parametrize(
    "bad",
    [
        lambda: karras_sigmas(0),
        lambda: karras_sigmas(5, sigma_min=0.0),
        lambda: karras_sigmas(5, sigma_max=float("nan")),
        lambda: karras_sigmas(5, sigma_max=float("inf")),
        lambda: karras_sigmas(5, rho=0.0),
        lambda: karras_tail(0.001, 5),
        lambda: karras_tail(-1.0, 5),
    ],
)
def test_bad_schedules_are_refused_in_one_line(bad):
    with pytest.raises(InputError) as error:
        bad()
    assert "expected" in str(error.value) and "\n" not in str(error.value)
