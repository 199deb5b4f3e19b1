"""Multi-head attention on `[..., tokens, heads, head_dim]`, one function for every caller.

`xla` forms the full logits; `chunked` never holds more than `CHUNK_LOGITS` of them (forward and
backward), which is what makes 9216 spatial tokens fit; `cudnn` is NVIDIA's fused kernel, `flash` JAX's for
TPUs. The softmax is float32 everywhere.

XLA's partitioner splits `xla` over devices as it splits any product. It cannot split a TPU kernel, nor the loop of
`chunked`, whose every device would fetch the whole batch and do all of it: within `split_over` these run on every
device on its own part of the batch.
"""

import contextlib
import contextvars
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

IMPLEMENTATIONS = ("auto", "xla", "chunked", "cudnn", "flash")
CHUNK_LOGITS = 8 * 2**20  # logits (float32) of one chunk: 32 MiB
_AUTO_LOGITS = 64 * 2**20  # above 256 MiB of logits, 'auto' chunks
# A CPU's cache holds a chunk, not all logits. At 26 M of them chunked took half the time of xla forward and
# two thirds forward and backward; at 3 M they were equal.
_AUTO_LOGITS_CPU = CHUNK_LOGITS
_FLASH_TOKENS = (
    1024  # from here on 'auto' takes the kernel on TPUs; shorter rows are mostly padding
)
_CUDNN_CAPABILITY = 8.0  # NVIDIA's support matrix of cuDNN's fused attention
_LANES = 128  # of a TPU; the kernel's blocks are whole multiples
_FLASH_BLOCK = 512  # tokens of its largest block
_split = contextvars.ContextVar("split", default=None)  # (mesh, axes) of `split_over`


@contextlib.contextmanager
def split_over(mesh: Mesh, axes: tuple[str, ...]):
    """While tracing within it: the batch of `attention` lies on `mesh`, split over `axes` in this order.

    A batch that does not divide, as one without axes, is whole on every device. On one device nothing changes.
    """
    token = _split.set((mesh, axes) if mesh.size > 1 else None)
    try:
        yield
    finally:
        _split.reset(token)


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, implementation: str = "auto"
) -> jax.Array:
    """Softmax attention with scale 1/sqrt(head_dim).

    Args:
      query: `[B, N, H, D]`.
      key: `[B, M, H, D]`.
      value: `[B, M, H, D]`.
      implementation: one of `IMPLEMENTATIONS`. 'auto' takes cudnn on GPUs where its limits allow
        (Ampere or newer, half precision, D a multiple of 8 and at most 128), flash on TPUs for self-attention of 1024
        tokens or more, else chunked above 256 MiB of logits on a device, on CPUs above 32 MiB.

    Returns:
      `[B, N, H, D]` in the dtype of `query`.

    Raises:
      ValueError: for an unknown implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention implementation {implementation!r}: expected one of {IMPLEMENTATIONS}"
        )
    mesh, axes = _split.get() or (None, ())
    parts = math.prod(mesh.shape[a] for a in axes)
    if len(query) % parts:
        axes, parts = (), 1
    if implementation == "auto":
        implementation = _choose(query, key, parts)
    kernel = {"xla": _plain, "chunked": _chunked, "cudnn": _cudnn, "flash": _flash}[implementation]
    # What is not split is left to XLA, but for the TPU kernel, which it refuses on a mesh.
    if mesh is not None and (implementation == "flash" or implementation != "xla" and parts > 1):
        # Without the check: JAX's kernel does not say which axes its results vary over.
        spec = P(axes or None)
        kernel = jax.shard_map(
            kernel, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False
        )
    return kernel(query, key, value)


def temporal_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention over axis 1 of `[B, T, S, H, D]`, separately for each of the S positions."""
    last = (0, 2, 3, 1, 4)  # -> [B, S, H, T, D]
    out = _softmax_product(*(x.transpose(last) for x in (query, key, value)))
    return out.transpose(0, 3, 1, 2, 4)


