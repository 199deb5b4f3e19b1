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
    doubled,
    guidance_ramp,
    unconditional,
    with_guidance,
)
from recapture_jax.models.layers import Upsample
from recapture_jax.models.transformer import TABLES
from recapture_jax.models.unet import UNet, UNetConfig
from recapture_jax.models.unet_blocks import BlockOptions, DownBlock

TOLERANCE = 2e-6
TEMPORAL = ("temporal_res_block", "temporal_transformer_blocks_0", "time_pos_embed", "time_mixer")
WITHOUT_EFFECT = ("attn2/to_q/kernel", "attn2/to_k/kernel")


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
    args = sample, timestep, np.repeat(context, 2, 1), ids
    with pytest.raises(ValueError, match="2 tokens"):
        jax.eval_shape(network().apply, {"params": params}, *args)


def test_tables_computed_once_and_passed_back(params, literal):
    args, remat = inputs(), "full"  # a checkpointed unit must hand its tables out and in as well
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
    assert rel(run(params, other), literal) > 1e-2


@pytest.mark.parametrize("apart", [False, True])
def test_sampling_with_tables_of_the_doubled_batch(tiny_model, params, apart):
    """Both passes of guidance in one batch, and one after the other."""
    sample, _, context, ids = inputs(batch=1)
    x, latents = jnp.asarray(sample[..., :4]), jnp.asarray(sample[..., 4:])
    cond = Conditioning(jnp.asarray(context), latents, jnp.asarray(ids))
    scales, sigma = guidance_ramp(1.0, 3.0, 3), jnp.float32(3.0)
    plain = jax.jit(tiny_model.denoiser(params))
    known, free = plain(x, sigma, cond), plain(x, sigma, unconditional(cond))
    expected = free + scales.reshape(1, 3, 1, 1, 1) * (known - free)
    assert rel(known, expected) > 1e-3

    tables = tiny_model.tables(params, doubled(cond), apart)

    @jax.jit
    def guided(params, tables, x, cond):
        denoise = functools.partial(tiny_model.sampling_denoiser(None, apart), params, tables)
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


def gradients(params, image_only=False):
    def loss(params):
        return jnp.square(
            network().apply({"params": params}, *inputs(), image_only=image_only)
        ).mean()

    return flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")


def is_temporal(path):
    return bool(set(path.split("/")) & set(TEMPORAL))


@pytest.mark.parametrize("image_only", [False, True], ids=["video", "image-only"])
def test_which_parameters_get_exactly_no_gradient(params, image_only):
    grads = gradients(params, image_only)
    assert sum(map(is_temporal, grads)) > 100
    for path, grad in grads.items():
        silent = path.endswith(WITHOUT_EFFECT) or _is_block_norm2(path)
        silent = silent or (image_only and is_temporal(path))
        assert bool(jnp.any(grad != 0.0)) != silent, path


def _is_block_norm2(path):
    """The norm before attn2 (a residual block's norm2 is another)."""
    return path.endswith(("norm2/scale", "norm2/bias")) and "transformer_blocks" in path


def test_remat_changes_nothing():
    """One block with both kinds of unit: output and gradients of parameters and input."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 6, 32), dtype=np.float32)
    embedding, context = (rng.standard_normal(s, dtype=np.float32) for s in ((2, 128), (2, 1, 16)))
    shapes = jax.eval_shape(_block("none").init, jax.random.key(0), x, embedding, context)
    variables = jax.tree.map(lambda s: 0.2 * rng.standard_normal(s.shape, dtype=np.float32), shapes)

    def run(remat):
        def loss(variables, x):
            out, skips = _block(remat).apply(variables, x, embedding, context)
            return jnp.square(out).mean(), (out, skips)

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables, x)

    gradients, outputs = run("none")
    size = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(gradients)))
    for remat in ("full", "dots"):
        again, same = run(remat)
        for ours, plain in zip(jax.tree.leaves(same), jax.tree.leaves(outputs), strict=True):
            assert rel(ours, plain) <= TOLERANCE
        # To the size of all: some gradients are zero but for rounding (a bias before a norm).
        for ours, plain in zip(jax.tree.leaves(again), jax.tree.leaves(gradients), strict=True):
            assert np.linalg.norm(ours - plain) <= TOLERANCE * size


def _block(remat):
    return DownBlock(32, 1, 2, 1e-5, False, BlockOptions(remat=remat))


@pytest.mark.parametrize("remat, units", [("none", 0), ("full", 12), ("dots", 12)])
def test_remat_wraps_every_resnet_and_transformer(params, remat, units):
    unet = network(remat=remat)
    trace = jax.make_jaxpr(lambda p: unet.apply({"params": p}, *inputs()))(params)
    # GEGLU's product is checkpointed always; a whole unit is known by its matrix products.
    remats = [eqn for eqn in trace.eqns if "remat" in eqn.primitive.name]
    assert sum("dot_general" in str(eqn.params["jaxpr"]) for eqn in remats) == units


@pytest.mark.parametrize("dtype, bound", [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_doubling_within_the_convolution(dtype, bound):
    """A CPU's upsampler against the plain one: a repeated input and nine taps, forward and backward."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 7, 6)).astype(dtype)
    layer = Upsample(8, dtype)
    params = layer.init(jax.random.key(1), x)["params"]
    conv = params["conv"] | {"bias": jnp.arange(8.0)}

    def plain(conv, x):
        doubled = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
        flat = doubled.astype(jnp.float32).reshape(6, 10, 14, 6)
        out = jax.lax.conv_general_dilated(
            flat, conv["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return out.reshape(2, 3, 10, 14, 8) + conv["bias"].reshape(1, 1, 1, 1, 8)

    def shortcut(conv, x):
        return layer.apply({"params": {"conv": conv}}, x)

    got, pull = jax.vjp(shortcut, conv, x)
    want, pull_plain = jax.vjp(plain, conv, x)
    assert got.dtype == dtype and rel(got, want) < bound
    cotangent = jax.random.normal(jax.random.key(2), want.shape)
    for one, other in zip(
        jax.tree.leaves(pull(cotangent.astype(dtype))),
        jax.tree.leaves(pull_plain(cotangent)),
        strict=True,
    ):
        assert rel(one.astype(jnp.float32), other.astype(jnp.float32)) < bound


def test_bfloat16_network(params, literal):
    """About 2e-2 from float32: a wrong cast would show, and so would a float32 network."""
    halves = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), params)
    out = run(halves, inputs(), dtype=jnp.bfloat16)
    assert out.dtype == np.float32
    assert 2e-3 < rel(out, literal) < 5e-2
