"""Video Depth Anything (Chen et al. 2025, arXiv 2501.12375): Depth Anything V2 that sees time.

Four temporal modules sit in the DPT head: on the two coarsest maps of the pyramid and after the
first two fusion blocks. All else works frame by frame, so it is split there: `encode` (frames),
`mix` (the clip), `decode` (frames). Frames that appear in several windows are encoded once, and
the large maps of the decoder exist for a few frames at a time.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from recapture_jax.errors import InputError
from recapture_jax.models.attention import temporal_attention
from recapture_jax.models.depth_anything import DepthAnythingConfig
from recapture_jax.models.dinov2 import Dinov2
from recapture_jax.models.dpt import DepthHead, Neck
from recapture_jax.models.layers import FeedForward, GroupNorm, LayerNorm, sinusoid


@dataclasses.dataclass(frozen=True)
class VideoDepthAnythingConfig(DepthAnythingConfig):
    """As DepthAnythingConfig; the head is never bounded. The defaults are those of all sizes.

    Attributes:
        num_frames: frames of a window, at most.
        temporal_heads: attention heads of the temporal modules.
        norm_groups: groups of their GroupNorm.

    Raises:
        InputError: as DepthAnythingConfig, or max_depth given, or widths that heads or groups do
            not divide.
    """

    num_frames: int = 32
    temporal_heads: int = 8
    norm_groups: int = 32

    def __post_init__(self):
        super().__post_init__()
        if self.max_depth is not None or len(self.neck.neck_hidden_sizes) != 4:
            raise InputError(
                f"Video Depth Anything has four levels and no max_depth, got "
                f"{len(self.neck.neck_hidden_sizes)} and {self.max_depth}; correct the config"
            )
        for width in self.temporal_widths:
            if width % self.temporal_heads or width % self.norm_groups:
                raise InputError(
                    f"a temporal module of {width} channels is not divisible into "
                    f"{self.temporal_heads} heads and {self.norm_groups} groups; correct the config"
                )

    @property
    def temporal_widths(self) -> tuple[int, ...]:
        """Channels of the four temporal modules."""
        return (*self.neck.neck_hidden_sizes[2:], *(self.neck.fusion_hidden_size,) * 2)


def _positions(count: int, channels: int) -> jax.Array:
    """[count, channels] sinusoids of the frame's number: sines at even channels, cosines at odd."""
    cosines, sines = jnp.split(sinusoid(jnp.arange(count), channels), 2, axis=-1)
    return jnp.stack([sines, cosines], axis=-1).reshape(count, channels)


class _TemporalAttention(nn.Module):
    """Attention along T of [B, T, S, C]; the frame's position is added to what goes in."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        frames, channels = x.shape[1], x.shape[3]
        x = x + _positions(frames, channels).astype(x.dtype)[None, :, None]

        def project(name: str) -> jax.Array:
            y = nn.Dense(channels, use_bias=False, dtype=self.dtype, name=name)(x)
            return y.reshape(*x.shape[:-1], self.heads, -1)

        mixed = temporal_attention(project("to_q"), project("to_k"), project("to_v"))
        return nn.Dense(channels, dtype=self.dtype, name="to_out_0")(mixed.reshape(x.shape))


class _TemporalBlock(nn.Module):
    """Two temporal attentions and a GEGLU feed-forward, pre-norm: [B, T, S, C] -> the same."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(2):
            attend = _TemporalAttention(self.heads, self.dtype, name=f"attention_blocks_{i}")
            x = x + attend(LayerNorm(name=f"norms_{i}")(x))
        return x + FeedForward(self.dtype, name="ff")(LayerNorm(name="ff_norm")(x))


class TemporalModule(nn.Module):
    """x + what its transformer makes of it along T: [B, T, h, w, C] -> the same."""

    heads: int
    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, t, h, w, channels = x.shape
        y = x.reshape(b * t, h, w, channels)
        y = GroupNorm(1e-6, self.groups, name="norm")(y).reshape(b, t, h * w, channels)
        y = nn.Dense(channels, dtype=self.dtype, name="proj_in")(y)
        y = _TemporalBlock(self.heads, self.dtype, name="transformer_blocks_0")(y)
        # Starts at zero: an untrained module leaves the network as it was.
        init = nn.initializers.zeros
        y = nn.Dense(channels, dtype=self.dtype, kernel_init=init, name="proj_out")(y)
        return x + y.reshape(x.shape)


class VideoDepthAnythingNet(nn.Module):
    """Normalised frames [B, T, H, W, 3] -> [B, T, H, W] float32: disparity or metres, >= 0.

    H and W are multiples of the patch size, T at most config.num_frames.

    Raises:
        InputError: other shapes.
    """

    config: VideoDepthAnythingConfig
    dtype: Any = jnp.float32

    def setup(self):
        cfg = self.config
        self.backbone = Dinov2(cfg.backbone, self.dtype)
        self.neck = Neck(cfg.neck, self.dtype)
        self.head = DepthHead(cfg.neck.fusion_hidden_size, cfg.head_hidden_size, self.dtype)
        self.motion_modules = [
            TemporalModule(cfg.temporal_heads, cfg.norm_groups, self.dtype)
            for _ in cfg.temporal_widths
        ]

    def encode(self, images: jax.Array) -> list[jax.Array]:
        """Frames [N, H, W, 3] -> four maps [N, H / patch, W / patch, C]."""
        return self.backbone(images)

    def mix(self, maps: Sequence[jax.Array], frames: int) -> tuple[jax.Array, ...]:
        """Maps of B clips of `frames` frames each -> three maps per frame for `decode`."""
        if frames > self.config.num_frames:
            raise InputError(
                f"Video Depth Anything got {frames} frames at once, expected at most "
                f"{self.config.num_frames}; split the clip into windows"
            )

        def over_time(module: int, x: jax.Array) -> jax.Array:
            clips = x.reshape(-1, frames, *x.shape[1:])
            return self.motion_modules[module](clips).reshape(x.shape)

        pyramid = self.neck.reassemble(maps)
        pyramid[2] = over_time(0, pyramid[2])
        pyramid[3] = over_time(1, pyramid[3])
        finest, fine, coarse, coarsest = self.neck.narrow(pyramid)
        x = over_time(2, self.neck.fuse(0, coarsest, None, coarse.shape[1:3]))
        x = over_time(3, self.neck.fuse(1, x, coarse, fine.shape[1:3]))
        return x, fine, finest

    def decode(
        self, x: jax.Array, fine: jax.Array, finest: jax.Array, size: tuple[int, int]
    ) -> jax.Array:
        """What `mix` gives for N frames -> [N, *size]."""
        x = self.neck.fuse(2, x, fine, finest.shape[1:3])
        x = self.neck.fuse(3, x, finest, None)
        return jax.nn.relu(self.head(x, size))

    def __call__(self, video: jax.Array) -> jax.Array:
        if video.ndim != 5:
            raise InputError(f"frames have shape {video.shape}, expected [B, T, H, W, 3]")
        maps = self.encode(video.reshape(-1, *video.shape[2:]))
        depth = self.decode(*self.mix(maps, video.shape[1]), video.shape[2:4])
        return depth.reshape(video.shape[:4])


@functools.lru_cache(maxsize=8)
def abstract_params(config: VideoDepthAnythingConfig) -> dict:
    """The parameter tree as ShapeDtypeStructs, a nested dict; allocates nothing."""
    side = 2 * config.backbone.patch_size
    video = jax.ShapeDtypeStruct((1, 2, side, side, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(VideoDepthAnythingNet(config).init, key, video)["params"]
