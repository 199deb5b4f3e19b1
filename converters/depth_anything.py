"""Layouts of Depth Anything V2 and Video Depth Anything, for `converters.depth`.

Three spellings are read: transformers' files (of 4.x, which is what the hub has, and of 5.x), the
authors' Depth Anything V2 (`pretrained.*`, `depth_head.*`, fused qkv) and the authors' Video Depth
Anything (`pretrained.*`, `head.*` with `head.motion_modules.*`). All become transformers' 4.x
names, then paths. The authors' files do not say whether they are metric and up to which depth: that
is known from the published names, or from the flags.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from converters.depth import Conversion, Source
from converters.rules import (
    MECHANICAL,
    ConversionError,
    Rule,
    Shape,
    Table,
    Transform,
    flat_shapes,
    plan,
)
from recapture_jax.errors import InputError
from recapture_jax.models import depth_anything, video_depth_anything
from recapture_jax.models.depth_anything import HEAD_DIM, SIZES, DepthAnythingConfig
from recapture_jax.models.dinov2 import Dinov2Config
from recapture_jax.models.dpt import NeckConfig, fields_from_json
from recapture_jax.models.video_depth_anything import VideoDepthAnythingConfig

_REMEDY = "use the published weights of Depth Anything V2 or Video Depth Anything"
_PUBLISHED = (  # name of the authors' file, kind, max_depth
    (r"depth_anything_v2_metric_hypersim_vit[sbl]", "metric", 20.0),
    (r"depth_anything_v2_metric_vkitti_vit[sbl]", "metric", 80.0),
    (r"depth_anything(_v2)?_vit[sbl](14)?", "relative", None),
    (r"metric_video_depth_anything_vit[sbl]", "metric", None),
    (r"video_depth_anything_vit[sbl]", "relative", None),
)
_BACKBONE = {  # transformers' defaults, which its config.json leaves out
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
}
_NECK = {
    "reassemble_factors": (4, 2, 1, 0.5),
    "neck_hidden_sizes": (48, 96, 192, 384),
    "fusion_hidden_size": 64,
}
_FIXED = {  # settings of the backbone that the networks here do not have
    "use_swiglu_ffn": False,
    "apply_layernorm": True,
    "qkv_bias": True,
    "num_channels": 3,
    "hidden_act": "gelu",
}

# The unit before the first sum of the coarsest block has nothing to work on, mask_token belongs to
# pre-training, and `pe` is a fixed sinusoid.
UNUSED = (
    r"backbone\.embeddings\.mask_token",
    r"pretrained\.mask_token",
    r"neck\.fusion_stage\.layers\.0\.residual_layer1\..+",
    r"(depth_)?head\.scratch\.refinenet4\.resConfUnit1\..+",
    r"head\.motion_modules\.\d+\..+\.pos_encoder\.pe",
)

_LAYER = r"(backbone\.encoder\.layer\.\d+)"
HUB: Table = (
    Rule(_LAYER + r"\.attention\.q_proj\.(.+)", r"\1.attention.attention.query.\2"),
    Rule(_LAYER + r"\.attention\.k_proj\.(.+)", r"\1.attention.attention.key.\2"),
    Rule(_LAYER + r"\.attention\.v_proj\.(.+)", r"\1.attention.attention.value.\2"),
    Rule(_LAYER + r"\.attention\.o_proj\.(.+)", r"\1.attention.output.dense.\2"),
    Rule(r"(backbone|neck|head)\..+", r"\g<0>"),
)


def _authors_table() -> Table:
    block, layer = r"pretrained\.blocks\.(\d+)\.", r"backbone.encoder.layer.\1."
    head, stage = r"(?:depth_)?head\.", r"neck.reassemble_stage.layers.\1."
    qkv = tuple(layer + rf"attention.attention.{part}.\2" for part in ("query", "key", "value"))
    rules = [
        Rule(r"pretrained\.cls_token", r"backbone.embeddings.cls_token"),
        Rule(r"pretrained\.pos_embed", r"backbone.embeddings.position_embeddings"),
        Rule(
            r"pretrained\.patch_embed\.proj\.(.+)",
            r"backbone.embeddings.patch_embeddings.projection.\1",
        ),
        Rule(r"pretrained\.norm\.(.+)", r"backbone.layernorm.\1"),
        Rule(block + r"attn\.qkv\.(.+)", qkv),
        Rule(block + r"attn\.proj\.(.+)", layer + r"attention.output.dense.\2"),
        Rule(block + r"ls([12])\.gamma", layer + r"layer_scale\2.lambda1"),
        Rule(block + r"((?:norm[12]|mlp\.fc[12])\..+)", layer + r"\2"),
        Rule(head + r"projects\.(\d+)\.(.+)", stage + r"projection.\2"),
        Rule(head + r"resize_layers\.(\d+)\.(.+)", stage + r"resize.\2"),
        Rule(head + r"scratch\.output_conv1\.(.+)", r"head.conv1.\1"),
        Rule(head + r"scratch\.output_conv2\.0\.(.+)", r"head.conv2.\1"),
        Rule(head + r"scratch\.output_conv2\.2\.(.+)", r"head.conv3.\1"),
        Rule(r"head\.motion_modules\.(\d+)\.temporal_transformer\.(.+)", r"motion_modules.\1.\2"),
    ]
    for n in range(1, 5):
        net, fusion = head + rf"scratch\.refinenet{n}\.", rf"neck.fusion_stage.layers.{4 - n}."
        rules += [
            Rule(head + rf"scratch\.layer{n}_rn\.(.+)", rf"neck.convs.{n - 1}.\1"),
            Rule(net + r"out_conv\.(.+)", fusion + r"projection.\1"),
            Rule(
                net + r"resConfUnit([12])\.conv([12])\.(.+)",
                fusion + r"residual_layer\1.convolution\2.\3",
            ),
        ]
    return tuple(rules)


AUTHORS = _authors_table()


def _leaves(config: DepthAnythingConfig) -> Table:
    """Transformers' 4.x names to paths. Which `resize` is transposed shows in the factors only."""
    up = "|".join(str(i) for i, f in enumerate(config.neck.reassemble_factors) if f > 1)
    return (
        Rule(
            rf"(neck\.reassemble_stage\.layers\.(?:{up})\.resize)\.weight",
            r"\1.kernel",
            Transform.CONV_TRANSPOSE2D,
        ),
        Rule(r".+\.(cls_token|position_embeddings|lambda1)", r"\g<0>", Transform.IDENTITY),
        *MECHANICAL,
    )


