"""Attention against a float64 softmax, the chunked form against the plain one, and its memory."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from recapture_jax.models import attention as module
from recapture_jax.models.attention import attention, temporal_attention

HEADS, DIM = 2, 8


def draw(tokens=23, keys=23, batch=2, dtype=np.float32, heads=HEADS, dim=DIM):
    rng = np.random.default_rng(0)
    shapes = [(batch, n, heads, dim) for n in (tokens, keys, keys)]
    return tuple(jnp.asarray(rng.standard_normal(s), dtype) for s in shapes)


def oracle(query, key, value):
    q, k, v = (np.asarray(a, np.float64) for a in (query, key, value))
    logits = np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), v)


def rel(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("implementation", ["auto", "xla", "chunked"])
@pytest.mark.parametrize("keys", [23, 5], ids=["self", "cross"])
def test_against_float64(implementation, keys):
    args = draw(keys=keys)
    assert rel(attention(*args, implementation), oracle(*args)) <= 1e-6


# Logits per chunk: 23 queries in blocks of 4 (a ragged tail of 3), of 1, and all at once.
@pytest.mark.parametrize("logits", [4 * HEADS * 23, 1, 10**6], ids=["ragged", "rows", "whole"])
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
def test_chunked_is_plain_with_all_gradients(monkeypatch, logits, dtype, tolerance):
    monkeypatch.setattr(module, "CHUNK_LOGITS", logits)
    args = draw(dtype=dtype)
    probe = draw()[2]

    def run(implementation):
        def loss(*args):
            out = attention(*args, implementation)
            return (out.astype(jnp.float32) * probe).sum(), out

        grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*args)
        return out, *grads

    for chunked, plain in zip(run("chunked"), run("xla"), strict=True):
        assert chunked.dtype == plain.dtype == dtype
        assert rel(chunked, plain) <= tolerance


def test_temporal_attention_is_attention_at_every_position():
    rng = np.random.default_rng(1)
    args = [jnp.asarray(rng.standard_normal((2, 5, 3, HEADS, DIM)), jnp.float32) for _ in range(3)]
    out = temporal_attention(*args)
    for s in range(3):
        assert rel(out[:, :, s], oracle(*(a[:, :, s] for a in args))) <= 1e-6


def test_softmax_is_float32_in_half_precision():
    """Scores of bfloat16 inputs are not rounded: the oracle on the same inputs would show it."""
    query, key, value = (8.0 * a for a in draw(dtype=jnp.bfloat16))
    for implementation in ("xla", "chunked"):
        assert rel(attention(query, key, value, implementation), oracle(query, key, value)) <= 4e-3


def test_memory_of_chunked_does_not_grow_with_the_logits():
    """Forward and backward of 8192 tokens and 4 heads, compiled from shapes only."""
    tokens, heads, dim = 8192, 4, 64
    logits = 4 * heads * tokens**2  # bytes in float32: 1 GiB
    shape = jax.ShapeDtypeStruct((1, tokens, heads, dim), jnp.float32)

    def temp_bytes(implementation):
        def loss(q, k, v):
            return jnp.square(attention(q, k, v, implementation)).sum()

        step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        return step.lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes

    assert temp_bytes("xla") > logits
    # Four buffers of one chunk (logits, weights and their gradients) and a few of q's size.
    chunk, query = 4 * module.CHUNK_LOGITS, 4 * tokens * heads * dim
    assert temp_bytes("chunked") < 4 * chunk + 6 * query < logits / 5


@pytest.mark.parametrize(
    "platform, dtype, small, large, head",
    [
        ("cpu", jnp.bfloat16, "xla", "chunked", "chunked"),
        ("gpu 8.0", jnp.float32, "xla", "chunked", "chunked"),
        ("gpu 8.0", jnp.bfloat16, "cudnn", "cudnn", "chunked"),
        ("gpu 12.0", jnp.bfloat16, "cudnn", "cudnn", "chunked"),
        ("gpu 7.5", jnp.bfloat16, "xla", "chunked", "chunked"),
        ("gpu gfx90a", jnp.bfloat16, "xla", "chunked", "chunked"),
        ("tpu", jnp.bfloat16, "xla", "flash", "flash"),
    ],
)
def test_auto_follows_platform_dtype_and_shape(monkeypatch, platform, dtype, small, large, head):
    """The lowest level of SVD, its highest, and the one wide head of its autoencoder."""
    platform, _, capability = platform.partition(" ")
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    shapes = ((1, 576, 20, 64), (14, 9216, 5, 64), (1, 9216, 1, 512))
    queries = [jax.ShapeDtypeStruct(s, dtype) for s in shapes]
    assert [module._choose(q, q) for q in queries] == [small, large, head]
    cross = jax.ShapeDtypeStruct((14, 77, 5, 64), dtype)
    assert platform != "tpu" or module._choose(queries[1], cross) != "flash"


def test_auto_keeps_to_the_cache_of_a_cpu(monkeypatch):
    queries = jax.ShapeDtypeStruct((14, 960, 1, 64), jnp.float32)  # 12 M logits
    assert module._choose(queries, queries) == "chunked"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert module._choose(queries, queries) == "xla"


def test_blocks_are_even():
    """1536 queries of which 1092 would fill a chunk: two blocks of 768, not 1092 and a padded 444."""
    q = jax.ShapeDtypeStruct((1, 1536, 5, 64), jnp.float32)
    text = str(jax.make_jaxpr(module._chunked)(q, q, q))
    assert "f32[1,768,5,64]" in text and "1092" not in text


# Rows that fill no block, narrow and wide heads.
@pytest.mark.parametrize(
    "tokens, keys, dim, dtype, tolerance",
    [(300, 300, 64, jnp.float32, 3e-6), (70, 200, 160, jnp.float32, 3e-6)]
    + [(140, 140, 64, jnp.bfloat16, 1e-2)],
)
def test_tpu_kernel_is_plain_with_all_gradients(tokens, keys, dim, dtype, tolerance):
    """JAX's kernel as we call it, run by Pallas' interpreter of TPU programs."""
    args = draw(tokens, keys, 1, dtype, 2, dim)

    def run(implementation):
        def loss(*args):
            out = attention(*args, implementation)
            return jnp.square(out.astype(jnp.float32)).sum(), out

        grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*args)
        return jax.block_until_ready((out, *grads))

    with pltpu.force_tpu_interpret_mode():
        fused = run("flash")
    for ours, plain in zip(fused, run("xla"), strict=True):
        assert ours.dtype == plain.dtype == dtype
        assert rel(ours, plain) <= tolerance


@pytest.mark.parametrize("shape", [(14, 9216, 5, 64), (1, 9216, 1, 512)], ids=["unet", "vae"])
def test_tpu_kernel_lowers_forward_and_backward(shape):
    shape = jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    def loss(*args):
        return jnp.square(attention(*args, "flash").astype(jnp.float32)).sum()

    run = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    text = run.trace(shape, shape, shape).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") >= 3  # forward, keys and values, queries
    assert "9216x9216" not in text


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_cudnn_lowers_for_gpus(monkeypatch, backward):
    """Its checks look for a GPU; what is lowered then needs none."""
    shape = jax.ShapeDtypeStruct((14, 9216, 5, 64), jnp.bfloat16)
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 90100
    )
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_compute_capability", lambda *_: True
    )

    def loss(*args):
        return jnp.square(attention(*args, "cudnn").astype(jnp.float32)).sum()

    run = jax.jit(jax.grad(loss, argnums=(0, 1, 2)) if backward else loss)
    text = run.trace(shape, shape, shape).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmha" in text and "9216x9216" not in text


def test_unknown_implementation():
    with pytest.raises(ValueError, match="ring.*expected one of"):
        attention(*draw(), "ring")


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_chunked_lowers_for_accelerators(platform):
    shape = jax.ShapeDtypeStruct((1, 9216, 5, 64), jnp.bfloat16)
    run = jax.jit(functools.partial(attention, implementation="chunked"))
    text = run.trace(shape, shape, shape).lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.while" in text  # a loop over chunks
    assert "9216x9216" not in text  # and never the whole logits


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
def test_cudnn_is_plain_with_all_gradients():
    args = draw(tokens=128, keys=128, dtype=jnp.bfloat16, heads=4, dim=64)

    def run(implementation):
        def loss(*args):
            out = attention(*args, implementation)
            return jnp.square(out.astype(jnp.float32)).sum(), out

        grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*args)
        return out, *grads

    for fused, plain in zip(run("cudnn"), run("xla"), strict=True):
        assert rel(fused, plain) <= 1e-2
