"""The sampler against the exact flow of Gaussian data, and guidance against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from recapture_jax.diffusion import edm
from recapture_jax.diffusion.guidance import (
    Conditioning,
    guidance_ramp,
    unconditional,
    with_guidance,
)
from recapture_jax.diffusion.karras import karras_sigmas, karras_tail
from recapture_jax.diffusion.sampling import (
    sample_scan,
    sample_steps,
    start_from_noise,
    start_from_video,
)
from recapture_jax.errors import InputError

SHAPE = (2, 3, 4, 5, 2)  # [B, T, h, w, c]
MEAN, STD = 0.8, 0.5  # of the toy data


def normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape)


def gaussian(x, sigma, cond):
    """The ideal denoiser of data ~ N(MEAN, STD^2 I): its posterior mean."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def exact_flow(x, sigma):
    """Solution at level 0 of dx/ds = (x - D)/s for `gaussian`, from x at level sigma."""
    return MEAN + (np.asarray(x, np.float64) - MEAN) * STD / np.sqrt(STD**2 + float(sigma) ** 2)


def conditioning(batch=2, frames=3):
    return Conditioning(
        context=normal(10, (batch, 1, 6)),
        latents=normal(11, (batch, frames) + SHAPE[2:]),
        added_time_ids=jnp.asarray([[6.0, 127.0, 0.02], [11.0, 40.0, 0.1]])[:batch],
    )


def toy(params, x, sigma, cond):
    """A small nonlinear v-prediction model that reads every part of the conditioning."""

    def network(x_in, t, cond):
        b = x_in.shape[0]
        side = cond.context.mean((1, 2)) + 0.01 * cond.added_time_ids.sum(-1) + 0.2 * t
        inner = params["gain"] * x_in + 0.3 * cond.latents + side.reshape(b, 1, 1, 1, 1)
        return jnp.tanh(inner) + 0.1 * inner.mean(1, keepdims=True)  # mixes frames

    return edm.precondition(network)(x, sigma, cond)


PARAMS = {"gain": jnp.float32(0.7)}


# --- the ODE ---


def test_first_order_convergence_to_the_exact_flow():
    x = start_from_noise(normal(0), 700.0)
    expected = exact_flow(x, 700.0)
    errors = []
    for n in (50, 100, 200, 400):
        got = jax.jit(lambda x, n=n: sample_scan(gaussian, x, karras_sigmas(n), None))(x)
        errors.append(np.abs(np.asarray(got) - expected).max())
    ratios = np.array(errors[:-1]) / errors[1:]
    assert errors[-1] < 0.02
    np.testing.assert_allclose(ratios, 2.0, atol=0.15)


def test_noise_is_mapped_to_the_data_distribution():
    noise = normal(1, (1, 4, 50, 50, 4))
    x = start_from_noise(noise, 700.0)
    got = np.asarray(sample_scan(gaussian, x, karras_sigmas(300), None))
    # 40 000 samples: standard errors 0.0025 of the mean, 0.0018 of the deviation
    assert got.mean() == pytest.approx(MEAN, abs=0.01)
    assert got.std() == pytest.approx(STD, abs=0.015)


@pytest.mark.parametrize("sigma", [0.7, 6.0])
def test_sdedit_of_data_is_data_and_follows_the_flow(sigma):
    z = MEAN + STD * normal(2, (1, 4, 50, 50, 4))
    x = start_from_video(z, normal(3, z.shape), sigma)
    np.testing.assert_allclose(x, z + np.float32(sigma) * normal(3, z.shape), rtol=1e-6, atol=1e-6)
    got = np.asarray(sample_scan(gaussian, x, karras_tail(sigma, 200), None))
    np.testing.assert_allclose(got, exact_flow(x, sigma), atol=0.03)
    assert got.mean() == pytest.approx(MEAN, abs=0.01)
    assert got.std() == pytest.approx(STD, abs=0.015)


def test_sdedit_keeps_more_of_the_video_at_lower_levels():
    z = MEAN + STD * normal(2)
    kept = []
    for sigma in (0.05, 0.7, 6.0):
        x = start_from_video(z, normal(3), sigma)
        got = sample_scan(gaussian, x, karras_tail(sigma, 20), None)
        kept.append(float(jnp.abs(got - z).mean()))
    assert kept[0] < 0.05 < kept[1] < kept[2]


@pytest.mark.parametrize("n", [1, 2, 25])
def test_a_delta_distribution_is_returned_exactly(n):
    target = normal(4)
    x = start_from_noise(normal(5), 700.0)
    got = sample_scan(lambda x, sigma, cond: target, x, karras_sigmas(n), None)
    np.testing.assert_array_equal(got, target)


