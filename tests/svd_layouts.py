"""Tiny SVD weights in both public file layouts, for the converter tests (no torch needed).

The layouts are written here from their description, in the direction opposite to the converter's
and by other means, so that the two cannot share a mistake by construction.
"""

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from converters import svd

CONFIGS = {
    "unet": {
        "_class_name": "UNetSpatioTemporalConditionModel",
        "in_channels": 8,
        "out_channels": 4,
        "block_out_channels": [32, 64],
        "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
        "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
        "layers_per_block": 2,
        "transformer_layers_per_block": 1,
        "num_attention_heads": [1, 2],
        "cross_attention_dim": 16,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24,
        "num_frames": 14,
    },
    "vae": {
        "_class_name": "AutoencoderKLTemporalDecoder",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": [32, 64],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "layers_per_block": 1,
        "scaling_factor": 0.18215,
    },
    "image_encoder": {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_channels": 3,
        "image_size": 28,
        "patch_size": 14,
        "projection_dim": 16,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
    },
}
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}

_LISTS = (
    "(down_blocks|up_blocks|resnets|attentions|transformer_blocks|temporal_transformer_blocks"
    "|downsamplers|upsamplers|to_out|net|layers)"
)


def flat(tree, prefix=""):
    """Nested dict -> {path: leaf}."""
    out = {}
    for name, node in tree.items():
        out |= flat(node, f"{prefix}{name}/") if isinstance(node, dict) else {prefix + name: node}
    return out


def torch_key(path: str) -> str:
    """Flax path -> torch key."""
    key = re.sub(rf"\b{_LISTS}_(\d+)\b", r"\1.\2", path).replace("/", ".")
    return re.sub(r"\.(kernel|scale|embedding)$", ".weight", key)


def torch_layout(leaf: np.ndarray, path: str) -> np.ndarray:
    """A Flax leaf as torch stores it."""
    if path.endswith("/kernel"):
        leaf = np.moveaxis(leaf, (-1, -2), (0, 1))
    return np.ascontiguousarray(leaf)


def random_trees(dtype=np.float32, configs=CONFIGS) -> dict[str, dict[str, np.ndarray]]:
    """{component: {flax path: random values}} of the tiny models."""
    rng = np.random.default_rng(7)
    return {
        component: {
            path: rng.standard_normal(shape).astype(dtype)
            for path, shape in sorted(svd.target_shapes(component, config).items())
        }
        for component, config in configs.items()
    }


def torch_dicts(trees) -> dict[str, dict[str, np.ndarray]]:
    """{component: state dict in diffusers' names}."""
    return {
        component: {torch_key(path): torch_layout(leaf, path) for path, leaf in leaves.items()}
        for component, leaves in trees.items()
    }


def write_folder(root: Path, dicts, configs=CONFIGS, variant: str = "") -> Path:
    """The diffusers layout: one safetensors file and one config.json per component."""
    for component, tensors in dicts.items():
        folder = root / component
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(configs[component]))
        dot = f".{variant}" if variant else ""
        save_file(tensors, folder / f"{STEMS.get(component, 'model')}{dot}.safetensors")
    return root


