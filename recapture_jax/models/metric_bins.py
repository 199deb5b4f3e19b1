"""ZoeDepth's metric heads: depth as the mean over bins that are placed anew at every pixel.

Bhat et al. 2023 (arXiv 2302.12288). From the coarsest features a seed of bin centres is predicted;
at each finer scale a few attractor points pull the centres towards them; at full size a binomial
distribution over the bins gives the depth. One such head makes metres of one kind of scene. Several
share what computes their inputs, and a small transformer says which of them an image is for.

Two properties of the published weights look like mistakes and belong to them: the pull of an
attractor has strength 300 whatever `attractor_alpha` says (1000 in the configs), and with several
heads there are 16 attractors at every scale whatever `num_attractors` says.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from recapture_jax.models.attention import attention
from recapture_jax.models.layers import LayerNorm, conv2d, gelu, sinusoid
from recapture_jax.models.resize import resize_linear

CENTRES = ("softplus", "normed")
_STRENGTH = 300.0
_SHARED_ATTRACTORS = 16
_FLOOR = 1e-3  # added to rectified values before they are normalised
_EPSILON = 1e-4  # keeps probabilities and temperatures away from 0


@dataclasses.dataclass(frozen=True)
class Bins:
    """One head.

    Attributes:
        name: of the domain, '' for an only head.
        n_bins: their number.
        min_depth, max_depth: metres; 'normed' centres stay between them, 'softplus' ones need not.
    """

    name: str
    n_bins: int
    min_depth: float
    max_depth: float


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Sizes of the metric head, named as in a Hugging Face config.json.

    Attributes:
        bins: the heads; one, or one per domain.
        bin_embedding_dim: channels of the embeddings that move the bins.
        num_attractors: per scale, coarse to fine, of an only head.
        bin_centers_type: one of CENTRES.
        min_temp, max_temp: range of the temperature of the distribution over bins.
        patch_transformer_hidden_size, .._intermediate_size, .._num_attention_heads, and
            num_patch_transformer_layers: of the classifier of domains.
    """

    bins: tuple[Bins, ...]
    bin_embedding_dim: int
    num_attractors: tuple[int, ...]
    bin_centers_type: str
    min_temp: float
    max_temp: float
    patch_transformer_hidden_size: int = 128
    patch_transformer_intermediate_size: int = 1024
    patch_transformer_num_attention_heads: int = 4
    num_patch_transformer_layers: int = 4


class _PointMLP(nn.Module):
    """Two 1x1 convolutions around a rectifier."""

    hidden: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(conv2d(self.hidden, 1, "conv1", jnp.float32)(x))
        return conv2d(self.features, 1, "conv2", jnp.float32)(x)


def log_binomial(n: int) -> np.ndarray:
    """[n + 1] float32: log of n over k by Stirling's formula, as the weights were trained with."""
    epsilon = np.float32(1e-7)
    k = np.arange(n + 1, dtype=np.float32) + epsilon
    n = np.float32(n) + epsilon
    return n * np.log(n) - k * np.log(k) - (n - k) * np.log(n - k + epsilon)


class _BinWeights(nn.Module):
    """Weights [B, H, W, n_bins], sum 1, from features and the finest bin embedding.

    Attributes:
        config: of the head.
        n_bins: number of bins.
        hidden: channels between the two convolutions.
    """

    config: HeadConfig
    n_bins: int
    hidden: int

    @nn.compact
    def __call__(self, features: jax.Array, embedding: jax.Array) -> jax.Array:
        cfg = self.config
        x = jnp.concatenate([features, embedding], axis=-1)
        x = gelu(conv2d(self.hidden, 1, "mlp_0", jnp.float32)(x))
        x = jax.nn.softplus(conv2d(4, 1, "mlp_2", jnp.float32)(x)) + _EPSILON
        chance = x[..., 0:1] / (x[..., 0:1] + x[..., 1:2])
        warmth = x[..., 2:3] / (x[..., 2:3] + x[..., 3:4])
        temperature = (cfg.max_temp - cfg.min_temp) * warmth + cfg.min_temp
        last = self.n_bins - 1
        k = jnp.arange(self.n_bins, dtype=jnp.float32)[None, None, None]
        logits = (
            jnp.asarray(log_binomial(last))[None, None, None]
            + k * jnp.log(jnp.clip(chance, _EPSILON, 1.0))
            + (last - k) * jnp.log(jnp.clip(1.0 - chance, _EPSILON, 1.0))
        )
        return jax.nn.softmax(logits / temperature, axis=-1)


