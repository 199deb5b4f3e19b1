"""The other side of `steps`: the same work with diffusers and peft, as their users run it."""

import contextlib
from collections.abc import Callable
from typing import Any

import diffusers
import jax
import numpy as np
import peft
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench.ours import Program
from experiments.bench.sizes import RANK, Size
from recapture_jax.errors import InputError

TARGETS = r".*\.temporal_transformer_blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)"
_OURS_ALONE = ("groupnorm_eps", "norm_num_groups")  # fields that diffusers' networks do not have
_CHANNELS_FIRST = (0, 1, 4, 2, 3)


class Reference:
    """Programs of one size, on the device and in the precision of our side.

    diffusers' attention is torch's scaled_dot_product_attention: a flash kernel where the device has one.

    Args:
      compiled: torch.compile of the networks; `failure` says why where it does not work.
      checkpointing: gradient checkpointing while tuning.

    Raises:
      InputError: jax has a GPU and torch sees none.
    """

    name = "diffusers + peft"

    def __init__(self, size: Size, compiled: bool = False, checkpointing: bool = False):
        self.size, self.compiled, self.checkpointing = size, compiled, checkpointing
        self.failure: str | None = None
        self.device = "cpu" if jax.default_backend() == "cpu" else "cuda"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("jax has a GPU and torch sees none: install a CUDA build of torch")
        self.dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        torch.manual_seed(0)
        drawn = size.draw()
        self.inputs = {name: self._place(torch.from_numpy(x)) for name, x in drawn.items()}
        for name in ("latents", "noise", "condition"):
            self.inputs[name] = self.inputs[name].permute(_CHANNELS_FIRST).contiguous()
        for name in ("video", "codes"):
            self.inputs[name] = self.inputs[name].permute(0, 3, 1, 2).contiguous()

    def program(self, part: str) -> Program:
        """Of "tune", "sample", "encode" or "decode"."""
        network, trained, eager, make = getattr(self, f"_{part}")()
        flops = self._flops(eager)
        run = self._compile(make) if self.compiled else eager
        parameters = sum(p.numel() for n, p in network.named_parameters() if "lora_" not in n)
        return Program(self._finished(run), (parameters, trained), flops)

    def _compile(self, make: Callable) -> Callable:
        """The part with its network compiled, or eager where that fails."""
        try:
            torch.compiler.reset()
            run = make(lambda network: torch.compile(network, dynamic=False))
            run()
        except Exception as error:  # whatever the compiler or its C++ compiler may raise
            first = next(iter(str(error).strip().splitlines()), "")
            self.failure = f"torch.compile failed, so it is eager: {type(error).__name__}: {first}"
            return make(lambda network: network)
        return run

    def _tune(self):
        unet = self._unet()
        config = peft.LoraConfig(
            r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS
        )
        peft.inject_adapter_in_model(config, unet)
        trained = [p for n, p in unet.named_parameters() if "lora_" in n]
        for p in trained:
            p.requires_grad_(True)
            p.data = p.data.float()
        if self.checkpointing:
            unet.enable_gradient_checkpointing()
        unet.train()
        optimizer = torch.optim.AdamW(trained, lr=5e-4, weight_decay=1e-2)
        z, given = self.inputs["latents"], self.inputs
        mask = given["mask"][:, :, None].float()

        def make(transform):
            predict = self._predictor(transform(unet))

            def run():
                sigma = float(np.exp(0.7))
                noise = torch.randn_like(z)
                x, target = z + sigma * noise, (noise - sigma * z) / (sigma**2 + 1) ** 0.5
                with self._autocast():
                    v = predict(x, sigma, given["condition"], given["context"], given["ids"])
                loss = (mask * (v.float() - target) ** 2).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

            return run

        return unet, sum(p.numel() for p in trained), make(lambda network: network), make

    def _sample(self):
        """Without adapters: for sampling they are merged."""
        unet = self._unet().eval()
        given, frames = self.inputs, self.size.frames
        x, sigma, after = given["noise"], 10.0, 6.0
        scale = torch.linspace(1, 3, frames, device=self.device, dtype=x.dtype)
        scale = scale[None, :, None, None, None]
        condition, context = (
            torch.cat([torch.zeros_like(given[n]), given[n]]) for n in ("condition", "context")
        )
        ids = torch.cat([given["ids"]] * 2)

        def make(transform):
            predict = self._predictor(transform(unet))

            @torch.no_grad()
            def run():
                v0, v1 = predict(torch.cat([x, x]), sigma, condition, context, ids).chunk(2)
                v = v0 + scale * (v1 - v0)
                x0 = x / (sigma**2 + 1) - sigma / (sigma**2 + 1) ** 0.5 * v
                return x0 + after / sigma * (x - x0)

            return run

        return unet, 0, make(lambda network: network), make

    def _encode(self):
        vae, video = self._vae(), self.inputs["video"]

        def make(transform):
            encode = transform(vae.encode)

            @torch.no_grad()
            def run():
                return encode(2 * video - 1).latent_dist.mode()

            return run

        return vae, 0, make(lambda network: network), make

    def _decode(self):
        vae, codes, frames = self._vae(), self.inputs["codes"], self.size.frames
        scaling = self.size.config["vae"]["scaling_factor"]

        def make(transform):
            decode = transform(vae.decode)

            @torch.no_grad()
            def run():
                images = decode(codes / scaling, num_frames=frames).sample
                return (0.5 * images + 0.5).clamp(0, 1)

            return run

        return vae, 0, make(lambda network: network), make

    def _predictor(self, unet) -> Callable:
        def predict(x, sigma, condition, context, ids):
            scaled = x / (sigma**2 + 1) ** 0.5
            t = torch.full((len(x),), 0.25 * np.log(sigma), device=self.device)
            return unet(torch.cat([scaled, condition], 2), t, context, ids).sample

        return predict

    def _unet(self):
        config = self.size.config["unet"]
        return self._build(diffusers.UNetSpatioTemporalConditionModel, config)

    def _vae(self):
        config = self.size.config["vae"]
        config = config | {
            "down_block_types": ("DownEncoderBlock2D",) * len(config["block_out_channels"])
        }
        return self._build(diffusers.AutoencoderKLTemporalDecoder, config).eval()

    def _build(self, kind, config: dict[str, Any]):
        """Random frozen weights, the groups of the norms as ours."""
        network = kind(**{k: v for k, v in config.items() if k not in _OURS_ALONE})
        for module in network.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.num_groups = config["norm_num_groups"]
        network = network.requires_grad_(False).to(self.device)
        return network if self.dtype == torch.float32 else network.to(self.dtype)

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, None if tensor.dtype == torch.bool else self.dtype)

    def _autocast(self):
        """The adapters are float32, as diffusers' training scripts keep them; the rest is not."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device, self.dtype)

    def _flops(self, eager: Callable) -> float:
        """Of one call, matrix products and convolutions only; it warms the eager form up as well."""
        # torch counts a CPU's fused attention as nothing.
        plain = sdpa_kernel(SDPBackend.MATH) if self.device == "cpu" else contextlib.nullcontext()
        with plain, FlopCounterMode(display=False) as counter:
            eager()
        return float(counter.get_total_flops())

    def _finished(self, run: Callable) -> Callable[[], None]:
        def call():
            run()
            if self.device == "cuda":
                torch.cuda.synchronize()

        return call
