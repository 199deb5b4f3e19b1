"""ZoeDepth as transformers stores it (one metric head, or one per domain), for converters.depth.

Files of transformers 4, which are those on the hub, call the backbone's layers
`backbone.encoder.layer.N`, those of transformers 5 `backbone.beit.layers.N`; the rest is the same.
A config.json lists only what differs from the library's presets, hence the presets here.
"""

from collections.abc import Collection, Mapping
from typing import Any

from converters.depth import Conversion, Source
from converters.rules import MECHANICAL, ConversionError, Rule, Table, Transform, flat_shapes, plan
from converters.sources import read_json
from recapture_jax.depth.zoedepth import ARCHITECTURE, Preprocessing
from recapture_jax.errors import InputError
from recapture_jax.models.beit import BeitConfig
from recapture_jax.models.dpt import NeckConfig
from recapture_jax.models.metric_bins import CENTRES, Bins, HeadConfig
from recapture_jax.models.zoedepth import ZoeDepthConfig, abstract_params

PREPROCESSOR = "preprocessor_config.json"
REMEDY = "use the weights of a ZoeDepth checkpoint of transformers"

_LAYER = r"backbone\.encoder\.layer\.(\d+)"
_ATTENTION = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))

# Names of both versions -> dotted names of the tree.
NAMES: Table = (
    Rule(
        r"backbone\.(?:beit\.)?embeddings\.patch_embeddings\.projection\.(.+)",
        r"backbone.embeddings.projection.\1",
    ),
    Rule(
        _LAYER + r"\.attention\.attention\.relative_position_bias\.(.+)",
        r"backbone.layers.\1.relative_position_bias.\2",
    ),
    *(
        Rule(
            _LAYER + rf"\.attention\.attention\.{old}\.(.+)",
            rf"backbone.layers.\1.attention.{new}.\2",
        )
        for old, new in _ATTENTION
    ),
    Rule(_LAYER + r"\.attention\.output\.dense\.(.+)", r"backbone.layers.\1.attention.o_proj.\2"),
    Rule(_LAYER + r"\.intermediate\.dense\.(.+)", r"backbone.layers.\1.mlp.fc1.\2"),
    Rule(_LAYER + r"\.output\.dense\.(.+)", r"backbone.layers.\1.mlp.fc2.\2"),
    Rule(_LAYER + r"\.(.+)", r"backbone.layers.\1.\2"),
    Rule(r"backbone\.beit\.(.+)", r"backbone.\1"),
    Rule(
        r"neck\.reassemble_stage\.readout_projects\.(\d+)\.0\.(.+)",
        r"readout_projects.\1.projection.\2",
    ),
    # The tree keeps the parts of a head together. Domains have names, where an only head numbers.
    Rule(
        r"metric_head\.seed_bin_regressors\.(\w+)\.(.+)",
        r"metric_head.bins_\1.seed_bin_regressor.\2",
    ),
    Rule(
        r"metric_head\.(attractors|conditional_log_binomial)\.(?!mlp\.)([a-zA-Z]\w*)\.(.+)",
        r"metric_head.bins_\2.\1.\3",
    ),
    Rule(
        r"metric_head\.(seed_bin_regressor|attractors|conditional_log_binomial)\.(.+)",
        r"metric_head.bins.\1.\2",
    ),
    Rule(r"(.+)", r"\1"),
)
# Leaves that are not called weight or bias, and the transposed convolutions.
LEAVES: Table = (
    Rule(
        r"(.+\.)(cls_token|lambda_[12]|relative_position_bias_table)",
        r"\1\2",
        Transform.IDENTITY,
    ),
    Rule(
        r"(neck\.reassemble_stage\.layers\.[01]\.resize)\.weight",
        r"\1.kernel",
        Transform.CONV_TRANSPOSE2D,
        ndim=4,
    ),
    *MECHANICAL,
)
UNUSED = (
    r".+\.relative_position_index",  # follows from the window
    r"backbone\.(beit\.)?embeddings\.mask_token",  # of pretraining
    r"neck\.fusion_stage\.layers\.0\.residual_layer1\..+",  # nothing comes in there
)