class _BinHead(nn.Module):
    """Depth [B, H, W] from the bottleneck, its embedding, an embedding per scale and features.

    Attributes:
        config: of the metric head.
        bins: this head's.
        num_attractors: per scale.
        seed_hidden: channels inside the predictor of the seed.
        bottleneck_factor: features and embedding have so many times the channels of `_BinWeights`.
    """

    config: HeadConfig
    bins: Bins
    num_attractors: tuple[int, ...]
    seed_hidden: int
    bottleneck_factor: int

    @nn.compact
    def __call__(
        self, bottleneck: jax.Array, embeddings: Sequence[jax.Array], features: jax.Array
    ) -> jax.Array:
        dim = self.config.bin_embedding_dim
        low, span = self.bins.min_depth, self.bins.max_depth - self.bins.min_depth
        normed = self.config.bin_centers_type == "normed"
        seed = _PointMLP(self.seed_hidden, self.bins.n_bins, name="seed_bin_regressor")(bottleneck)
        centres = _normed_centres(seed) if normed else jax.nn.softplus(seed)
        for i, count in enumerate(self.num_attractors):
            size = embeddings[i + 1].shape[1:3]
            x = embeddings[i + 1] + resize_linear(embeddings[i], size, align_corners=True)
            points = _PointMLP(dim, 2 * count if normed else count, name=f"attractors_{i}")(x)
            # Of the pairs that a normalisation would need, the first ones are used alone.
            points = jax.nn.relu(points[..., ::2]) + _FLOOR if normed else jax.nn.softplus(points)
            centres = _attract(resize_linear(centres, size, align_corners=True), points)
        if normed:
            centres = jnp.sort(jnp.clip(low + span * centres, low, low + span), axis=-1)
        size = features.shape[1:3]
        embedding = resize_linear(embeddings[-1], size, align_corners=True)
        hidden = (features.shape[-1] + dim) // self.bottleneck_factor
        weights = _BinWeights(
            self.config, self.bins.n_bins, hidden, name="conditional_log_binomial"
        )(features, embedding)
        return jnp.sum(weights * resize_linear(centres, size, align_corners=True), axis=-1)


def _normed_centres(seed: jax.Array) -> jax.Array:
    """Middles of bins that fill [0, 1], their widths in proportion to the rectified seed."""
    widths = jax.nn.relu(seed) + _FLOOR
    widths = widths / widths.sum(axis=-1, keepdims=True)
    return jnp.cumsum(widths, axis=-1) - 0.5 * widths


def _attract(centres: jax.Array, points: jax.Array) -> jax.Array:
    """Centres [.., K] moved by the mean pull of points [.., A]: d / (1 + 300 d^2) at distance d."""
    distance = points[..., :, None] - centres[..., None, :]
    return centres + jnp.mean(distance / (1.0 + _STRENGTH * distance**2), axis=-2)


