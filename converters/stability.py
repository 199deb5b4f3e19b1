"""Stability AI's single-file layout of SVD, as rule tables that rename its keys to diffusers'.

The tables are generated from the sizes in the config (the file numbers its blocks consecutively, so
the numbers depend on levels and layers). Names and counts: the key lists of the public model
definition and of the released files, see tests/data/svd_keys.
"""

import re

from converters.rules import Rule, Table, Transform

# Prefix in the file -> (component, prefix in that component).
GROUPS = {
    "model.diffusion_model.": ("unet", ""),
    "first_stage_model.decoder.": ("vae", "decoder."),
    "conditioner.embedders.3.encoder.encoder.": ("vae", "encoder."),
    "conditioner.embedders.3.encoder.quant_conv.": ("vae", "quant_conv."),
    "conditioner.embedders.0.open_clip.model.visual.": ("image_encoder", ""),
}

# Present in released files and not needed here: the encoder for training videos, the decoder of
# the conditioning autoencoder, what is left of the text tower.
UNUSED = (
    r"first_stage_model\.encoder\..+",
    r"conditioner\.embedders\.3\.encoder\.(decoder|post_quant_conv)\..+",
    r"conditioner\.embedders\.0\.open_clip\.model\.(ln_final\.(weight|bias)|logit_scale|attn_mask"
    r"|positional_embedding|text_projection|token_embedding\.weight)",
)

# config.json of each component of the released models; the file itself carries none.
CONFIGS = {
    "unet": {
        "_class_name": "UNetSpatioTemporalConditionModel",
        "in_channels": 8,
        "out_channels": 4,
        "sample_size": 96,
        "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * 3 + ["DownBlockSpatioTemporal"],
        "up_block_types": ["UpBlockSpatioTemporal"] + ["CrossAttnUpBlockSpatioTemporal"] * 3,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "transformer_layers_per_block": 1,
        "num_attention_heads": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 768,
    },
    "vae": {
        "_class_name": "AutoencoderKLTemporalDecoder",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "sample_size": 768,
        "scaling_factor": 0.18215,
        "force_upcast": True,
    },
    "image_encoder": {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 1024,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
    },
}

SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "prediction_type": "v_prediction",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
    "timestep_type": "continuous",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}

_WB = r"\.(weight|bias)"

# Names inside a residual block of the U-Net (file, diffusers).
_RES = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
)


def _module(old: str, new: str, transform: Transform | None = None) -> Rule:
    return Rule(re.escape(old) + _WB, new + r".\1", transform)


def _unet_res_block(old: str, new: str) -> Table:
    spatial, temporal = f"{new}.spatial_res_block", f"{new}.temporal_res_block"
    rules = [_module(f"{old}.{a}", f"{spatial}.{b}") for a, b in _RES]
    rules += [_module(f"{old}.time_stack.{a}", f"{temporal}.{b}") for a, b in _RES]
    rules.append(_module(f"{old}.skip_connection", f"{spatial}.conv_shortcut"))
    rules.append(Rule(re.escape(f"{old}.time_mixer.mix_factor"), f"{new}.time_mixer.mix_factor"))
    return tuple(rules)


def _unet_transformer(old: str, new: str) -> Table:
    head = re.escape(old) + r"\."
    same = r"(norm|proj_in|proj_out|transformer_blocks|time_mixer)"
    return (
        Rule(head + r"time_stack\.(\d+)\.(.+)", rf"{new}.temporal_transformer_blocks.\1.\2"),
        Rule(head + r"time_pos_embed\.0\.(.+)", rf"{new}.time_pos_embed.linear_1.\1"),
        Rule(head + r"time_pos_embed\.2\.(.+)", rf"{new}.time_pos_embed.linear_2.\1"),
        Rule(head + same + r"\.(.+)", rf"{new}.\1.\2"),
    )


def unet_table(config: dict) -> Table:
    """Keys below `model.diffusion_model.` -> diffusers' U-Net keys, for the config's sizes."""
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    rules = [
        _module("time_embed.0", "time_embedding.linear_1"),
        _module("time_embed.2", "time_embedding.linear_2"),
        _module("label_emb.0.0", "add_embedding.linear_1"),
        _module("label_emb.0.2", "add_embedding.linear_2"),
        _module("input_blocks.0.0", "conv_in"),
        _module("out.0", "conv_norm_out"),
        _module("out.2", "conv_out"),
        *_unet_res_block("middle_block.0", "mid_block.resnets.0"),
        *_unet_transformer("middle_block.1", "mid_block.attentions.0"),
        *_unet_res_block("middle_block.2", "mid_block.resnets.1"),
    ]
    for level in range(levels):
        for layer in range(layers):
            old = f"input_blocks.{1 + level * (layers + 1) + layer}"
            rules += _unet_res_block(f"{old}.0", f"down_blocks.{level}.resnets.{layer}")
            rules += _unet_transformer(f"{old}.1", f"down_blocks.{level}.attentions.{layer}")
        old = f"input_blocks.{(level + 1) * (layers + 1)}.0.op"
        rules.append(_module(old, f"down_blocks.{level}.downsamplers.0.conv"))
        for layer in range(layers + 1):
            old = f"output_blocks.{level * (layers + 1) + layer}"
            rules += _unet_res_block(f"{old}.0", f"up_blocks.{level}.resnets.{layer}")
            rules += _unet_transformer(f"{old}.1", f"up_blocks.{level}.attentions.{layer}")
        # The upsampler follows the attention where the level has one.
        pattern = rf"output_blocks\.{level * (layers + 1) + layers}\.[12]\.conv" + _WB
        rules.append(Rule(pattern, rf"up_blocks.{level}.upsamplers.0.conv.\1"))
    return tuple(rules)