def device_has_cudnn() -> bool:
    """Whether the devices here are GPUs that cuDNN's kernel runs on: compute capability 8.0 (Ampere) or above.

    JAX itself would only find out when it compiles, and refuse.
    """
    if jax.default_backend() != "gpu":
        return False
    capability = getattr(jax.local_devices()[0], "compute_capability", "")
    try:
        return float(capability) >= _CUDNN_CAPABILITY
    except ValueError:  # AMD's have names
        return False


def _choose(query: jax.Array, key: jax.Array, parts: int = 1) -> str:
    """What 'auto' takes; parts: devices that share the batch."""
    b, n, heads, dim = query.shape
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    if half and dim % 8 == 0 and dim <= 128 and device_has_cudnn():
        return "cudnn"
    if jax.default_backend() == "tpu" and min(n, key.shape[1]) >= _FLASH_TOKENS:
        return "flash"
    limit = _AUTO_LOGITS_CPU if jax.default_backend() == "cpu" else _AUTO_LOGITS
    return "chunked" if b // parts * heads * n * key.shape[1] > limit else "xla"


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


def _cudnn(query, key, value):
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def _chunked(query, key, value):
    """One batch item, then one block of queries at a time; the backward pass recomputes the block."""
    _, n, heads, _ = query.shape
    most = max(1, min(n, CHUNK_LOGITS // (heads * key.shape[1])))
    blocks = -(-n // most)
    rows = -(-n // blocks)  # equal blocks: less than a row of padding in each
    padded = jnp.pad(query, ((0, 0), (0, blocks * rows - n), (0, 0), (0, 0)))

    @jax.checkpoint
    def block(q, k, v):
        return _plain(q[None], k[None], v[None])[0]

    def item(args):
        q, k, v = args
        parts = jax.lax.map(lambda part: block(part, k, v), q.reshape(blocks, rows, *q.shape[1:]))
        return parts.reshape(blocks * rows, *q.shape[1:])[:n]

    return jax.lax.map(item, (padded, key, value))


def _flash(query, key, value):
    """JAX's kernel for TPUs, on tokens padded to whole blocks; padded keys are of another segment.

    Heads narrower than the TPU's lanes, or not a multiple of them, are filled up with zeros, which change
    no product.
    """
    # Imported here: it takes half a second, and only TPUs need it.
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel

    tokens, dim = query.shape[1], query.shape[3]
    block, (query, real), (key, keys_real), (value, _) = _to_blocks(query, key, value)
    backward = ("q_major_dkv", "k_major_dkv", "k_dkv", "q_dkv", "k_major_dq", "k_dq", "q_dq")
    sizes = kernel.BlockSizes(
        block_q=block,
        block_k_major=block,
        block_k=block,
        block_b=1,
        **{f"block_{name}": block for name in backward},
    )
    segments = kernel.SegmentIds(q=real, kv=keys_real)
    out = kernel.flash_attention(
        query, key, value, segment_ids=segments, sm_scale=dim**-0.5, block_sizes=sizes
    )
    return out.transpose(0, 2, 1, 3)[:, :tokens, :, :dim]


def _to_blocks(*arrays):
    """The block and, for each `[B, N, H, D]`, the pair of it as `[B, H, N', D']`, filled up with zeros to whole
    blocks and lanes, and `[B, N']`, 1 or 0 where it is filled."""
    longest = max(a.shape[1] for a in arrays)
    block = min(_FLASH_BLOCK, -(-longest // _LANES) * _LANES)
    found = []
    for a in arrays:
        batch, n, _, dim = a.shape
        more, wider = -n % block, -dim % _LANES
        padded = jnp.pad(a, ((0, 0), (0, more), (0, 0), (0, wider))).transpose(0, 2, 1, 3)
        real = jnp.broadcast_to((jnp.arange(n + more) < n).astype(jnp.int32), (batch, n + more))
        found.append((padded, real))
    return block, *found
