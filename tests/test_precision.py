"""The precision policy: bfloat16 weights and activations; norms, softmax, blends, sampler and LoRA in float32.

Each property is checked beside what breaks it, so that a check that could not fail would be seen.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn

from experiments.bench import precision
from recapture_jax.diffusion import edm
from recapture_jax.diffusion.guidance import Conditioning
from recapture_jax.diffusion.karras import karras_sigmas
from recapture_jax.diffusion.sampling import sample_scan, start_from_noise
from recapture_jax.lora import tree as lora_tree
from recapture_jax.lora.adapter import adapters
from recapture_jax.models import layers, resnet, transformer, vae, zoo
from recapture_jax.models.attention import attention, temporal_attention
from recapture_jax.stages.video_model import VideoModel
from recapture_jax.tuning.losses import v_loss
from recapture_jax.tuning.step import Settings, init_state

HALF_MAX = 65504.0  # of float16
BF16 = jnp.bfloat16


def normal(*shape, seed=0, scale=1.0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return jnp.asarray(scale * rng.standard_normal(shape), dtype)


def model_in(params, dtype) -> VideoModel:
    return VideoModel(zoo.build(tiny.CONFIG, dtype), zoo.cast_params(params, dtype), tiny.CONFIG)


@pytest.fixture(scope="module")
def narrow(tiny_params):
    return model_in(tiny_params, BF16)


@pytest.fixture(scope="module")
def predict():
    """`(model, x, sigma, cond) -> F`, compiled once per dtype."""

    @functools.cache
    def compiled(network):
        model = VideoModel(network, {}, tiny.CONFIG)
        return jax.jit(lambda p, *args: edm.predict_v(model.network(p), *args))

    return lambda model, *args: compiled(model.networks)(model.params["unet"], *args)


@pytest.fixture(scope="module")
def cond():
    return Conditioning(
        normal(1, 1, 16, seed=1), normal(1, 3, 8, 12, 4, seed=2), jnp.array([[6.0, 127.0, 0.02]])
    )


# Dtypes


def test_what_is_stored_in_which_dtype(narrow):
    """Weights in bfloat16 but for the layers that read or write latents; deltas and AdamW in float32."""
    flat = jax.tree_util.tree_leaves_with_path(narrow.params)
    wide = {
        jax.tree_util.keystr(path[:-1], simple=True, separator="/")
        for path, leaf in flat
        if leaf.dtype == jnp.float32
    }
    assert wide == {"unet/conv_in", "unet/conv_out", "vae/encoder/conv_out", "vae/quant_conv"}
    assert all(leaf.dtype in (BF16, jnp.float32) for _, leaf in flat)
    lora = lora_tree.init(jax.random.key(0), narrow.params["unet"], "temporal", 2)
    state = init_state({"temporal": lora}, Settings())
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert floats and all(x.dtype == jnp.float32 for x in floats)


def test_what_the_networks_hand_out_is_float32(narrow, predict, cond):
    """Predictions, with values that bfloat16 does not have; conditioning and frames."""
    x = normal(1, 3, 8, 12, 4)
    values = predict(narrow, x, 1.0, cond)
    assert values.dtype == jnp.float32
    assert np.mean(np.asarray(values.astype(BF16), np.float32) != np.asarray(values)) > 0.9

    def condition(image):
        ids = {"fps": 7, "motion_bucket": 1, "noise_aug": 0.02}
        return narrow.condition(image, 3, **ids, key=jax.random.key(0))

    made = jax.eval_shape(condition, jnp.zeros((64, 96, 3)))
    frames = jax.eval_shape(narrow._decode, narrow.params["vae"], x[0])
    assert made.latents.dtype == made.added_time_ids.dtype == frames.dtype == jnp.float32


# Norms, softmax, blend, sinusoids


def _bf16_norm(x, axes, epsilon):
    """Statistics in bfloat16, each operation rounded."""
    mean = x.mean(axis=axes, keepdims=True)
    centred = x - mean
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=axes, keepdims=True) + epsilon)


@pytest.mark.parametrize("kind", ["group", "layer"])
def test_statistics_of_norms_are_float32(kind):
    """On a mean of 30 deviations, where statistics in bfloat16 are off by several per cent."""
    x = (30.0 + normal(1, 16, 16, 64)).astype(BF16)
    exact = np.asarray(x, np.float64)
    if kind == "group":
        norm, axes = layers.GroupNorm(1e-6, 1), (1, 2, 3)
    else:
        norm, axes = layers.LayerNorm(), (3,)
    exact = (exact - exact.mean(axes, keepdims=True)) / exact.std(axes, keepdims=True)
    got = norm.apply(norm.init(jax.random.key(0), x), x)
    assert got.dtype == BF16
    bound = 2.0**-8  # of an element, rounded once
    assert precision.error(got, exact) < bound
    assert precision.error(_bf16_norm(x, axes, 1e-6), exact) > 2 * bound


def _bf16_attention(query, key, value):
    logits = jnp.einsum("bnhd,bmhd->bhnm", query, key) * query.shape[-1] ** -0.5
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits, axis=-1), value)


def _over_time(query, key, value):
    return temporal_attention(*(a[:, :, None] for a in (query, key, value)))[:, :, 0]


@pytest.mark.parametrize("implementation", ["xla", "chunked", "temporal"])
def test_softmax_is_float32(implementation):
    """With logits around 50, whose bfloat16 neighbours are a quarter apart."""
    query, key, value = (normal(1, 32, 2, 64, seed=i, dtype=BF16) for i in range(3))
    query, key = 5.0 * query, 5.0 * key
    q, k, v = (np.asarray(a, np.float64) for a in (query, key, value))
    logits = np.einsum("bnhd,bmhd->bhnm", q, k) / 8.0
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    exact = np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), v)
    call = functools.partial(attention, implementation=implementation)
    got = (_over_time if implementation == "temporal" else call)(query, key, value)
    assert got.dtype == BF16
    assert precision.error(got, exact) < 2.0**-8
    assert precision.error(_bf16_attention(query, key, value), exact) > 2.0**-7


@pytest.mark.parametrize("swap", [False, True])
def test_the_lesser_branch_of_a_blend_is_kept(swap):
    """1 - sigmoid(7) is 0.0009; bfloat16 has nothing between 1 and 0.996, so there it would be 0."""
    mixer = layers.MixFactor(swap=swap)
    little, much = jnp.zeros((1, 2, 2, 2, 4), BF16), jnp.ones((1, 2, 2, 2, 4), BF16)
    branches = (much, little) if swap else (little, much)
    got = mixer.apply({"params": {"mix_factor": jnp.array([7.0], BF16)}}, *branches)
    np.testing.assert_allclose(np.asarray(got, np.float32), 1.0 / (1.0 + np.exp(7.0)), rtol=2**-8)
    assert 1 - jax.nn.sigmoid(jnp.array(7.0, BF16)) == 0.0


def test_sinusoids_are_float32_whatever_they_are_given():
    """Neighbouring levels of a 25-step schedule stay apart, in the embedding of the id 127 too."""
    ids = layers.sinusoid(jnp.array([127.0, 126.0]), 16)
    levels = layers.sinusoid(edm.c_noise(karras_sigmas(25)[:-1]), 16)
    assert ids.dtype == levels.dtype == jnp.float32
    exact = np.cos(127.0 * np.exp(-np.log(1e4) * np.arange(8) / 8))
    np.testing.assert_allclose(np.asarray(ids[0, :8]), exact, atol=2e-5)
    rough = np.asarray(layers.sinusoid(edm.c_noise(karras_sigmas(25)[:-1]).astype(BF16), 16))
    assert precision.error(rough, levels) > 1e-4


def test_taps_of_an_upsampling_are_summed_in_float32():
    """Sums of bfloat16 taps, up to four, are rounded once: as the plain form has it with unrounded sums."""
    x, layer = normal(1, 1, 6, 6, 16, dtype=BF16), layers.Upsample(16, BF16)
    params = precision.cast(init(layer, x), BF16)
    got = layer.apply({"params": params}, x)
    wide = precision.cast((params, x), jnp.float32)
    plain = layers.Upsample(16).apply({"params": wide[0]}, wide[1])
    assert got.dtype == BF16 and precision.error(got, plain) < 3.0e-3  # 3.2e-3 otherwise


# Sampler


def test_sampler_state_is_float32():
    """The closed-form denoiser of Gaussian data: a state in bfloat16 would cost a hundred times the error."""
    std = 0.5

    def denoise(x, sigma, cond, dtype=jnp.float32):
        x = x.astype(dtype).astype(jnp.float32)
        return std**2 / (std**2 + jnp.square(sigma)) * x

    sigmas = karras_sigmas(25)
    start = start_from_noise(normal(1, 2, 4, 4, 4).astype(BF16), sigmas[0])
    x = np.asarray(start, np.float64)
    for s, after in zip(sigmas[:-1].astype(np.float64), sigmas[1:].astype(np.float64), strict=True):
        x0 = std**2 / (std**2 + s**2) * x
        x = x0 + after / s * (x - x0)
    got = sample_scan(denoise, start, sigmas, None)
    assert start.dtype == got.dtype == jnp.float32
    assert precision.error(got, x) < 1e-5
    rounded = sample_scan(functools.partial(denoise, dtype=BF16), start, sigmas, None)
    assert precision.error(rounded, x) > 1e-3


@pytest.mark.parametrize("sigma", [0.002, 700.0])
def test_extreme_levels(narrow, tiny_model, predict, cond, sigma):
    """x0 is finite and as float32 has it, at levels of which one squared is beyond float16."""
    x = edm.add_noise(0.5 * cond.latents, normal(1, 3, 8, 12, 4, seed=5), sigma)
    got, exact = (
        edm.denoised_from_v(predict(m, x, sigma, cond), x, sigma) for m in (narrow, tiny_model)
    )
    assert got.dtype == jnp.float32 and np.isfinite(np.asarray(got)).all()
    assert precision.error(got, exact) < (1e-4 if sigma < 1 else 0.04)


def test_coefficients_at_extreme_levels_are_float32():
    """Also of a level and a prediction in half precision; in float16 the square of 700 is infinite."""
    x, v = 700.0 * normal(4096, seed=1), normal(4096, seed=2)
    exact = np.asarray(x, np.float64) / (1 + 700.0**2)
    exact = exact - 700.0 / np.sqrt(1 + 700.0**2) * np.asarray(v, np.float64)
    got = edm.denoised_from_v(v.astype(BF16), x, jnp.array(700.0, BF16))
    assert got.dtype == jnp.float32 and precision.error(got, exact) < 2**-8
    half = jnp.float16(700.0)
    assert not jnp.isfinite(half * half) and 1 / (1 + half * half) == 0


def test_nothing_known_gives_no_loss_and_no_gradient():
    """Whatever a half-precision network says under an empty mask, NaN and infinity included."""
    shape = (1, 2, 4, 4, 4)
    said = normal(*shape, dtype=BF16).at[0, 0, 0, 0].set(jnp.array([jnp.nan, jnp.inf, 1e38, -1e38]))
    clean = jnp.zeros(shape)
    for normalise in ("all", "mask"):
        loss = functools.partial(v_loss, normalise=normalise)
        args = (clean, clean, 700.0, jnp.zeros(shape[:-1], bool))
        value, slope = jax.value_and_grad(loss)(said, *args)
        assert value == 0.0 and value.dtype == jnp.float32
        assert not np.asarray(slope, np.float32).any()


# LoRA


def test_small_updates_add_up_in_float32():
    """Steps of 2^-10 of a delta, each below half of a bfloat16 ulp, move it; in bfloat16 they would not."""
    delta = {"a": jnp.ones((4, 2)), "b": jnp.ones((2, 4))}
    wide, narrow = delta, precision.cast(delta, BF16)
    for _ in range(64):
        wide, narrow = (jax.tree.map(lambda x: x - x.dtype.type(2**-10), d) for d in (wide, narrow))
    assert np.asarray(wide["b"] == 1 - 64 * 2**-10).all()
    assert np.asarray(narrow["b"] == 1).all()


class _Toy(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(256, dtype=BF16, use_bias=False, name="layer")(x)


@pytest.mark.parametrize("merged", [False, True])
def test_deltas_of_a_hundredth_of_the_kernel_are_kept(merged):
    """Beside a bfloat16 layer and merged into it; of a ten-thousandth, either loses most: see precision.md."""
    x, kernel = normal(512, 256, dtype=BF16), normal(256, 256, seed=1, scale=1 / 16, dtype=BF16)
    params = {"layer": {"kernel": kernel}}
    exact = np.asarray(x, np.float64)
    start = exact @ np.asarray(kernel, np.float64)

    def kept(size):
        a, b = normal(256, 4, seed=2, scale=1 / 16), normal(4, 256, seed=3, scale=size / 2)
        effect = exact @ np.asarray(a, np.float64) @ np.asarray(b, np.float64)
        lora = {"layer": {"a": a, "b": b}}
        used, beside = (lora_tree.merge(params, lora), {}) if merged else (params, lora)
        with adapters(beside):
            y = _Toy().apply({"params": used}, x)
        assert y.dtype == BF16
        return precision.share(np.asarray(y, np.float64) - start, effect)

    assert abs(kept(1e-2) - 1) < 0.01
    assert kept(1e-4) < 0.3


def test_gradients_of_deltas_beside_a_bfloat16_network():
    """float32, and those of the float32 network but for the activations' rounding."""
    x, context, weight = normal(1, 3, 4, 4, 32), normal(1, 1, 16, seed=1), normal(1, 3, 4, 4, 32)
    params = init(transformer.Transformer(2), x, context)
    deltas = lora_tree.init(jax.random.key(0), params, ("spatial", "temporal"), 2)
    deltas = {path: {"a": d["a"], "b": 0.05 * normal(*d["b"].shape)} for path, d in deltas.items()}

    def gradient(dtype):
        module, low = transformer.Transformer(2, dtype=dtype), precision.cast(params, dtype)

        def loss(deltas):
            with adapters(deltas):
                y = module.apply({"params": low}, x.astype(dtype), context)
            return jnp.mean(weight * y.astype(jnp.float32))

        return jax.jit(jax.grad(loss))(deltas)

    got = gradient(BF16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got))
    assert precision.error(got, gradient(jnp.float32)) < 2 * GRADIENT