class _SelfAttention(nn.Module):
    """Multi-head self-attention, [B, N, C] -> [B, N, C]."""

    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]

        def project(name: str) -> jax.Array:
            y = nn.Dense(channels, name=name)(x)
            return y.reshape(*x.shape[:-1], self.num_heads, channels // self.num_heads)

        query, key, value = project("query"), project("key"), project("value")
        mixed = attention(query, key, value, "xla").reshape(x.shape)
        return nn.Dense(channels, name="out_proj")(mixed)


class _EncoderLayer(nn.Module):
    """Post-norm transformer layer with a rectifier, [B, N, C] -> [B, N, C]."""

    num_heads: int
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = LayerNorm(name="norm1")(x + _SelfAttention(self.num_heads, name="self_attn")(x))
        hidden = jax.nn.relu(nn.Dense(self.width, name="linear1")(x))
        return LayerNorm(name="norm2")(x + nn.Dense(x.shape[-1], name="linear2")(hidden))


class _PatchTransformer(nn.Module):
    """One vector [B, C] for a map [B, h, w, D]: what a token put before all pixels gathers."""

    config: HeadConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        dim = cfg.patch_transformer_hidden_size
        x = conv2d(dim, 1, "embedding_convPxP", jnp.float32)(x).reshape(len(x), -1, dim)
        x = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))
        positions = sinusoid(jnp.arange(x.shape[1]), dim)
        x = x + jnp.roll(positions, dim // 2, axis=-1)[None]  # sines first
        for i in range(cfg.num_patch_transformer_layers):
            x = _EncoderLayer(
                cfg.patch_transformer_num_attention_heads,
                cfg.patch_transformer_intermediate_size,
                name=f"transformer_encoder_{i}",
            )(x)
        return x[:, 0]


class _Classifier(nn.Module):
    """Logits of the domains."""

    domains: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(nn.Dense(x.shape[-1], name="linear1")(x))
        return nn.Dense(self.domains, name="linear2")(x)


class MetricHead(nn.Module):
    """Metres from the features of all scales.

    Every head is evaluated: which one counts is for the caller to say, as the frames of one clip
    should agree on it. In float32 throughout.
    """

    config: HeadConfig

    @nn.compact
    def __call__(
        self,
        features: jax.Array,
        bottleneck: jax.Array,
        blocks: Sequence[jax.Array],
        relative: jax.Array,
    ) -> tuple[jax.Array, jax.Array | None]:
        """See the class.

        Args:
            features: [B, H, W, F] that the relative depth was made of.
            bottleneck: [B, h, w, D], the coarsest map before fusion.
            blocks: one fused map [B, h_i, w_i, C] per scale, coarse to fine.
            relative: [B, H, W] relative depth.

        Returns:
            Depth [B, heads, H, W] in metres, and the logits [B, heads] of the domains (None for an
            only head).
        """
        cfg = self.config
        several = len(cfg.bins) > 1
        dim = cfg.bin_embedding_dim
        hidden = dim // 2 if several else 128
        features, bottleneck, relative, *blocks = (
            x.astype(jnp.float32) for x in (features, bottleneck, relative, *blocks)
        )
        x = conv2d(bottleneck.shape[-1], 1, "conv2", jnp.float32)(bottleneck)
        embeddings = [_PointMLP(hidden, dim, name="seed_projector")(x)]
        for i, block in enumerate(blocks):
            embeddings.append(_PointMLP(hidden, dim, name=f"projectors_{i}")(block))
        if several:
            counts, seed_hidden, factor = (_SHARED_ATTRACTORS,) * len(blocks), dim // 2, 4
        else:
            counts, seed_hidden, factor = cfg.num_attractors, 256, 2
            features = jnp.concatenate([features, relative[..., None]], axis=-1)
        depth = []
        for bins in cfg.bins:
            name = f"bins_{bins.name}" if several else "bins"
            head = _BinHead(cfg, bins, counts, seed_hidden, factor, name=name)
            depth.append(head(x, embeddings, features))
        logits = None
        if several:
            vector = _PatchTransformer(cfg, name="patch_transformer")(x)
            logits = _Classifier(len(cfg.bins), name="mlp_classifier")(vector)
        return jnp.stack(depth, axis=1), logits
