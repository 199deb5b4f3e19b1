"""Multi-head attention on `[..., tokens, heads, head_dim]`, one function for every caller.

`xla` forms the full logits; `chunked` never holds more than `CHUNK_LOGITS` of them (forward and
backward), which is what makes 9216 spatial tokens fit; `cudnn` is NVIDIA's fused kernel. The softmax is
float32 everywhere.
"""

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ("auto", "xla", "chunked", "cudnn")
CHUNK_LOGITS = 8 * 2**20  # logits (float32) of one chunk: 32 MiB
_AUTO_LOGITS = 64 * 2**20  # above 256 MiB of logits, 'auto' chunks


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, implementation: str = "auto"
) -> jax.Array:
    """Softmax attention with scale 1/sqrt(head_dim).

    Args:
      query: `[B, N, H, D]`.
      key: `[B, M, H, D]`.
      value: `[B, M, H, D]`.
      implementation: one of `IMPLEMENTATIONS`. 'auto' takes cudnn on GPUs where its limits allow
        (half precision, D a multiple of 8 and at most 128), else chunked above 256 MiB of logits.

    Returns:
      `[B, N, H, D]` in the dtype of `query`.

    Raises:
      ValueError: for an unknown implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention implementation {implementation!r}: expected one of {IMPLEMENTATIONS}"
        )
    if implementation == "auto":
        implementation = _choose(query, key)
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
    if implementation == "chunked":
        return _chunked(query, key, value)
    return _plain(query, key, value)


def temporal_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention over axis 1 of `[B, T, S, H, D]`, separately for each of the S positions."""
    last = (0, 2, 3, 1, 4)  # -> [B, S, H, T, D]
    out = _softmax_product(*(x.transpose(last) for x in (query, key, value)))
    return out.transpose(0, 3, 1, 2, 4)


def _choose(query: jax.Array, key: jax.Array) -> str:
    b, n, heads, dim = query.shape
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    if jax.default_backend() == "gpu" and half and dim % 8 == 0 and dim <= 128:
        return "cudnn"
    return "chunked" if b * heads * n * key.shape[1] > _AUTO_LOGITS else "xla"


def _plain(query, key, value):
    heads_first = (0, 2, 1, 3)
    out = _softmax_product(*(x.transpose(heads_first) for x in (query, key, value)))
    return out.transpose(heads_first)


def _softmax_product(query, key, value):
    """softmax(q k' / sqrt(D)) v on `[..., tokens, D]`.

    The product is divided by the softmax's sum, not the weights: D columns in place of M. The maximum is a
    shift that cancels, so its gradient is none. Against weights divided first, with heads inside, XLA:CPU takes
    a tenth of the time forward and a third backward.
    """
    logits = jnp.einsum("...nd,...md->...nm", query, key, preferred_element_type=jnp.float32)
    logits = logits * query.shape[-1] ** -0.5
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    product = jnp.einsum(
        "...nm,...md->...nd",
        weights.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    return (product / weights.sum(axis=-1, keepdims=True)).astype(query.dtype)


def _chunked(query, key, value):
    """One batch item, then one block of queries at a time; the backward pass recomputes the block."""
    _, n, heads, _ = query.shape
    rows = max(1, min(n, CHUNK_LOGITS // (heads * key.shape[1])))
    blocks = -(-n // rows)
    padded = jnp.pad(query, ((0, 0), (0, blocks * rows - n), (0, 0), (0, 0)))

    @jax.checkpoint
    def block(q, k, v):
        return _plain(q[None], k[None], v[None])[0]

    def item(args):
        q, k, v = args
        parts = jax.lax.map(lambda part: block(part, k, v), q.reshape(blocks, rows, *q.shape[1:]))
        return parts.reshape(blocks * rows, *q.shape[1:])[:n]

    return jax.lax.map(item, (padded, key, value))
