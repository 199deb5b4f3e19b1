"""Torch stand-ins for the authors' depth networks, for parity tests and key lists.

Written from their descriptions with the authors' names: `Upstream` is Depth Anything V2, and with
`video=True` Video Depth Anything. `authors_names` renames a state dict of transformers.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def image_batch(*shape: int, seed: int = 0):
    """Random normalised images: [..., H, W, 3] numpy and [..., 3, H, W] torch."""
    images = np.random.default_rng(seed).standard_normal((*shape, 3), dtype=np.float32)
    return images, torch.from_numpy(images).movedim(-1, -3).contiguous()


def balance(network, last, *shape: int):
    """Rescales `last`, the network's last convolution, until the activation behind it matters: on
    images of this shape it gives a mean of 1 and a deviation of 1. Returns the network."""
    seen = []
    hook = last.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        network(image_batch(*shape)[1])
        mean, deviation = seen[0].mean(), seen[0].std()
        last.weight /= deviation
        last.bias.copy_((last.bias - mean) / deviation + 1)
    hook.remove()
    return network


class _Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))


class _Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = (
            heads,
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(c // self.heads)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class _Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.ls1, self.ls2 = _Attention(width, heads), _Scale(width), _Scale(width)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )

    def forward(self, x):
        x = x + self.ls1.gamma * self.attn(self.norm1(x))
        return x + self.ls2.gamma * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class _Backbone(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        width, self.patch = cfg.hidden_size, cfg.patch_size
        self.side, self.taken = cfg.image_size // self.patch, cfg.out_indices
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.side**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        conv = nn.Conv2d(3, width, self.patch, self.patch)
        self.patch_embed = nn.ModuleDict({"proj": conv})
        heads = cfg.num_attention_heads
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(cfg.num_hidden_layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def positions(self, rows, columns):
        """Interpolated with a scale that is for 0.1 more than wanted."""
        if rows == columns == self.side:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].view(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        scale = (rows + 0.1) / self.side, (columns + 0.1) / self.side
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        assert grid.shape[2:] == (rows, columns)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)

    def forward(self, images):
        patches = self.patch_embed["proj"](images)
        size = patches.shape[2:]
        token = self.cls_token.expand(len(images), -1, -1)
        x = torch.cat([token, patches.flatten(2).transpose(1, 2)], 1) + self.positions(*size)
        maps = []
        for i, block in enumerate(self.blocks, 1):
            x = block(x)
            if i in self.taken:
                maps.append(self.norm(x)[:, 1:].transpose(1, 2).unflatten(2, size))
        return maps


class _Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class _Fusion(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        self.resConfUnit1, self.resConfUnit2 = _Residual(width), _Residual(width)

    def forward(self, x, skip, size):
        x = self.resConfUnit2(x if skip is None else x + self.resConfUnit1(skip))
        x = F.interpolate(x, size, mode="bilinear", align_corners=True)
        return self.out_conv(x)


class _TemporalAttention(nn.Module):
    def __init__(self, width, heads, frames):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        angle = torch.arange(frames)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
        table = torch.stack([angle.sin(), angle.cos()], -1).reshape(1, frames, width)
        self.pos_encoder = nn.Module()
        self.pos_encoder.register_buffer("pe", table)

    def forward(self, x):  # [positions, T, C]
        n, t, c = x.shape
        x = x + self.pos_encoder.pe[:, :t]
        q, k, v = (
            f(x).view(n, t, self.heads, -1).transpose(1, 2)
            for f in (self.to_q, self.to_k, self.to_v)
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(c // self.heads)).softmax(-1)
        return self.to_out[0]((weights @ v).transpose(1, 2).reshape(n, t, c))


class _Gate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Linear(width, 8 * width)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class _TemporalBlock(nn.Module):
    def __init__(self, width, heads, frames):
        super().__init__()
        parts = [_TemporalAttention(width, heads, frames) for _ in range(2)]
        self.attention_blocks = nn.ModuleList(parts)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.ff = nn.ModuleDict(
            {"net": nn.ModuleList([_Gate(width), nn.Identity(), nn.Linear(4 * width, width)])}
        )
        self.ff_norm = nn.LayerNorm(width)

    def forward(self, x):
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x = x + attention(norm(x))
        y = self.ff_norm(x)
        for layer in self.ff["net"]:
            y = layer(y)
        return x + y


class _TemporalModule(nn.Module):
    def __init__(self, width, heads, groups, frames):
        super().__init__()
        self.temporal_transformer = nn.ModuleDict(
            {
                "norm": nn.GroupNorm(groups, width, eps=1e-6),
                "proj_in": nn.Linear(width, width),
                "transformer_blocks": nn.ModuleList([_TemporalBlock(width, heads, frames)]),
                "proj_out": nn.Linear(width, width),
            }
        )

    def forward(self, x, frames):  # [B T, C, h, w]
        net, (bt, c, h, w) = self.temporal_transformer, x.shape
        y = net["proj_in"](net["norm"](x).permute(0, 2, 3, 1))
        y = y.view(bt // frames, frames, h * w, c).transpose(1, 2).reshape(-1, frames, c)
        y = net["proj_out"](net["transformer_blocks"][0](y))
        y = y.view(bt // frames, h, w, frames, c).permute(0, 3, 4, 1, 2)
        return x + y.reshape(x.shape)


class _Head(nn.Module):
    def __init__(self, cfg, video):
        super().__init__()
        widths, fused = cfg.neck.neck_hidden_sizes, cfg.neck.fusion_hidden_size
        self.projects = nn.ModuleList(nn.Conv2d(cfg.backbone.hidden_size, c, 1) for c in widths)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(widths[0], widths[0], 4, 4),
                nn.ConvTranspose2d(widths[1], widths[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], 3, 2, 1),
            ]
        )
        self.scratch = nn.Module()
        for i, c in enumerate(widths, 1):
            setattr(self.scratch, f"layer{i}_rn", nn.Conv2d(c, fused, 3, padding=1, bias=False))
            setattr(self.scratch, f"refinenet{i}", _Fusion(fused))
        self.scratch.output_conv1 = nn.Conv2d(fused, fused // 2, 3, padding=1)
        self.scratch.output_conv2 = nn.Sequential(
            nn.Conv2d(fused // 2, cfg.head_hidden_size, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(cfg.head_hidden_size, 1, 1),
        )
        if video:
            rest = cfg.temporal_heads, cfg.norm_groups, cfg.num_frames
            self.motion_modules = nn.ModuleList(
                _TemporalModule(c, *rest) for c in (*widths[2:], fused, fused)
            )

    def forward(self, maps, size, frames):
        def over_time(i, x):
            return self.motion_modules[i](x, frames) if frames else x

        s = self.scratch
        one, two, three, four = (
            resize(project(x))
            for project, resize, x in zip(self.projects, self.resize_layers, maps, strict=True)
        )
        one, two = s.layer1_rn(one), s.layer2_rn(two)
        three, four = s.layer3_rn(over_time(0, three)), s.layer4_rn(over_time(1, four))
        x = over_time(2, s.refinenet4(four, None, three.shape[2:]))
        x = over_time(3, s.refinenet3(x, three, two.shape[2:]))
        x = s.refinenet2(x, two, one.shape[2:])
        x = s.refinenet1(x, one, (2 * x.shape[2], 2 * x.shape[3]))
        x = F.interpolate(s.output_conv1(x), size, mode="bilinear", align_corners=True)
        return s.output_conv2(x)[:, 0]


class Upstream(nn.Module):
    """[B, 3, H, W], or [B, T, 3, H, W] of a video network, -> [B, H, W], or [B, T, H, W]."""

    def __init__(self, cfg, video=False):
        super().__init__()
        self.cfg, self.video = cfg, video
        self.pretrained = _Backbone(cfg.backbone)
        self.add_module("head" if video else "depth_head", _Head(cfg, video))

    def forward(self, images):
        lead, size = images.shape[:-3], images.shape[-2:]
        maps = self.pretrained(images.flatten(0, -4))
        raw = (self.head if self.video else self.depth_head)(
            maps, size, lead[1] if self.video else None
        )
        limit = self.cfg.max_depth
        return (F.relu(raw) if limit is None else raw.sigmoid() * limit).unflatten(0, lead)


def authors_names(state):
    """Transformers' state dict of Depth Anything in the authors' names, q, k and v fused."""
    renamed = {}
    for key, value in state.items():
        new = key.replace(
            "backbone.embeddings.patch_embeddings.projection", "pretrained.patch_embed.proj"
        )
        new = new.replace("backbone.embeddings.position_embeddings", "pretrained.pos_embed")
        new = new.replace("backbone.embeddings.", "pretrained.")
        new = new.replace("backbone.encoder.layer.", "pretrained.blocks.")
        new = new.replace("backbone.layernorm", "pretrained.norm").replace("attention.", "attn.")
        new = new.replace("attn.o_proj", "attn.proj").replace("layer_scale", "ls")
        new = new.replace("lambda1", "gamma").replace(
            "head.conv1", "depth_head.scratch.output_conv1"
        )
        new = new.replace("head.conv2", "depth_head.scratch.output_conv2.0")
        new = new.replace("head.conv3", "depth_head.scratch.output_conv2.2")
        if new.startswith("neck.reassemble_stage.layers."):
            _, _, _, n, part, leaf = new.split(".")
            new = f"depth_head.{ {'projection': 'projects', 'resize': 'resize_layers'}[part] }.{n}.{leaf}"
        if new.startswith("neck.convs."):
            new = f"depth_head.scratch.layer{int(new.split('.')[2]) + 1}_rn.weight"
        if new.startswith("neck.fusion_stage.layers."):
            n, rest = new.removeprefix("neck.fusion_stage.layers.").split(".", 1)
            rest = rest.replace("projection", "out_conv").replace("residual_layer", "resConfUnit")
            new = f"depth_head.scratch.refinenet{4 - int(n)}.{rest.replace('convolution', 'conv')}"
        renamed[new] = value
    fused = {}
    for key, value in renamed.items():
        if ".q_proj." in key:
            parts = [renamed[key.replace("q_proj", f"{p}_proj")] for p in "qkv"]
            fused[key.replace("q_proj", "qkv")] = torch.cat(parts)
        elif ".k_proj." not in key and ".v_proj." not in key:
            fused[key] = value
    return fused