def recognise(keys: Collection[str], config: Mapping | None) -> bool:
    """Whether this is Depth Anything or Video Depth Anything, in any of the three spellings."""
    if config is not None:
        return config.get("model_type") == "depth_anything"
    heads = ("depth_head.scratch.", "head.scratch.")
    if any(key.startswith("pretrained.blocks.") for key in keys):
        return any(key.startswith(heads) for key in keys)
    return "head.conv1.weight" in keys and any(key.startswith("neck.fusion_stage.") for key in keys)


def convert(source: Source, kind: str | None, max_depth: float | None) -> Conversion:
    """The complete plan; see converters.depth.

    Raises:
        ConversionError: the configuration is not usable or contradicts the flags, or the tensors
            do not fit it.
    """
    shapes = source.tensors.shapes
    try:
        if source.config is not None:
            if kind is not None or max_depth is not None:
                raise ConversionError(
                    f"{source.name}/config.json states what its depth is; leave out --kind and "
                    "--max_depth"
                )
            config, table = _hub_config(source.config), HUB
        elif "head.conv1.weight" in shapes:
            raise ConversionError(
                f"{source.name} is a file of transformers, which needs the config.json beside it; "
                "give the folder"
            )
        else:
            config, table = _authors_config(shapes, source.name, kind, max_depth), AUTHORS
    except ConversionError:
        raise
    except InputError as error:
        raise ConversionError(f"{source.name}: {error}") from None
    video = isinstance(config, VideoDepthAnythingConfig)
    model, what = (
        (video_depth_anything, "video_depth_anything")
        if video
        else (depth_anything, "depth_anything")
    )
    target = flat_shapes(model.abstract_params(config))
    fills = plan(shapes, target, (table, _leaves(config)), UNUSED, what, _REMEDY)
    return Conversion({"architecture": what, **config.to_dict()}, fills)