_VAE_ATTENTION = (
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
)


def _vae_mid_attention(side: str) -> Table:
    old, new = f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0"
    rules = [_module(f"{old}.norm", f"{new}.group_norm")]
    for a, b in _VAE_ATTENTION:
        weight = re.escape(f"{old}.{a}.weight")
        rules.append(Rule(weight, f"{new}.{b}.weight", Transform.SQUEEZE_LINEAR, ndim=4))
        rules.append(Rule(weight, f"{new}.{b}.weight", ndim=2))
        rules.append(Rule(re.escape(f"{old}.{a}.bias"), f"{new}.{b}.bias"))
    return tuple(rules)


def _decoder_res_block(old: str, new: str) -> Table:
    """`old` may hold groups; they are numbered before the ones added here, so name these."""
    spatial, temporal = f"{new}.spatial_res_block", f"{new}.temporal_res_block"
    leaf, keep = r"\.(?P<leaf>weight|bias)", r".\g<leaf>"
    rules = [
        Rule(old + r"\.(?P<name>norm1|conv1|norm2|conv2)" + leaf, rf"{spatial}.\g<name>{keep}"),
        Rule(old + r"\.nin_shortcut" + leaf, f"{spatial}.conv_shortcut{keep}"),
        Rule(old + r"\.mix_factor", f"{new}.time_mixer.mix_factor"),
    ]
    rules += [
        Rule(old + r"\.time_stack\." + re.escape(a) + leaf, f"{temporal}.{b}{keep}")
        for a, b in _RES
        if a != "emb_layers.1"  # the decoder has no time embedding
    ]
    return tuple(rules)


def vae_table(config: dict) -> Table:
    """Keys below `encoder.`, `decoder.`, `quant_conv.` -> diffusers' temporal-decoder VAE keys."""
    levels = len(config["block_out_channels"])
    down = r"encoder\.down\.(\d+)"
    rules = [
        Rule(r"(quant_conv|(?:en|de)coder\.conv_in)" + _WB, r"\1.\2"),
        Rule(r"(encoder|decoder)\.norm_out" + _WB, r"\1.conv_norm_out.\2"),
        Rule(r"decoder\.conv_out\.time_mix_conv" + _WB, r"decoder.time_conv_out.\1"),
        Rule(r"(encoder|decoder)\.conv_out" + _WB, r"\1.conv_out.\2"),
        *_vae_mid_attention("encoder"),
        *_vae_mid_attention("decoder"),
        Rule(
            down + r"\.block\.(\d+)\.nin_shortcut" + _WB,
            r"encoder.down_blocks.\1.resnets.\2.conv_shortcut.\3",
        ),
        Rule(
            down + r"\.block\.(\d+)\.(norm1|conv1|norm2|conv2)" + _WB,
            r"encoder.down_blocks.\1.resnets.\2.\3.\4",
        ),
        Rule(down + r"\.downsample\.conv" + _WB, r"encoder.down_blocks.\1.downsamplers.0.conv.\2"),
    ]
    for i in (1, 2):
        rules.append(
            Rule(
                rf"encoder\.mid\.block_{i}\.(norm1|conv1|norm2|conv2)" + _WB,
                rf"encoder.mid_block.resnets.{i - 1}.\1.\2",
            )
        )
        rules += _decoder_res_block(
            rf"decoder\.mid\.block_{i}", f"decoder.mid_block.resnets.{i - 1}"
        )
    for level in range(levels):  # the file counts the decoder's levels from the finest
        old, new = rf"decoder\.up\.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        rules += _decoder_res_block(old + r"\.block\.(\d+)", new + r".resnets.\1")
        rules.append(Rule(old + r"\.upsample\.conv" + _WB, new + r".upsamplers.0.conv.\1"))
    return tuple(rules)


def clip_table(config: dict) -> Table:
    """Keys of open_clip's vision tower -> transformers' CLIPVisionModelWithProjection keys."""
    del config  # the names do not depend on the sizes
    model = "vision_model"
    old, new = r"transformer\.resblocks\.(\d+)\.", rf"{model}.encoder.layers.\1."
    attention = new + "self_attn."
    return (
        Rule("class_embedding", f"{model}.embeddings.class_embedding"),
        Rule(r"conv1\.weight", f"{model}.embeddings.patch_embedding.weight"),
        Rule("positional_embedding", f"{model}.embeddings.position_embedding.weight"),
        _module("ln_pre", f"{model}.pre_layrnorm"),
        _module("ln_post", f"{model}.post_layernorm"),
        # open_clip multiplies by it from the right: it is (in, out) as a Flax kernel is.
        Rule("proj", "visual_projection.weight", Transform.IDENTITY),
        Rule(old + "ln_([12])" + _WB, new + r"layer_norm\2.\3"),
        Rule(
            old + r"attn\.in_proj_(weight|bias)",
            tuple(rf"{attention}{name}_proj.\2" for name in "qkv"),
        ),
        Rule(old + r"attn\.out_proj" + _WB, rf"{attention}out_proj.\2"),
        Rule(old + r"mlp\.c_fc" + _WB, new + r"mlp.fc1.\2"),
        Rule(old + r"mlp\.c_proj" + _WB, new + r"mlp.fc2.\2"),
    )


TABLES = {"unet": unet_table, "vae": vae_table, "image_encoder": clip_table}
