"""LoRA files: safetensors with the names diffusers and peft read and write.

`{module}.lora_A.weight` is (r, in), `{module}.lora_B.weight` (out, r), `{module}` the PyTorch name
of the layer. Files are written with alpha = r, so that every reader applies the factor 1; `.alpha`
tensors, which diffusers silently ignores, are never written (but honoured when read).
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from recapture_jax.errors import InputError
from recapture_jax.lora.tree import Lora, dimensions

ADAPTER_METADATA = "lora_adapter_metadata"  # diffusers' key for the LoraConfig as JSON
OWN_METADATA = "recapture_jax"

# A trailing number is a list index in PyTorch ("to_out.0"), except in these real names.
_REAL_NUMBERED_NAMES = ("linear",)
_INDEXED = re.compile(rf"(?!(?:{'|'.join(_REAL_NUMBERED_NAMES)})_\d+$)(.+?)((?:_\d+)+)")
_KEY = re.compile(
    r"(?:base_model\.model\.)?(?:unet\.)?(?P<module>.+?)\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora\.down\.weight|lora\.up\.weight|alpha)"
)
_PARTS = {
    "lora_A.weight": "a",
    "lora.down.weight": "a",
    "lora_B.weight": "b",
    "lora.up.weight": "b",
    "alpha": "alpha",
}


def torch_name(path: str) -> str:
    """PyTorch module name: 'a_0/attn1/to_out_0' -> 'a.0.attn1.to_out.0'; 'linear_1' stays."""

    def component(name: str) -> str:
        match = _INDEXED.fullmatch(name)
        return match[1] + match[2].replace("_", ".") if match else name

    return ".".join(component(name) for name in path.split("/"))


def module_path(name: str) -> str:
    """The inverse of `torch_name`.

    Raises:
      InputError: if the name is not one that a path of ours can stand for.
    """
    path = re.sub(r"\.(\d+)(?=\.|$)", r"_\1", name).replace(".", "/")
    if torch_name(path) != name:
        raise InputError(f"LoRA layer {name!r}: expected the diffusers name of an SVD U-Net layer")
    return path


def save_lora(
    path: str | os.PathLike,
    lora: Lora,
    *,
    rank: int | None = None,
    targets: str | Iterable[str] = (),
    base_model: str | None = None,
    scale: float = 1.0,
    prefix: str = "",
    notes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes one safetensors file, atomically, float32.

    Args:
      path: the file; its folder must exist.
      lora: deltas.
      rank: if given, the rank that all deltas must have.
      targets: names or regexes the deltas were chosen by; only recorded.
      base_model: name or hash of the model the deltas belong to; only recorded.
      scale: factor to apply for good, folded into B.
      prefix: 'unet' for the names of a pipeline's file (`load_lora_adapter(..., prefix="unet")`).
      notes: further JSON-able facts to record.
      overwrite: replace an existing file.

    Returns:
      The path written.

    Raises:
      InputError: if there is nothing to write, the file exists, its folder does not, a delta is
        malformed or of another rank, or the prefix is not '' or 'unet'.
    """
    path = Path(path)
    if not lora:
        raise InputError(f"no LoRA deltas to write to {path}: expected at least one layer")
    if prefix not in ("", "unet"):
        raise InputError(f"LoRA file prefix {prefix!r}: expected '' or 'unet'")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists: choose another name or pass overwrite=True")
    if not path.parent.is_dir():
        raise InputError(f"no folder {path.parent}: create it before writing {path.name}")
    dot = f"{prefix}." if prefix else ""
    tensors, ranks = {}, {}
    for module, delta in sorted(lora.items()):
        _, ranks[torch_name(module)], _ = dimensions(module, delta)
        if rank is not None and ranks[torch_name(module)] != rank:
            raise InputError(f"LoRA {module} has rank {ranks[torch_name(module)]}, expected {rank}")
        name = dot + torch_name(module)
        # safetensors writes a numpy array's buffer as it lies, so a transposed view must be copied.
        a, b = np.asarray(delta["a"], np.float32), np.asarray(delta["b"], np.float32)
        tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a.T)
        tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b.T * np.float32(scale))
    config = {dot + key: value for key, value in _peft_config(ranks, base_model).items()}
    own = {
        "targets": targets if isinstance(targets, str) else list(targets),
        "base_model": base_model,
        **(notes or {}),
    }
    metadata = {
        "format": "pt",
        ADAPTER_METADATA: json.dumps(config, sort_keys=True),
        OWN_METADATA: json.dumps(own, sort_keys=True),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        safetensors.numpy.save_file(tensors, temporary, metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load_lora(path: str | os.PathLike) -> Lora:
    """Reads a LoRA of linear layers: ours, diffusers' and peft's, with `lora_A`/`lora_B` or
    `lora.down`/`lora.up` keys, with or without the prefix 'unet.' or 'base_model.model.'.

    The factor alpha / r, from `.alpha` tensors or from the adapter metadata, is folded into `b`.

    Returns:
      float32 deltas in order of path; that they fit a model is checked on use.

    Raises:
      InputError: if the file cannot be read, or names unknown (+) or missing (-) tensors, shapes
        that are not a linear layer's, or contradicting alphas.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        tensors = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"cannot read LoRA {path}: {error}; expected a safetensors file") from None
    modules: dict[str, dict[str, np.ndarray]] = {}
    extra = []
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        part = match and _PARTS[match["part"]]
        if not match or part in modules.get(match["module"], {}):
            extra.append(key)
        else:
            modules.setdefault(match["module"], {})[part] = value
    missing = [
        f"{name}.lora_{part.upper()}.weight"
        for name, parts in modules.items()
        for part in ("a", "b")
        if part not in parts
    ]
    if extra or missing or not modules:
        raise InputError(
            f"{path} is not a LoRA of linear layers (expected pairs of NAME.lora_A.weight and "
            f"NAME.lora_B.weight): {_listing('+', extra)} {_listing('-', missing)}"
        )
    config = _read_config(path, metadata)
    lora = {}
    for name, parts in modules.items():
        delta = {"a": parts["a"].T.astype(np.float32), "b": parts["b"].T.astype(np.float32)}
        target = module_path(name)
        _, rank, _ = dimensions(target, delta)
        delta["b"] = delta["b"] * np.float32(_factor(name, rank, parts.get("alpha"), config))
        lora[target] = {part: jnp.asarray(value) for part, value in delta.items()}
    return {target: lora[target] for target in sorted(lora)}


def read_notes(path: str | os.PathLike) -> dict[str, Any]:
    """What `save_lora` recorded (targets, base_model, notes); {} for files of others."""
    with safetensors.safe_open(path, framework="numpy") as file:
        return json.loads((file.metadata() or {}).get(OWN_METADATA, "{}"))


def _peft_config(ranks: Mapping[str, int], base_model: str | None) -> dict[str, Any]:
    """Fields of peft's LoraConfig; whole names as targets, for suffixes match too much."""
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {re.escape(name): r for name, r in ranks.items() if r != usual}
    return {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "bias": "none",
        "base_model_name_or_path": base_model,
    }


def _read_config(path: str | os.PathLike, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        config = json.loads(metadata.get(ADAPTER_METADATA, "{}"))
        return {key.removeprefix("unet."): value for key, value in config.items()}
    except (ValueError, AttributeError):
        raise InputError(
            f"{path}: its {ADAPTER_METADATA} is not a JSON object; write the file again without it"
        ) from None


def _factor(name: str, rank: int, tensor: np.ndarray | None, config: Mapping[str, Any]) -> float:
    """alpha / r of one layer; 1 if nothing is said."""
    factors = []
    if tensor is not None:
        factors.append(float(tensor.reshape(-1)[0]) / rank)
    if "lora_alpha" in config:
        alpha = config["lora_alpha"]
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", name):  # peft's rule: the first that matches
                alpha = value
                break
        factors.append(alpha / (rank**0.5 if config.get("use_rslora") else rank))
    if len(factors) == 2 and not np.isclose(*factors):
        raise InputError(
            f"LoRA layer {name}: its alpha tensor means a factor {factors[0]:g}, the metadata "
            f"{factors[1]:g}; remove one of them"
        )
    return factors[0] if factors else 1.0


def _listing(sign: str, keys: list[str], number: int = 4) -> str:
    shown = " ".join(sign + key for key in sorted(keys)[:number])
    return shown + (f" and {len(keys) - number} more {sign}" if len(keys) > number else "")