def _hub_config(values: Mapping[str, Any]) -> DepthAnythingConfig:
    """From a config.json of transformers; its defaults fill what is left out."""
    given = values.get("backbone_config") or {}
    if not isinstance(given, Mapping) or given.get("model_type", "dinov2") != "dinov2":
        raise ConversionError("the backbone of config.json is not dinov2; " + _REMEDY)
    for name, wanted in _FIXED.items():
        if given.get(name, wanted) != wanted:
            raise ConversionError(
                f"the backbone of config.json has {name} {given[name]!r}, only {wanted!r} is "
                f"supported; {_REMEDY} of size small, base or large"
            )
    out = given.get("out_indices") or [
        int(name.removeprefix("stage")) for name in given.get("out_features") or ()
    ]
    metric = values.get("depth_estimation_type", "relative") == "metric"
    if metric and not values.get("max_depth"):
        raise ConversionError("config.json is metric without a max_depth; state it there")
    try:
        backbone = Dinov2Config(
            **{name: given.get(name, default) for name, default in _BACKBONE.items()},
            out_indices=tuple(out),
        )
        neck = {name: values.get(name, default) for name, default in _NECK.items()}
        neck = fields_from_json(neck)
        return DepthAnythingConfig(
            backbone,
            NeckConfig(**neck),
            values.get("head_hidden_size", 32),
            values.get("depth_estimation_type", "relative"),
            float(values["max_depth"]) if metric else None,
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise ConversionError(f"config.json is not usable ({error}); {_REMEDY}") from None


def _authors_config(
    shapes: Mapping[str, Shape], name: str, kind: str | None, max_depth: float | None
) -> DepthAnythingConfig:
    """From the shapes of the authors' file, its name and the flags."""
    video = any(key.startswith("head.motion_modules.") for key in shapes)
    head = "head." if "head.scratch.layer1_rn.weight" in shapes else "depth_head."

    def shape(key: str, ndim: int) -> Shape:
        if key not in shapes or len(shapes[key]) != ndim:
            raise ConversionError(
                f"{name}: {key} is {shapes.get(key, 'missing')}, expected {ndim} axes; {_REMEDY}"
            )
        return shapes[key]

    found = (re.match(r"pretrained\.blocks\.(\d+)\.", key) for key in shapes)
    layers = len({match[1] for match in found if match})
    out_indices = {size[1]: size[2] for size in SIZES.values()}
    if layers not in out_indices:
        raise ConversionError(
            f"{name} has {layers} transformer layers, expected {sorted(out_indices)} (sizes small, "
            f"base and large); {_REMEDY}"
        )
    _, tokens, hidden = shape("pretrained.pos_embed", 3)
    patch = shape("pretrained.patch_embed.proj.weight", 4)[-1]
    backbone = Dinov2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(hidden // HEAD_DIM, 1),
        out_indices=out_indices[layers],
        image_size=patch * round((tokens - 1) ** 0.5),
        patch_size=patch,
        interpolate_offset=0.1,
    )
    neck = NeckConfig(
        tuple(shape(f"{head}projects.{i}.weight", 4)[0] for i in range(4)),
        shape(f"{head}scratch.layer1_rn.weight", 4)[0],
    )
    kind, max_depth = _meaning(name, video, kind, max_depth)
    hidden_head = shape(f"{head}scratch.output_conv2.0.weight", 4)[0]
    if video:
        return VideoDepthAnythingConfig(backbone, neck, hidden_head, kind)
    return DepthAnythingConfig(backbone, neck, hidden_head, kind, max_depth)


def _meaning(
    name: str, video: bool, kind: str | None, max_depth: float | None
) -> tuple[str, float | None]:
    """(kind, max_depth) from the flags, or from the file's published name."""
    stem = name.rpartition(".")[0]
    known = next((found for p, *found in _PUBLISHED if re.fullmatch(p, stem)), (None, None))
    if kind is not None and known[0] not in (None, kind):
        raise ConversionError(f"{name} is by its name {known[0]}, not {kind}; leave out --kind")
    if kind is None and max_depth is not None and not video:
        kind = "metric"
    kind, max_depth = kind or known[0], max_depth or known[1]
    bounded = kind == "metric" and not video
    if kind is None or (bounded and max_depth is None):
        flags = (
            "--kind metric" if video else "--kind metric --max_depth 20 (indoor) or 80 (outdoor)"
        )
        raise ConversionError(
            f"the name {name} does not tell what its depth is; pass --kind relative or {flags}"
        )
    if max_depth is not None and not bounded:
        raise ConversionError(f"{name} has no bounded metric head; leave out --max_depth")
    return kind, max_depth