def shard(folder: Path, stem: str, count: int = 3) -> None:
    """Replaces the one file of a component by shards and their index."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    weight_map = {}
    for i in range(count):
        name = f"{stem}-{i + 1:05}-of-{count:05}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[i::count]}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def unet_to_stability(key: str, layers: int, attends_up: list[bool]) -> str:
    """diffusers' U-Net key -> the key below model.diffusion_model."""
    whole = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    module, _, leaf = key.rpartition(".")
    if module in whole:
        return f"{whole[module]}.{leaf}"
    words = key.split(".")
    if words[0] == "mid_block":
        kind, j, rest = words[1], int(words[2]), words[3:]
        head = f"middle_block.{1 if kind == 'attentions' else 2 * j}"
    else:
        side, b, kind, j, rest = words[0], int(words[1]), words[2], int(words[3]), words[4:]
        if kind == "downsamplers":
            return f"input_blocks.{(b + 1) * (layers + 1)}.0.op.{leaf}"
        if kind == "upsamplers":
            last = b * (layers + 1) + layers
            return f"output_blocks.{last}.{2 if attends_up[b] else 1}.conv.{leaf}"
        number = b * (layers + 1) + j + (side == "down_blocks")
        name = "input_blocks" if side == "down_blocks" else "output_blocks"
        head = f"{name}.{number}.{1 if kind == 'attentions' else 0}"
    tail = ".".join(rest)
    if kind == "attentions":
        for a, b in (
            ("temporal_transformer_blocks.0", "time_stack.0"),
            ("time_pos_embed.linear_1", "time_pos_embed.0"),
            ("time_pos_embed.linear_2", "time_pos_embed.2"),
        ):
            if tail.startswith(a + "."):
                tail = b + tail[len(a) :]
        return f"{head}.{tail}"
    if rest[0] == "time_mixer":
        return f"{head}.{tail}"
    inner = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }[rest[1]]
    stack = {"spatial_res_block": "", "temporal_res_block": "time_stack."}[rest[0]]
    return f"{head}.{stack}{inner}.{leaf}"


def vae_to_stability(key: str, levels: int) -> str:
    """diffusers' VAE key -> the key in the whole file."""
    words = key.split(".")
    leaf = words[-1]
    if words[0] == "quant_conv":
        return f"conditioner.embedders.3.encoder.{key}"
    side, rest = words[0], words[1:]
    prefix = {
        "encoder": "conditioner.embedders.3.encoder.encoder.",
        "decoder": "first_stage_model.decoder.",
    }[side]
    simple = {"conv_in": "conv_in", "conv_out": "conv_out", "conv_norm_out": "norm_out"}
    if rest[0] in simple:
        return f"{prefix}{simple[rest[0]]}.{leaf}"
    if rest[0] == "time_conv_out":
        return f"{prefix}conv_out.time_mix_conv.{leaf}"
    if rest[0] == "mid_block" and rest[1] == "attentions":
        names = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
        return f"{prefix}mid.attn_1.{names[rest[3]]}.{leaf}"
    if rest[0] == "mid_block":
        head, tail = f"mid.block_{int(rest[2]) + 1}", rest[3:]
    else:
        level = int(rest[1])
        group = f"down.{level}" if side == "encoder" else f"up.{levels - 1 - level}"
        if rest[2] in ("downsamplers", "upsamplers"):
            return f"{prefix}{group}.{rest[2].removesuffix('rs')}.conv.{leaf}"
        head, tail = f"{group}.block.{rest[3]}", rest[4:]
    if tail[0] == "time_mixer":
        return f"{prefix}{head}.mix_factor"
    if tail[0] == "temporal_res_block":
        inner = {
            "norm1": "in_layers.0",
            "conv1": "in_layers.2",
            "norm2": "out_layers.0",
            "conv2": "out_layers.3",
        }[tail[1]]
        return f"{prefix}{head}.time_stack.{inner}.{leaf}"
    name = tail[1] if tail[0] == "spatial_res_block" else tail[0]
    return f"{prefix}{head}.{'nin_shortcut' if name == 'conv_shortcut' else name}.{leaf}"