# Where float16 fails


def both_halves(module, params, *args, **options):
    """A module's float32 answer, and those in bfloat16 and float16."""
    answers = []
    for dtype in (jnp.float32, BF16, jnp.float16):
        low = precision.cast((params, args), dtype)
        twin = module.clone(dtype=dtype)
        answers.append(np.asarray(twin.apply({"params": low[0]}, *low[1], **options), np.float64))
    exact, bfloat, half = answers
    assert np.isfinite(exact).all()
    return exact, bfloat, half


def init(module, *args):
    """Random parameters of about unit gain."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]

    def draw(path, leaf):
        kernel = path[-1].key == "kernel"
        spread = np.prod(leaf.shape[:-1]) ** -0.5 if kernel else 0.1
        start = 1.0 if path[-1].key == "scale" else 0.0
        return start + normal(*leaf.shape, seed=leaf.size, scale=spread)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def assert_only_float16_fails(exact, bfloat, half, bound=0.03):
    assert precision.error(bfloat, exact) < bound  # thus finite
    assert not np.isfinite(half).all()


def test_residual_stream_of_the_decoder():
    """The autoencoder of the Stable Diffusion family overflows float16; its norms would bring it back."""
    module = vae.VAE(vae.VAEConfig(block_out_channels=(32,), layers_per_block=2))
    images = jnp.zeros((1, 1, 8, 8, 3))
    params = init(module, images)
    params["decoder"]["conv_in"]["kernel"] = 3e4 * params["decoder"]["conv_in"]["kernel"]
    answers = both_halves(module, params, normal(1, 2, 4, 4, 4), method=vae.VAE.decode)
    assert_only_float16_fails(*answers)


def test_residual_stream_of_a_resnet():
    """Sums beyond 65504, as in the last blocks on the way up, out and into a norm."""
    block = resnet.SpatioTemporalResBlock(32, 1e-5, 1e-5)
    x, embedding = normal(1, 2, 4, 4, 32, scale=4e4), normal(1, 16)
    params = init(block, x, embedding)
    assert_only_float16_fails(*both_halves(block, params, x, embedding))


def test_product_of_a_gated_feed_forward():
    """Factors of 300 give 90000."""
    layer = layers.FeedForward()
    x = normal(1, 2, 3, 32)
    params = init(layer, x)
    params["net_0"]["proj"]["kernel"] = 300.0 * params["net_0"]["proj"]["kernel"]
    assert_only_float16_fails(*both_halves(layer, params, x))


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
def test_logits_of_a_head_512_wide(implementation):
    """Before their scale they are beyond float16; ours are float32 from the product on."""
    query = normal(1, 16, 1, 512, scale=12.0, dtype=BF16)
    value = normal(1, 16, 1, 512, seed=1, dtype=BF16)
    wide = [a.astype(jnp.float32) for a in (query, query, value)]
    exact = attention(*wide, implementation)
    half = _half_attention(*(a.astype(jnp.float16) for a in wide))
    assert_only_float16_fails(exact, attention(query, query, value, implementation), half)


_half_attention = _bf16_attention  # computes in what it is given


def test_activations_at_the_end_of_a_network(narrow, tiny_model, predict, cond):
    """A U-Net whose last block on the way up is 10^5 times as loud."""
    x = normal(1, 3, 8, 12, 4, seed=5)

    def loud(params):
        params = jax.tree.map(lambda p: p, params)
        at = params["unet"]["up_blocks_1"]["resnets_1"]["spatial_res_block"]["conv2"]
        at["kernel"] = 1e5 * at["kernel"]
        return params

    def run(model):
        model = VideoModel(model.networks, loud(model.params), tiny.CONFIG)
        return np.asarray(predict(model, x, 1.0, cond))

    assert_only_float16_fails(
        run(tiny_model), run(narrow), run(model_in(tiny_model.params, jnp.float16))
    )


# Modules


# RMS error, the worst of its kind, measured on the tiny network (random weights), operation by operation, jax
# 0.10.2 on a CPU. Twice that is allowed: other versions and devices sum in another order and round other values,
# and one more rounding to bfloat16 (1.7e-3) is within it.
MEASURED = {
    "time embedding (MLP)": 6.7e-3,
    "GroupNorm": 3.7e-3,
    "LayerNorm": 3.2e-3,
    "resnet, spatial": 5.9e-3,
    "resnet, temporal": 4.5e-3,
    "resnet, both blended": 6.4e-3,
    "self-attention, spatial": 5.8e-3,
    "self-attention, temporal": 5.0e-3,
    "cross-attention": 4.4e-3,
    "feed-forward": 6.5e-3,
    "transformer block, spatial": 6.3e-3,
    "transformer block, temporal": 6.4e-3,
    "transformer, both blended": 8.0e-3,
    "blend": 2.1e-3,
    "downsample": 3.4e-3,
    "upsample": 3.9e-3,
}
GRADIENT = 0.010  # of the deltas of one transformer, likewise


@pytest.fixture(scope="module")
def module_errors(tiny_params, narrow, tiny_model, cond):
    params = tiny_model.params["unet"]
    with precision.probed(params, narrow.params["unet"]) as found:
        network = tiny_model.network(params)
        edm.predict_v(network, normal(1, 3, 8, 12, 4, seed=5), 1.0, cond)
    return {kind: max(errors["all"]) for kind, errors in found.items()}


def test_every_kind_of_module(module_errors):
    assert set(module_errors) == set(MEASURED)
    high = {k: v for k, v in module_errors.items() if v > 2 * MEASURED[k]}
    assert not high


# The study's own arithmetic


def test_measures_of_the_study():
    expected = {"a": np.ones(4), "b": 2.0 * np.ones((1, 2))}
    found = {"a": 1.1 * np.ones(4), "b": 2.2 * np.ones((1, 2))}
    assert precision.error(found, expected) == pytest.approx(0.1)
    assert precision.psnr(np.full(8, 0.6), np.full(8, 0.5)) == pytest.approx(20.0)
    rng = np.random.default_rng(0)
    effect = rng.standard_normal(4096)
    assert precision.share(0.5 * effect + rng.standard_normal(4096), effect) == pytest.approx(
        0.5, abs=0.05
    )


def test_page_of_the_study():
    given = precision.parse(["--steps=2", "--out=page.md"])
    assert given.model == "bundled:prior_small" and str(given.out) == "page.md"
    modules = precision.module_table({"norm": {"weights": [1e-3, 3e-3], "all": [2e-3, 4e-3]}})
    assert "| norm | 2 | 2.0e-03 | 3.0e-03 | 4.0e-03 |" in modules
    rows = precision.row_table([("frames", np.nan, 0.5, "PSNR 40.0 dB")])
    assert "| frames |  | 5.0e-01 | PSNR 40.0 dB |" in rows
    page = precision.document(given, "14 frames", (modules, rows), "effects", 3.0)
    assert "--steps=2" in page and modules in page and rows in page and "CPU" in page
