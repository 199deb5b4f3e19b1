"""FastDepth (Wofk et al. 2019, arXiv 1903.03273): a pruned MobileNet encoder and a light decoder.

The widths are those that pruning left in the published network, read from its exported graph.
Every layer is convolution, batch normalisation (inference form), rectifier:

    stem        3x3, stride 2, 16 channels
    encoder     13 x (3x3 depthwise, 1x1 pointwise), rectifier clipped at 6
    decoder      5 x (5x5 depthwise, 1x1 pointwise, 2x nearest upsampling), plain rectifier
    head        1x1 to one channel

Outputs of encoder blocks 1, 3 and 5 are added after the upsampling of decoder blocks 4, 3 and 2.
The head comes after the last upsampling, so the output is constant on 2x2 blocks.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

STEM = 16
ENCODER = (  # (width, stride of the depthwise convolution) of blocks 1 to 13
    (56, 1),
    (88, 2),
    (120, 1),
    (144, 2),
    (256, 1),
    (408, 2),
    (376, 1),
    (272, 1),
    (288, 1),
    (296, 1),
    (328, 1),
    (480, 2),
    (512, 1),
)
DECODER = (200, 256, 120, 56, 16)  # widths of blocks 1 to 5
SKIPS = {2: 5, 3: 3, 4: 1}  # decoder block: encoder block added after its upsampling
EPSILON = 9.999999747378752e-06  # float32(1e-5), as stored in the graph
STRIDE = 32  # input sides are multiples of this


class _Norm(nn.Module):
    """Batch normalisation with stored statistics, on the last axis."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        mean = self.param("mean", nn.initializers.zeros, channels)
        var = self.param("var", nn.initializers.ones, channels)
        gain = scale / jnp.sqrt(var + EPSILON)
        shape = (1,) * (x.ndim - 1) + channels
        return (x - mean.reshape(shape)) * gain.reshape(shape) + bias.reshape(shape)


class _Layer(nn.Module):
    """Convolution padded by kernel // 2, normalisation, rectifier: [B, H, W, C] -> [.., features].

    Attributes:
        features: output channels; ignored when depthwise.
        kernel, stride: of both axes.
        depthwise: one filter per channel.
        ceiling: the rectifier's upper bound, None for none.
    """

    features: int
    kernel: int
    stride: int = 1
    depthwise: bool = False
    ceiling: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = x.shape[-1] if self.depthwise else self.features
        x = nn.Conv(
            features,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            ((self.kernel // 2, self.kernel // 2),) * 2,
            feature_group_count=features if self.depthwise else 1,
            use_bias=False,
            name="conv",
        )(x)
        x = jnp.maximum(_Norm(name="norm")(x), 0.0)
        return x if self.ceiling is None else jnp.minimum(x, self.ceiling)


class _Block(nn.Module):
    """Depthwise, then pointwise layer."""

    features: int
    kernel: int
    stride: int = 1
    ceiling: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        depthwise = _Layer(0, self.kernel, self.stride, True, self.ceiling, name="depthwise")
        return _Layer(self.features, 1, ceiling=self.ceiling, name="pointwise")(depthwise(x))


class FastDepthNet(nn.Module):
    """RGB [B, H, W, 3] float32 in [0, 1] -> depth [B, H, W, 1] >= 0, in metres as trained.

    H and W are multiples of 32; the network was trained at 224x224 with 4:3 pictures squeezed to
    the square. No mean or deviation is taken off the input.

    Raises:
        ValueError: other shapes.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        if images.ndim != 4 or images.shape[3] != 3 or any(n % STRIDE for n in images.shape[1:3]):
            raise ValueError(
                f"FastDepth got {images.shape}, expected [B, H, W, 3] with sides of {STRIDE} n"
            )
        x = _Layer(STEM, 3, 2, ceiling=6.0, name="stem")(images)
        encoded = {}
        for i, (width, stride) in enumerate(ENCODER, 1):
            x = encoded[i] = _Block(width, 3, stride, 6.0, name=f"encoder_{i}")(x)
        for i, width in enumerate(DECODER, 1):
            x = _Block(width, 5, name=f"decoder_{i}")(x)
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            if i in SKIPS:
                x = x + encoded[SKIPS[i]]
        return _Layer(1, 1, name="head")(x)


def abstract_params() -> dict:
    """The parameter tree as ShapeDtypeStructs, a nested dict; allocates nothing."""
    image = jax.ShapeDtypeStruct((1, STRIDE, STRIDE, 3), jnp.float32)
    return jax.eval_shape(FastDepthNet().init, jax.random.key(0), image)["params"]