def test_one_step_is_the_denoiser_and_start_has_the_data_variance():
    noise = normal(6)
    for sigma in (700.0, 0.5):
        x = start_from_noise(noise, sigma)
        np.testing.assert_allclose(x, noise * np.sqrt(sigma**2 + 1), rtol=1e-6)
        sigmas = karras_sigmas(1, sigma_max=sigma)
        np.testing.assert_allclose(
            sample_scan(gaussian, x, sigmas, None), gaussian(x, sigma, None), rtol=1e-6
        )


# --- the two drivers ---


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("projected", [False, True])
def test_scan_and_steps_agree(guided, projected):
    cond, x, sigmas = conditioning(), start_from_noise(normal(7), 700.0), karras_sigmas(6)
    known, mask = normal(8), normal(9, SHAPE[:-1])[..., None] > 0

    def put_back(known, mask, x0, sigma, step):
        return jnp.where(mask, known, x0)

    options = dict(
        guidance=guidance_ramp(1.0, 3.0, 3) if guided else None,
        project=Partial(put_back, known, mask) if projected else None,
    )
    denoise = Partial(toy, PARAMS)
    scanned = jax.jit(lambda x: sample_scan(denoise, x, sigmas, cond, **options))(x)
    stepped = sample_steps(denoise, x, sigmas, cond, **options)
    np.testing.assert_allclose(stepped, scanned, rtol=1e-6, atol=1e-6)
    assert stepped.dtype == scanned.dtype == jnp.float32
    if projected:
        chosen = np.broadcast_to(mask, SHAPE)
        np.testing.assert_array_equal(np.asarray(scanned)[chosen], np.asarray(known)[chosen])


def test_callback_sees_every_step_in_order_and_may_keep_its_estimates():
    seen = []
    x, sigmas = start_from_noise(normal(7), 700.0), karras_sigmas(5)
    result = sample_steps(
        Partial(toy, PARAMS), x, sigmas, conditioning(), callback=lambda *a: seen.append(a)
    )
    assert [s[0] for s in seen] == list(range(5))
    np.testing.assert_array_equal([s[1] for s in seen], sigmas[:-1])
    np.testing.assert_array_equal(seen[-1][2], result)
    np.testing.assert_allclose(  # the caller's x and the kept estimates are still readable
        seen[0][2], toy(PARAMS, x, sigmas[0], conditioning()), rtol=1e-5, atol=1e-6
    )
    assert not any(bool((seen[i][2] == seen[i + 1][2]).all()) for i in range(4))


def test_an_exception_in_the_callback_ends_the_sampling():
    done = []

    def stop(step, sigma, x0):
        done.append(step)
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_steps(gaussian, normal(0), karras_sigmas(9), None, callback=stop)
    assert done == [0, 1]


def test_steps_compile_once_for_other_parameters_videos_and_schedules():
    traces = []

    def denoise(params, x, sigma, cond):
        traces.append(1)
        return params * x / (1 + sigma**2)

    for seed, n in ((0, 3), (1, 7)):
        x = normal(seed)
        got = sample_steps(Partial(denoise, jnp.float32(seed + 0.5)), x, karras_sigmas(n), None)
        s = karras_sigmas(n)
        expected = np.asarray(x, np.float64)
        for i in range(n):
            x0 = (seed + 0.5) * expected / (1 + float(s[i]) ** 2)
            expected = x0 + s[i + 1] / s[i] * (expected - x0)
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert len(traces) == 1


def test_project_gets_level_and_index_and_is_applied_every_step():
    sigmas = karras_sigmas(4)

    def tag(x0, sigma, step):
        return jnp.full_like(x0, sigma) + step

    collected = []
    sample_steps(
        gaussian,
        normal(0),
        sigmas,
        None,
        project=tag,
        callback=lambda i, s, x0: collected.append(x0),
    )
    for step, x0 in enumerate(collected):
        np.testing.assert_allclose(x0, np.full(SHAPE, sigmas[step] + step), rtol=1e-6)


def test_the_start_may_be_donated():
    x = start_from_noise(normal(0), 700.0)
    expected = sample_scan(gaussian, x, karras_sigmas(3), None)
    run = jax.jit(lambda x: sample_scan(gaussian, x, karras_sigmas(3), None), donate_argnums=0)
    np.testing.assert_allclose(run(x), expected, rtol=1e-6)
    assert x.is_deleted()


def test_scan_carries_the_latent_alone():
    sigmas = karras_sigmas(4)
    jaxpr = jax.make_jaxpr(lambda x: sample_scan(gaussian, x, sigmas, None))(normal(0))
    (scan,) = [e for e in jaxpr.eqns if e.primitive.name == "scan"]
    assert [v.aval.shape for v in scan.outvars] == [SHAPE]