def clip_to_open_clip(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """transformers' CLIP state dict -> open_clip's vision tower (q, k, v joined)."""
    tensors = dict(tensors)
    take = tensors.pop
    out = {
        "class_embedding": take("vision_model.embeddings.class_embedding"),
        "conv1.weight": take("vision_model.embeddings.patch_embedding.weight"),
        "positional_embedding": take("vision_model.embeddings.position_embedding.weight"),
        "proj": np.ascontiguousarray(take("visual_projection.weight").T),
    }
    for leaf in ("weight", "bias"):
        out[f"ln_pre.{leaf}"] = take(f"vision_model.pre_layrnorm.{leaf}")
        out[f"ln_post.{leaf}"] = take(f"vision_model.post_layernorm.{leaf}")
    i = 0
    while f"vision_model.encoder.layers.{i}.mlp.fc1.weight" in tensors:
        old, new = f"vision_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
        for leaf in ("weight", "bias"):
            out[f"{new}.attn.in_proj_{leaf}"] = np.concatenate(
                [take(f"{old}.self_attn.{n}_proj.{leaf}") for n in "qkv"]
            )
            out[f"{new}.attn.out_proj.{leaf}"] = take(f"{old}.self_attn.out_proj.{leaf}")
            out[f"{new}.ln_1.{leaf}"] = take(f"{old}.layer_norm1.{leaf}")
            out[f"{new}.ln_2.{leaf}"] = take(f"{old}.layer_norm2.{leaf}")
            out[f"{new}.mlp.c_fc.{leaf}"] = take(f"{old}.mlp.fc1.{leaf}")
            out[f"{new}.mlp.c_proj.{leaf}"] = take(f"{old}.mlp.fc2.{leaf}")
        i += 1
    assert not tensors, sorted(tensors)
    return out


def to_single_file(dicts, configs=CONFIGS) -> dict[str, np.ndarray]:
    """Diffusers' state dicts -> all tensors of a Stability single file, unused groups included."""
    unet, vae = configs["unet"], configs["vae"]
    attends_up = ["CrossAttn" in name for name in unet["up_block_types"]]
    out = {}
    for key, value in dicts["unet"].items():
        name = unet_to_stability(key, unet["layers_per_block"], attends_up)
        out[f"model.diffusion_model.{name}"] = value
    for key, value in dicts["vae"].items():
        name = vae_to_stability(key, len(vae["block_out_channels"]))
        if re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$", name):
            value = value[:, :, None, None]
        out[name] = value
    for key, value in clip_to_open_clip(dicts["image_encoder"]).items():
        out[f"conditioner.embedders.0.open_clip.model.visual.{key}"] = value
    assert (
        len(out)
        == len(dicts["unet"])
        + len(dicts["vae"])
        + 4 * configs["image_encoder"]["num_hidden_layers"] * 3
        + 8
    ), "two keys got one name"
    one = np.ones((1,), ml_dtypes.bfloat16)
    unused = (
        "first_stage_model.encoder.conv_in.weight",
        "conditioner.embedders.3.encoder.decoder.conv_in.weight",
        "conditioner.embedders.3.encoder.post_quant_conv.bias",
        "conditioner.embedders.0.open_clip.model.ln_final.weight",
        "conditioner.embedders.0.open_clip.model.ln_final.bias",
        "conditioner.embedders.0.open_clip.model.logit_scale",
        "conditioner.embedders.0.open_clip.model.positional_embedding",
        "conditioner.embedders.0.open_clip.model.text_projection",
        "conditioner.embedders.0.open_clip.model.token_embedding.weight",
    )
    return out | dict.fromkeys(unused, one)


def tiny_folder(tmp_path, trees, **kwargs):
    return write_folder(tmp_path / "src", torch_dicts(trees), **kwargs)


def tiny_single(tmp_path, trees, name="svd.safetensors", edit=lambda tensors: None):
    tensors = to_single_file(torch_dicts(trees))
    edit(tensors)
    save_file(tensors, tmp_path / name)
    (tmp_path / "configs.json").write_text(json.dumps(CONFIGS))
    return [str(tmp_path / name), "--configs", str(tmp_path / "configs.json")]


def run_main(capsys, *argv):
    code = svd.main([str(arg) for arg in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(autouse=True, scope="module")
def shapes_once():
    """Tracing the modules takes a second per configuration; the tests share a handful."""
    real, known = svd.target_shapes, {}

    def target_shapes(component, config):
        key = component, json.dumps(config, sort_keys=True)
        if key not in known:
            known[key] = real(component, config)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svd, "target_shapes", target_shapes)
        yield
