"""What the two sides of `steps` are given: sizes of networks and clips, and the inputs, drawn once."""

import dataclasses
from typing import Any

import numpy as np

from experiments.pretrain_small import architecture as small

RANK = 16  # of the temporal LoRA


@dataclasses.dataclass(frozen=True)
class Size:
    """One size of all parts.

    Attributes:
      config: of the three networks, as `models.zoo` reads it.
      frames: of the clip.
      latents: (height, width) that the U-Net sees.
      pixels: (height, width) that the autoencoder sees; a CPU takes long for those of the latents.
    """

    config: dict[str, Any]
    frames: int
    latents: tuple[int, int]
    pixels: tuple[int, int]

    @property
    def factor(self) -> int:
        """Pixels per latent."""
        return 2 ** (len(self.config["vae"]["block_out_channels"]) - 1)

    def draw(self, seed: int = 0) -> dict[str, np.ndarray]:
        """The inputs, channels last, float32.

        "latents", "noise", "condition" `[1, T, h, w, c]`, "mask" `[1, T, h, w]` bool, "context" `[1, 1, D]` and
        "ids" `[1, 3]` of the U-Net; "video" `[T, H, W, 3]` in [0, 1] and "codes" `[T, H / f, W / f, c]` of
        the autoencoder.
        """
        rng = np.random.default_rng(seed)
        unet, vae = self.config["unet"], self.config["vae"]
        grid = (1, self.frames, *self.latents)
        codes = (self.frames, *(side // self.factor for side in self.pixels))

        def normal(*shape):
            return rng.standard_normal(shape, dtype=np.float32)

        return {
            **{n: normal(*grid, unet["out_channels"]) for n in ("latents", "noise", "condition")},
            "mask": rng.random(grid) < 0.7,
            "context": normal(1, 1, unet["cross_attention_dim"]),
            "ids": np.array([[6.0, 127.0, 0.02]], np.float32),
            "video": rng.random((self.frames, *self.pixels, 3), dtype=np.float32),
            "codes": normal(*codes, vae["latent_channels"]),
        }


def _svd(widths: tuple[int, ...], vae_widths: tuple[int, ...]) -> dict[str, Any]:
    """Stable Video Diffusion of other widths; every head is 64 wide, as its own."""
    return {
        "num_frames": 14,
        "unet": {
            "in_channels": 8,
            "out_channels": 4,
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 3
            + ("DownBlockSpatioTemporal",),
            "up_block_types": ("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 3,
            "block_out_channels": widths,
            "num_attention_heads": tuple(width // 64 for width in widths),
            "layers_per_block": 2,
            "cross_attention_dim": 1024,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 768,
            "num_frames": 14,
            "norm_num_groups": 32,
        },
        "vae": {
            "block_out_channels": vae_widths,
            "layers_per_block": 2,
            "latent_channels": 4,
            "norm_num_groups": 32,
            "scaling_factor": 0.18215,
        },
        "image_encoder": small.CONFIG["image_encoder"],  # not run
    }


_SMALL_FACTOR = 2 ** (len(small.CONFIG["vae"]["block_out_channels"]) - 1)
SIZES = {
    "small": Size(
        small.CONFIG,
        small.NUM_FRAMES,
        (small.HEIGHT // _SMALL_FACTOR, small.WIDTH // _SMALL_FACTOR),
        (small.HEIGHT, small.WIDTH),
    ),
    # 97,904,618 and 24,475,711 parameters.
    "mid": Size(_svd((64, 128, 320, 320), (64, 128, 256, 256)), 14, (24, 40), (128, 192)),
    "svd": Size(_svd((320, 640, 1280, 1280), (128, 256, 512, 512)), 14, (72, 128), (576, 1024)),
}