def test_the_state_stays_float32_around_a_half_precision_denoiser():
    def coarse(x, sigma, cond):
        return gaussian(x, sigma, cond).astype(jnp.bfloat16)

    x = normal(0).astype(jnp.bfloat16)
    assert sample_scan(coarse, x, karras_sigmas(3), None).dtype == jnp.float32
    assert sample_steps(coarse, x, karras_sigmas(3), None).dtype == jnp.float32


@pytest.mark.parametrize("sigmas", [np.float32(3.0), np.zeros(1), np.ones((2, 3))])
@pytest.mark.parametrize("sample", [sample_scan, sample_steps])
def test_sigmas_must_be_a_list_of_levels(sample, sigmas):
    with pytest.raises(ValueError, match="sigmas of shape"):
        sample(gaussian, normal(0), sigmas, None)


# --- guidance ---


def test_ramp():
    np.testing.assert_allclose(guidance_ramp(1.0, 3.0, 5), [1.0, 1.5, 2.0, 2.5, 3.0])
    np.testing.assert_array_equal(guidance_ramp(1.0, 2.5, 1), [1.0])
    for bad in ((-1.0, 2.0, 3), (1.0, float("nan"), 3), (1.0, 2.0, 0)):
        with pytest.raises(InputError, match="expected"):
            guidance_ramp(*bad)


def test_unconditional_drops_image_and_keeps_ids():
    cond = conditioning()
    none = unconditional(cond)
    assert not none.context.any() and not none.latents.any()
    np.testing.assert_array_equal(none.added_time_ids, cond.added_time_ids)
    assert none.context.shape == cond.context.shape and none.latents.shape == cond.latents.shape


@pytest.mark.parametrize("sigma", [np.float32(3.0), np.array([0.4, 50.0], np.float32)])
def test_each_frame_is_guided_by_its_own_scale(sigma):
    cond, x, scale = conditioning(), 2.0 * normal(7), guidance_ramp(1.0, 3.0, 3)
    got = np.asarray(with_guidance(Partial(toy, PARAMS), scale)(x, sigma, cond))
    d_c = np.asarray(toy(PARAMS, x, sigma, cond))
    d_u = np.asarray(toy(PARAMS, x, sigma, unconditional(cond)))
    assert np.abs(d_c - d_u).max() > 0.1
    for frame, g in enumerate((1.0, 2.0, 3.0)):
        expected = d_u[:, frame] + g * (d_c[:, frame] - d_u[:, frame])
        np.testing.assert_allclose(got[:, frame], expected, rtol=1e-5, atol=1e-5)


def test_frame_with_scale_one_is_the_conditional_answer_exactly():
    def denoise(x, sigma, cond):  # an unusable unconditional answer, which must not be mixed in
        used = (cond.context != 0).any((1, 2)).reshape(-1, 1, 1, 1, 1)
        return jnp.where(used, jnp.sin(x), 1e30)

    x = normal(7)
    got = with_guidance(denoise, guidance_ramp(1.0, 3.0, 3))(x, 1.0, conditioning())
    np.testing.assert_array_equal(got[:, 0], jnp.sin(x)[:, 0])


def test_unconditional_half_comes_first_in_one_call():
    calls, cond = [], conditioning()

    def denoise(x, sigma, cond):
        calls.append((x, sigma, cond))
        return x

    x, sigma = normal(7), jnp.asarray([1.0, 2.0])
    with_guidance(denoise, guidance_ramp(1.0, 2.0, 3))(x, sigma, cond)
    ((both, sigmas, told),) = calls
    np.testing.assert_array_equal(both, np.concatenate([x, x]))
    np.testing.assert_array_equal(sigmas, [1.0, 2.0, 1.0, 2.0])
    assert not told.context[:2].any() and not told.latents[:2].any()
    np.testing.assert_array_equal(told.context[2:], cond.context)
    np.testing.assert_array_equal(told.latents[2:], cond.latents)
    np.testing.assert_array_equal(told.added_time_ids, np.concatenate([cond.added_time_ids] * 2))


@pytest.mark.parametrize("scale,batch", [((1.0, 1.0), 2), ((0.5, 1.0), 2), ((1.0, 1.01), 4)])
def test_the_unconditional_pass_is_skipped_statically(scale, batch):
    batches = []

    def denoise(x, sigma, cond):
        batches.append(x.shape[0])
        return gaussian(x, sigma, cond)

    ramp = guidance_ramp(*scale, 3)
    sample_scan(denoise, normal(0), karras_sigmas(2), conditioning(), guidance=ramp)
    assert set(batches) == {batch}


def test_scales_must_match_the_frames():
    guided = with_guidance(gaussian, guidance_ramp(1.0, 2.0, 4))
    with pytest.raises(ValueError, match="4 guidance scales for 3 frames"):
        guided(normal(0), 1.0, conditioning())
    with pytest.raises(ValueError, match="one per frame"):
        with_guidance(gaussian, np.float32(2.0))