# What a config.json may say beside the sizes: the library's preset, and what the network here has.
_ONLY = {
    "hidden_act": ("gelu", "gelu"),
    "readout_type": ("project", "project"),
    "reassemble_factors": ([4, 2, 1, 0.5], [4, 2, 1, 0.5]),
    "head_in_index": (-1, -1),
    "use_batch_norm_in_fusion_residual": (False, False),
    "use_bias_in_fusion_residual": (True, True),
    "add_projection": (False, False),
    "attractor_kind": ("mean", "mean"),
}
_ONLY_BACKBONE = {
    "model_type": ("beit", "beit"),
    "hidden_act": ("gelu", "gelu"),
    "num_channels": (3, 3),
    "use_relative_position_bias": (False, True),
    "use_shared_relative_position_bias": (False, False),
    "use_absolute_position_embeddings": (False, False),
    "add_fpn": (False, False),
    "reshape_hidden_states": (True, False),
}
_CLASSIFIER = (
    "patch_transformer_hidden_size",
    "patch_transformer_intermediate_size",
    "patch_transformer_num_attention_heads",
)
_ONLY_PREPROCESSOR = {
    "do_resize": (True, True),
    "do_rescale": (True, True),
    "do_normalize": (True, True),
    "rescale_factor": (1 / 255, 1 / 255),
    "resample": (2, 2),  # bilinear
}


def recognise(keys: Collection[str], config: Mapping | None) -> bool:
    """True for ZoeDepth, the authors' own file included (which `convert` then refuses)."""
    if config is not None and config.get("model_type") == "zoedepth":
        return True
    return any(key.startswith(("metric_head.", "core.core.pretrained.")) for key in keys)


def convert(source: Source, kind: str | None, max_depth: float | None) -> Conversion:
    """The complete plan, from names and shapes alone.

    Raises:
        ConversionError: not a folder of transformers, a network that is not this one, tensors
            that do not fit it, or flags that have no meaning here.
    """
    if source.config is None:
        raise ConversionError(
            f"{source.name} is ZoeDepth without its config.json; give the folder of a checkpoint "
            "of transformers, like Intel/zoedepth-nyu-kitti"
        )
    if kind == "relative" or max_depth is not None:
        raise ConversionError(
            f"{source.name} is ZoeDepth, whose depth is metric and whose config.json tells the "
            "range; leave --kind relative and --max_depth out"
        )
    try:
        config = read_config(source.config)
        path = source.root / PREPROCESSOR
        values = read_json(path, "") if path.is_file() else {}
        preprocessing = read_preprocessing(values, config.multiple)
    except InputError as error:
        raise ConversionError(f"{source.name}: {error}") from None
    fills = plan(
        source.tensors.shapes,
        flat_shapes(abstract_params(config)),
        (NAMES, LEAVES),
        UNUSED,
        ARCHITECTURE,
        REMEDY,
    )
    content = {
        "architecture": ARCHITECTURE,
        **config.to_dict(),
        "preprocessing": preprocessing.to_dict(),
    }
    return Conversion(content, fills)


def read_config(values: Mapping[str, Any]) -> ZoeDepthConfig:
    """The network of a transformers config.json.

    Raises:
        InputError: a field is unusable or asks for a network that this is not.
    """
    _check_only(values, _ONLY, "config.json")
    backbone = values.get("backbone_config")
    if not isinstance(backbone, Mapping):
        raise InputError("config.json has no backbone_config; use the file beside the weights")
    _check_only(backbone, _ONLY_BACKBONE, "config.json, backbone_config,")
    try:
        fused = int(_get(values, "fusion_hidden_size", 256))
        _check_only(values, {"bottleneck_features": (256, fused)}, "config.json")
        widths = _get(values, "neck_hidden_sizes", (96, 192, 384, 768))
        return ZoeDepthConfig(
            _read_backbone(backbone),
            NeckConfig(tuple(int(width) for width in widths), fused),
            int(_get(values, "num_relative_features", 32)),
            _read_head(values),
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"config.json is not usable ({error!r}); download it again") from None


