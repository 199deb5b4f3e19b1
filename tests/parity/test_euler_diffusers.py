"""Our Euler sampler against diffusers' EulerDiscreteScheduler in SVD's configuration, float32.

Each step is compared from the same state. diffusers forms x + (s' - s) (x - D) / s, which rounds at
the size of x even where the result is small (from sigma 700 to 0 it loses 4e-5 of it); ours,
D + (s' / s) (x - D), does not. So the next states agree to 1e-6 of the larger state, and ours alone
is held to 1e-6 of the result itself, computed in float64.
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

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from torch_params import SCHEDULER, rel_error  # noqa: E402  (needs torch)

STEPS = [1, 2, 25]
SHAPE = (2, 3, 4, 5, 4)
PER_STEP = 1e-6


def scheduler(n=None, sigmas=None):
    made = diffusers.EulerDiscreteScheduler(**SCHEDULER)
    if sigmas is None:
        made.set_timesteps(n)
    else:
        made.set_timesteps(sigmas=list(sigmas))
    return made


def toy(xp):
    """The same smooth network F(scaled input, timestep) in torch, jax.numpy or numpy."""

    def network(x_in, t, cond=None):
        level = t.reshape(-1, 1, 1, 1, 1)
        return xp.sin(1.3 * x_in + level) + 0.4 * x_in - 0.2 * level

    return network


def float64_step(x, s, s_next):
    """(x0, next x) of one Euler step from levels s to s_next, in numpy float64."""
    x, s, s_next = (np.asarray(a, np.float64) for a in (x, s, s_next))
    f = toy(np)(x / np.sqrt(s * s + 1), 0.25 * np.log(s))
    x0 = x / (s * s + 1) - s / np.sqrt(s * s + 1) * f
    return x0, x + (s_next - s) * (x - x0) / s


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
        exact_x0, exact = float64_step(x, sigmas[step], sigmas[step + 1])
        assert rel_error(inputs[-1], scaled) <= PER_STEP
        assert rel_error(estimate, x0) <= PER_STEP
        assert rel_error(estimate, exact_x0) <= PER_STEP
        assert rel_error(got, exact) <= PER_STEP
        larger = max(1.0, np.linalg.norm(x) / np.linalg.norm(following))
        assert rel_error(got, following) <= PER_STEP * larger


# Bounds on the final result: ours against float64, and against diffusers (whose rounding it is).
@pytest.mark.parametrize("n,ours,both", [(1, 1e-6, 1e-4), (2, 1e-6, 1e-4), (25, 1e-6, 2e-6)])
def test_free_run(n, ours, both):
    made, noise, sigmas = scheduler(n), draw(1), karras_sigmas(n)
    theirs = torch_trajectory(made, torch.from_numpy(noise) * made.init_noise_sigma)[-1][-1]
    x = start_from_noise(jnp.asarray(noise), sigmas[0])
    got = sample_scan(edm.precondition(toy(jnp)), x, sigmas, None)
    exact = np.float64(noise) * np.sqrt(np.float64(sigmas[0]) ** 2 + 1)
    for i in range(n):
        _, exact = float64_step(exact, sigmas[i], sigmas[i + 1])
    errors = [rel_error(got, exact), rel_error(theirs, exact), rel_error(got, theirs)]
    print(f"{n} steps: ours {errors[0]:.1e}, diffusers {errors[1]:.1e}, apart {errors[2]:.1e}")
    assert errors[0] <= ours and errors[2] <= both


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
