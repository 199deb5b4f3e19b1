"""Attention against a float64 softmax, the chunked form against the plain one, and its memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_auto_chunks_where_the_logits_are_large():
    small = jax.ShapeDtypeStruct((1, 1024, 5, 64), jnp.float32)
    large = jax.ShapeDtypeStruct((14, 9216, 5, 64), jnp.float32)
    assert module._choose(small, small) == "xla"
    assert module._choose(large, large) == "chunked"


def test_unknown_implementation():
    with pytest.raises(ValueError, match="flash.*expected one of"):
        attention(*draw(), "flash")


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