def _get(values: Mapping[str, Any], name: str, preset: Any) -> Any:
    value = values.get(name)
    return preset if value is None else value


def _read_head(values: Mapping[str, Any]) -> HeadConfig:
    centres = _get(values, "bin_centers_type", "softplus")
    if centres not in CENTRES:
        raise InputError(
            f"config.json says bin_centers_type {centres!r}, expected one of {', '.join(CENTRES)}; "
            + REMEDY
        )
    preset = [{"n_bins": 64, "min_depth": 0.001, "max_depth": 10.0}]
    heads = _get(values, "bin_configurations", preset)
    several = len(heads) > 1
    bins = tuple(
        Bins(
            head["name"] if several else "",
            int(head["n_bins"]),
            float(head["min_depth"]),
            float(head["max_depth"]),
        )
        for head in heads
    )
    classifier = {}
    if several:
        _check_only(values, {"num_patch_transformer_layers": (None, 4)}, "config.json")
        classifier = {name: int(values[name]) for name in _CLASSIFIER}
    return HeadConfig(
        bins,
        int(_get(values, "bin_embedding_dim", 128)),
        tuple(int(count) for count in _get(values, "num_attractors", (16, 8, 4, 1))),
        centres,
        float(_get(values, "min_temp", 0.0212)),
        float(_get(values, "max_temp", 50.0)),
        **classifier,
    )


def _read_backbone(values: Mapping[str, Any]) -> BeitConfig:
    def get(name: str, preset: int) -> int:
        value = _get(values, name, preset)
        sides = set(value) if isinstance(value, list) else {value}
        if len(sides) != 1:
            raise InputError(f"config.json says {name} {value}, expected a square; {REMEDY}")
        return int(sides.pop())

    layers = get("num_hidden_layers", 12)
    if values.get("out_indices") is not None:
        stages = tuple(int(index) for index in values["out_indices"])
    else:
        names = values.get("out_features") or [f"stage{layers}"]
        stages = tuple(int(name.removeprefix("stage")) for name in names)
    return BeitConfig(
        get("hidden_size", 768),
        get("intermediate_size", 3072),
        layers,
        get("num_attention_heads", 12),
        get("image_size", 224),
        get("patch_size", 16),
        stages,
        float(_get(values, "layer_norm_eps", 1e-12)),
    )


def read_preprocessing(values: Mapping[str, Any], multiple: int) -> Preprocessing:
    """What a preprocessor_config.json says; `multiple`: what the network needs.

    Raises:
        InputError: a field is unusable or asks for what is not done here.
    """
    _check_only(values, _ONLY_PREPROCESSOR, PREPROCESSOR)
    preset = Preprocessing()
    size = _get(values, "size", None) or {"height": preset.size[0], "width": preset.size[1]}
    step = values.get("ensure_multiple_of", preset.multiple)
    if not isinstance(step, int) or step < 1 or step % multiple:
        raise InputError(
            f"{PREPROCESSOR} says ensure_multiple_of {step}, expected a multiple of {multiple}; "
            "the published files say 32"
        )
    try:
        return Preprocessing(
            (int(size["height"]), int(size["width"])),
            step,
            bool(values.get("keep_aspect_ratio", preset.keep_aspect)),
            bool(values.get("do_pad", preset.pad)),
            tuple(float(x) for x in values.get("image_mean") or preset.mean),
            tuple(float(x) for x in values.get("image_std") or preset.std),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{PREPROCESSOR} is not usable ({error!r}); download it again") from None


def _check_only(values: Mapping[str, Any], only: Mapping[str, tuple], what: str) -> None:
    for name, (preset, wanted) in only.items():
        found = _get(values, name, preset)
        if found != wanted:
            raise InputError(f"{what} says {name} {found!r}, expected {wanted!r}; {REMEDY}")
