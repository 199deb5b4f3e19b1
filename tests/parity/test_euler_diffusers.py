"""Our Euler sampler against diffusers' EulerDiscreteScheduler in SVD's configuration, float32.

Each step is compared from the same state (at most 1e-6 relative). Run freely, the two differ only in
rounding that 25 steps let grow; `test_free_run` states how far.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax.diffusion import edm
from recapture_jax.diffusion.karras import karras_sigmas, karras_tail
from recapture_jax.diffusion.sampling import (
    euler_step,
    sample_scan,
    start_from_noise,
    start_from_video,
)
from torch_params import rel_error

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

STEPS = [1, 2, 25]
SHAPE = (2, 3, 4, 5, 4)
PER_STEP = 1e-6


def scheduler(n=None, sigmas=None):
    made = diffusers.EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        interpolation_type="linear",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        timestep_type="continuous",
        steps_offset=1,
    )
    if sigmas is None:
        made.set_timesteps(n)
    else:
        made.set_timesteps(sigmas=list(sigmas))
    return made


def toy(xp):
    """The same smooth network F(scaled input, timestep) for numpy-like modules torch and jnp."""

    def network(x_in, t, cond=None):
        level = t.reshape(-1, 1, 1, 1, 1)
        return xp.sin(1.3 * x_in + level) + 0.4 * x_in * x_in - 0.2 * level

    return network


def draw(seed):
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


def torch_trajectory(made, x):
    """[(x, scaled input, timestep, x0, next x)] of every step, as numpy."""
    network, trail = toy(torch), []
    for t in made.timesteps:
        scaled = made.scale_model_input(x, t)
        out = network(scaled, t.expand(SHAPE[0]))
        following, x0 = made.step(out, t, x, return_dict=False)
        trail.append([a.numpy().copy() for a in (x, scaled, t, x0, following)])
        x = following
    return trail


@pytest.mark.parametrize("n", STEPS)
def test_schedule_timesteps_and_start(n):
    made, sigmas = scheduler(n), karras_sigmas(n)
    np.testing.assert_allclose(sigmas, made.sigmas.numpy(), rtol=1e-7)
    np.testing.assert_allclose(
        edm.c_noise(sigmas[:-1]), made.timesteps.numpy(), rtol=3e-7, atol=1e-7
    )
    noise = draw(0)
    theirs = torch.from_numpy(noise) * made.init_noise_sigma
    assert rel_error(start_from_noise(jnp.asarray(noise), sigmas[0]), theirs.numpy()) <= 2e-7


@pytest.mark.parametrize("n", STEPS)
def test_each_step_from_the_same_state(n):
    made, sigmas = scheduler(n), karras_sigmas(n)
    start = torch.from_numpy(draw(0)) * made.init_noise_sigma
    trail = torch_trajectory(made, start)
    assert len(trail) == n
    ours, inputs = edm.precondition(toy(jnp)), []

    def denoise(x, sigma, cond):
        inputs.append(np.asarray(edm.c_in(sigma) * x))
        return ours(x, sigma, cond)

    for step, (x, scaled, _, x0, following) in enumerate(trail):
        got, estimate = euler_step(
            denoise, jnp.asarray(x), sigmas[step], sigmas[step + 1], jnp.int32(step), None
        )
        assert rel_error(inputs[-1], scaled) <= PER_STEP
        assert rel_error(estimate, x0) <= PER_STEP
        assert rel_error(got, following) <= PER_STEP


@pytest.mark.parametrize("n,bound", [(1, 1e-6), (2, 1e-6), (25, 2e-6)])
def test_free_run(n, bound):
    made, noise = scheduler(n), draw(1)
    theirs = torch_trajectory(made, torch.from_numpy(noise) * made.init_noise_sigma)[-1][-1]
    sigmas = karras_sigmas(n)
    x = start_from_noise(jnp.asarray(noise), sigmas[0])
    got = sample_scan(edm.precondition(toy(jnp)), x, sigmas, None)
    error = rel_error(got, theirs)
    print(f"{n} steps: relative error {error:.2e}")
    assert error <= bound


def test_sdedit_as_a_diffusers_user_would_run_it():
    # Their way in: latents that init_noise_sigma then multiplies back to z + s n.
    sigma, z, noise = 6.354, draw(2), draw(3)
    tail = karras_tail(sigma, 8)
    made = scheduler(sigmas=tail)
    np.testing.assert_array_equal(made.sigmas.numpy(), tail)
    np.testing.assert_allclose(edm.c_noise(tail[:-1]), made.timesteps.numpy(), rtol=3e-7, atol=1e-7)
    latents = torch.from_numpy(z + np.float32(sigma) * noise) / (sigma**2 + 1) ** 0.5
    theirs = torch_trajectory(made, latents * made.init_noise_sigma)[-1][-1]
    x = start_from_video(jnp.asarray(z), jnp.asarray(noise), tail[0])
    got = sample_scan(edm.precondition(toy(jnp)), x, tail, None)
    assert rel_error(got, theirs) <= 2e-6
