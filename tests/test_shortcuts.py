"""The exact shortcuts of the U-Net against the literal network (random weights, no torch).

One-token cross-attention, tables computed once, skipped temporal layers, rematerialisation: each
must change the cost alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from tiny import CONFIG

from recapture_jax.diffusion.guidance import (
    Conditioning,
    guidance_ramp,
    unconditional,
    with_guidance,
)
from recapture_jax.models.transformer import TABLES
from recapture_jax.models.unet import UNet, UNetConfig

TOLERANCE = 2e-6
TEMPORAL = ("temporal_res_block", "temporal_transformer_blocks_0", "time_pos_embed", "time_mixer")
WITHOUT_EFFECT = ("attn2/to_q/kernel", "attn2/to_k/kernel", "norm2/scale", "norm2/bias")


@functools.cache
def network(**options):
    return UNet(UNetConfig.from_dict(CONFIG["unet"]), **options)


@functools.cache
def compiled(image_only=False, **options):
    unet = network(**options)
    return jax.jit(lambda variables, args: unet.apply(variables, *args, image_only=image_only))


def run(params, args, tables=None, **options):
    variables = {"params": params} if tables is None else {"params": params, TABLES: tables}
    return np.asarray(compiled(**options)(variables, args))


def inputs(batch=2, frames=3, height=6, width=8):
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((batch, frames, height, width, 8), dtype=np.float32)
    timestep = rng.uniform(-1.5, 1.6, batch).astype(np.float32)
    context = rng.standard_normal((batch, 1, 16), dtype=np.float32)
    ids = np.array([[6.0, 127.0, 0.02], [11.0, 40.0, 0.1]], np.float32)[:batch]
    return sample, timestep, context, ids


def rel(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.fixture(scope="module")
def params(tiny_params):
    return tiny_params["unet"]


@pytest.fixture(scope="module")
def literal(params):
    """The network without any shortcut."""
    return run(params, inputs(), plain_cross_attention=True)


def with_mix_factor(params, value):
    flat = flatten_dict(params)
    return unflatten_dict(
        {k: np.full_like(v, value) if k[-1] == "mix_factor" else v for k, v in flat.items()}
    )


def test_one_token_cross_attention(params, literal):
    assert rel(run(params, inputs()), literal) <= TOLERANCE


def test_more_than_one_token_is_refused(params):
    sample, timestep, context, ids = inputs()
    with pytest.raises(ValueError, match="2 tokens"):
        network().apply({"params": params}, sample, timestep, np.repeat(context, 2, 1), ids)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_tables_computed_once_and_passed_back(params, literal, remat):
    args = inputs()
    fill = jax.jit(lambda p, a: network(remat=remat).apply({"params": p}, *a, mutable=[TABLES]))
    out, state = fill(params, args)
    tables = state[TABLES]
    # Transformers: two up, one down, one in the middle; each 2 attn2 vectors and 1 position table.
    assert len(jax.tree.leaves(tables)) == 4 * 3
    assert rel(out, literal) <= TOLERANCE
    assert rel(run(params, args, tables, remat=remat), literal) <= TOLERANCE
    # They depend on the context alone: other latents, levels and ids leave them as they are ...
    sample, timestep, context, ids = args
    again = fill(params, (sample[::-1] * 0.5, timestep + 1.0, context, ids * 2.0))[1][TABLES]
    jax.tree.map(np.testing.assert_array_equal, again, tables)
    # ... and with them the context is read no more.
    other = (sample, timestep, context + 1.0, ids)
    np.testing.assert_array_equal(
        run(params, other, tables, remat=remat), run(params, args, tables, remat=remat)
    )
    assert rel(run(params, other, remat=remat), literal) > 1e-2


@pytest.mark.parametrize("maximum", [1.0, 3.0], ids=["unguided", "guided"])
def test_sampling_with_tables_of_the_doubled_batch(tiny_model, params, maximum):
    sample, _, context, ids = inputs(batch=1)
    x, latents = jnp.asarray(sample[..., :4]), jnp.asarray(sample[..., 4:])
    cond = Conditioning(jnp.asarray(context), latents, jnp.asarray(ids))
    scales, sigma = guidance_ramp(1.0, maximum, 3), jnp.float32(3.0)
    plain = jax.jit(tiny_model.denoiser(params))
    known, free = plain(x, sigma, cond), plain(x, sigma, unconditional(cond))
    expected = free + scales.reshape(1, 3, 1, 1, 1) * (known - free)
    assert maximum == 1.0 or rel(known, expected) > 1e-3

    both = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), unconditional(cond), cond)
    tables = tiny_model.tables(params, both if maximum > 1.0 else cond)

    @jax.jit
    def guided(params, tables, x, cond):
        denoise = functools.partial(tiny_model.sampling_denoiser, params, tables)
        return with_guidance(denoise, scales)(x, sigma, cond)

    assert rel(guided(params, tables, x, cond), expected) <= TOLERANCE


def test_image_only_is_the_full_network_with_its_temporal_half_blended_out(params, literal):
    args = inputs()
    # sigmoid(100) is exactly 1 in float32: `spatial * 1 + temporal * 0`.
    blended = run(with_mix_factor(params, 100.0), args)
    image_only = run(params, args, image_only=True)
    assert rel(image_only, blended) <= TOLERANCE
    assert rel(image_only, literal) > 1e-2


def test_image_only_treats_every_frame_alone(params, literal):
    sample, *rest = inputs()
    order = np.array([2, 0, 1])
    out = run(params, (sample, *rest), image_only=True)
    permuted = run(params, (sample[:, order], *rest), image_only=True)
    np.testing.assert_array_equal(permuted, out[:, order])
    # One frame as a clip of its own gives the same; the full network is not like that.
    single = run(params, (sample[:, 1:2], *rest), image_only=True)
    assert rel(single, out[:, 1:2]) <= TOLERANCE
    assert rel(run(params, (sample[:, order], *rest)), literal[:, order]) > 1e-3


def test_one_frame_of_video_is_not_an_image(params):
    args = inputs(frames=1)
    assert rel(run(params, args), run(params, args, image_only=True)) > 1e-2


def gradients(params, args, image_only=False, **options):
    unet = network(**options)

    def loss(params):
        return jnp.square(unet.apply({"params": params}, *args, image_only=image_only)).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    return value, flatten_dict(grads, sep="/")


@pytest.fixture(scope="module")
def plain_gradients(params):
    return gradients(params, inputs())


def test_image_only_gives_temporal_parameters_exactly_no_gradient(params):
    _, grads = gradients(params, inputs(), image_only=True)
    temporal = {path for path in grads if set(path.split("/")) & set(TEMPORAL)}
    assert len(temporal) > 100
    for path, grad in grads.items():
        silent = path in temporal or path.endswith(WITHOUT_EFFECT[:2]) or _is_block_norm2(path)
        assert bool(jnp.any(grad != 0.0)) != silent, path


def test_video_gives_every_parameter_with_an_effect_a_gradient(plain_gradients):
    for path, grad in plain_gradients[1].items():
        silent = path.endswith(WITHOUT_EFFECT[:2]) or _is_block_norm2(path)
        assert bool(jnp.any(grad != 0.0)) != silent, path


def _is_block_norm2(path):
    """The norm before attn2 (a residual block's norm2 is another)."""
    return path.endswith(WITHOUT_EFFECT[2:]) and "transformer_blocks" in path


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_nothing(params, plain_gradients, remat):
    value, grads = gradients(params, inputs(), remat=remat)
    expected_value, expected = plain_gradients
    assert rel(value, expected_value) <= TOLERANCE
    assert grads.keys() == expected.keys()
    norm = np.sqrt(sum(np.square(np.asarray(g, np.float64)).sum() for g in expected.values()))
    for path, grad in grads.items():
        difference = np.linalg.norm(np.asarray(grad - expected[path], np.float64))
        assert difference <= TOLERANCE * norm, path


def test_bfloat16_network(params, literal):
    """About 2e-2 from float32: a wrong cast would show, and so would a float32 network."""
    halves = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), params)
    out = run(halves, inputs(), dtype=jnp.bfloat16)
    assert out.dtype == np.float32
    assert 2e-3 < rel(out, literal) < 5e-2
