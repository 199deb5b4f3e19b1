"""Finding and opening the files of an SVD checkpoint, in either public layout, without torch."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes  # noqa: F401 - gives numpy the bfloat16 that safetensors asks it for
import numpy as np
from safetensors import SafetensorError, safe_open

from converters import stability
from converters.rules import MECHANICAL, ConversionError, Shape, Table

COMPONENTS = ("unet", "vae", "image_encoder")
_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "image_encoder": "model",
}
_CLASSES = {
    "unet": "UNetSpatioTemporalConditionModel",
    "vae": "AutoencoderKLTemporalDecoder",
    "image_encoder": "CLIPVisionModelWithProjection",
}
UNUSED = {"image_encoder": (r"vision_model\.embeddings\.position_ids",)}  # a constant 0, 1, 2, ...
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_FLOATS = ("F16", "BF16", "F32", "F64")


@functools.lru_cache(maxsize=64)
def _open(path: Path, stamp: tuple[int, int]):
    """A cached handle (the file is mapped, not read); `stamp` tells a rewritten file apart."""
    with open(path, "rb") as file:
        if file.read(20).startswith(b"version https://git-"):
            raise ConversionError(
                f"{path} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`"
            )
    return safe_open(path, framework="np")


def _handle(path: Path):
    try:
        status = path.stat()
        return _open(path, (status.st_mtime_ns, status.st_size))
    except SafetensorError as error:
        raise ConversionError(
            f"{path} is not a whole safetensors file ({error}); download it again"
        ) from error
    except OSError as error:
        raise ConversionError(f"{path} cannot be read ({error.strerror or error})") from error


@dataclass
class Tensors:
    """The tensors of one component: shapes and dtypes at once, values one by one when asked."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    _places: dict[str, tuple[Path, str]] = field(default_factory=dict)
    _dtypes: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, path: Path, key: str) -> None:
        """Registers tensor `key` of the file `path` under `name`."""
        view = _handle(path).get_slice(key)
        self.shapes[name] = tuple(view.get_shape())
        self._dtypes[name] = view.get_dtype()
        self._places[name] = (path, key)

    def check_float(self, names: Sequence[str], what: str) -> None:
        """Raises ConversionError if one of the named tensors is not a plain float."""
        for name in names:
            if self._dtypes[name] not in _FLOATS:
                raise ConversionError(
                    f"{what}: {name} is {self._dtypes[name]}, expected one of "
                    f"{', '.join(_FLOATS)}; use a checkpoint that is not quantised"
                )

    def read(self, name: str) -> np.ndarray:
        path, key = self._places[name]
        return _handle(path).get_tensor(key)


def open_safetensors(path: Path) -> Tensors:
    """All tensors of one file, under their own names."""
    tensors = Tensors()
    for key in _handle(path).keys():  # noqa: SIM118 - not a dict
        tensors.add(key, path, key)
    return tensors


@dataclass(frozen=True)
class Source:
    """An opened checkpoint.

    Attributes:
        configs: config.json contents by component, 'scheduler' and, if present,
            'feature_extractor'.
        tensors: one Tensors per component.
        tables: the chained rule tables per component.
        unused: patterns of keys that are known and not needed, per component.
        num_frames: clip length the weights were trained for.
        files: every file that was used, relative to `root`.
        root: the folder that `files` are relative to.
    """

    configs: dict[str, dict]
    tensors: dict[str, Tensors]
    tables: dict[str, tuple[Table, ...]]
    unused: dict[str, tuple[str, ...]]
    num_frames: int
    files: tuple[Path, ...]
    root: Path


def open_source(
    src: str | Path,
    num_frames: int | None = None,
    variant: str | None = None,
    configs: Mapping[str, dict] | None = None,
) -> Source:
    """Opens a diffusers folder or a Stability single file.

    Args:
        src: the folder or the file.
        num_frames: overrides what the config or the file name says.
        variant: which weights of a folder ('' for the plain ones, 'fp16', ...); by default the
            plain ones, else fp16, else bf16.
        configs: for a single file of other sizes than the released models': config.json contents
            by component.

    Raises:
        ConversionError: missing, unreadable or wrong files; one line each.
    """
    src = Path(src)
    if not src.exists():
        raise ConversionError(f"{src} does not exist; expected a folder or a .safetensors file")
    if num_frames is not None and num_frames < 1:
        raise ConversionError(f"num_frames is {num_frames}, expected at least 1")
    if src.is_dir():
        if configs is not None:
            raise ConversionError(f"{src} brings its own config.json files; leave --configs out")
        return _open_folder(src, num_frames, variant)
    if src.suffix in _PICKLES:
        raise ConversionError(
            f"{src} is a torch pickle, which is not read; use the .safetensors file of this model"
        )
    if src.suffix != ".safetensors":
        raise ConversionError(f"{src} is neither a folder nor a .safetensors file")
    if variant:
        raise ConversionError(f"{src} is one file; a variant ({variant}) belongs to a folder")
    return _open_single(src, num_frames, configs or stability.CONFIGS)


def read_json(path: Path, missing: str) -> dict:
    """A JSON object from a file; ConversionError if there is none (ending in `missing`) or bad."""
    if not path.is_file():
        raise ConversionError(f"{path} is missing; {missing}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} does not hold a JSON object; download it again")
    return content


def _check_class(config: dict, component: str, path: Path) -> None:
    found = config.get("_class_name") or (config.get("architectures") or [None])[0]
    if found is None and config.get("model_type") == "clip_vision_model":
        found = _CLASSES["image_encoder"]
    if found != _CLASSES[component]:
        raise ConversionError(
            f"{path} is of a {found or 'model without a class name'}, expected "
            f"{_CLASSES[component]}; use the {component} folder of an SVD checkpoint"
        )


def _open_folder(src: Path, num_frames: int | None, variant: str | None) -> Source:
    absent = [name for name in COMPONENTS if not (src / name).is_dir()]
    if absent:
        single = sorted(path.name for path in src.glob("svd*.safetensors"))
        hint = f"or give the file {single[0]} as the source" if single else "download it whole"
        raise ConversionError(
            f"{src} has no sub-folder {', '.join(absent)}; expected {', '.join(COMPONENTS)} of a "
            f"diffusers checkpoint; {hint}"
        )
    configs, tensors, files = {}, {}, []
    for component in COMPONENTS:
        path = src / component / "config.json"
        configs[component] = read_json(path, f"the {component} folder needs it")
        _check_class(configs[component], component, path)
        files.append(path)
    for name, file in (
        ("scheduler", "scheduler_config.json"),
        ("feature_extractor", "preprocessor_config.json"),
    ):
        path = src / name / file
        if path.is_file():
            configs[name] = read_json(path, "")
            files.append(path)
    configs.setdefault("scheduler", stability.SCHEDULER)
    # The epsilon the weights were trained with; diffusers' own folders keep diffusers' (6e-5 apart).
    configs["unet"].setdefault("groupnorm_eps", "stability")
    frames = num_frames or configs["unet"].get("num_frames")
    if not isinstance(frames, int) or frames < 1:
        raise ConversionError(
            f"{src}/unet/config.json states num_frames {frames}; pass --num_frames (SVD 14, XT 25)"
        )
    for component in COMPONENTS:
        tensors[component], used = open_component(src / component, _STEMS[component], variant)
        files += used
    return Source(
        configs=configs,
        tensors=tensors,
        tables={name: (MECHANICAL,) for name in COMPONENTS},
        unused={name: UNUSED.get(name, ()) for name in COMPONENTS},
        num_frames=frames,
        files=tuple(path.relative_to(src) for path in files),
        root=src,
    )


def open_component(folder: Path, stem: str, variant: str | None) -> tuple[Tensors, list[Path]]:
    """The tensors of one folder, from one file or from shards, and the files used."""
    for tried in ("", "fp16", "bf16") if variant is None else (variant,):
        dot = f".{tried}" if tried else ""
        single = folder / f"{stem}{dot}.safetensors"
        if single.is_file():
            return open_safetensors(single), [single]
        for name in (f"{stem}.safetensors.index{dot}.json", f"{stem}{dot}.safetensors.index.json"):
            if (folder / name).is_file():
                return _sharded(folder / name)
    label = "" if variant is None else f" of variant {variant!r}"
    if any(folder.glob(f"{stem}*-of-*.safetensors")):
        raise ConversionError(
            f"{folder} has shards but no index{label}; fetch its *.safetensors.index.json"
        )
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise ConversionError(
            f"{folder} holds only torch pickles ({pickles[0]}), which are not read; "
            "save the model with safe_serialization=True"
        )
    raise ConversionError(f"{folder} has no weights{label}; expected {stem}.safetensors or shards")


def _sharded(index: Path) -> tuple[Tensors, list[Path]]:
    weight_map = read_json(index, "").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConversionError(f"{index} has no weight_map; download it again")
    tensors, shards = Tensors(), sorted({str(name) for name in weight_map.values()})
    for shard in shards:
        path = index.parent / shard
        if Path(shard).name != shard or path.suffix != ".safetensors":
            raise ConversionError(
                f"{index} names {shard!r}, expected a .safetensors file beside it"
            )
        if not path.is_file():
            raise ConversionError(f"{path} is missing; {index.name} lists it: download it")
        promised = {key for key, name in weight_map.items() if name == shard}
        keys = set(_handle(path).keys())
        if keys != promised:
            wrong = sorted(keys ^ promised)
            raise ConversionError(
                f"{path} and {index.name} disagree about {len(wrong)} tensors ({wrong[0]}, ...); "
                "download both again"
            )
        for key in sorted(keys):
            tensors.add(key, path, key)
    return tensors, [index, *(index.parent / shard for shard in shards)]


def split_groups(keys: Sequence[str]) -> dict[str, dict[str, str]]:
    """Sorts the keys of a single file by component: {component: {name in it: key of the file}}.

    Raises:
        ConversionError: a group is missing, or a key belongs to no group and is not a known unused
            one.
    """
    groups: dict[str, dict[str, str]] = {name: {} for name in COMPONENTS}
    present: set[str] = set()
    stray = []
    unused = [re.compile(pattern) for pattern in stability.UNUSED]
    for key in keys:
        for prefix, (component, new) in stability.GROUPS.items():
            if key.startswith(prefix):
                groups[component][new + key.removeprefix(prefix)] = key
                present.add(prefix)
                break
        else:
            if not any(pattern.fullmatch(key) for pattern in unused):
                stray.append(key)
    absent = [prefix for prefix in stability.GROUPS if prefix not in present]
    if absent:
        raise ConversionError(
            f"no tensors {', '.join(prefix + '*' for prefix in absent)}: this is another model; "
            "use Stability's svd.safetensors or svd_xt.safetensors"
        )
    if stray:
        raise ConversionError(
            f"{len(stray)} tensors belong to no part of SVD ({'; '.join(sorted(stray)[:6])}); "
            "use Stability's svd.safetensors or svd_xt.safetensors"
        )
    return groups


def _open_single(src: Path, num_frames: int | None, configs: Mapping[str, dict]) -> Source:
    keys = list(_handle(src).keys())
    try:
        groups = split_groups(keys)
    except ConversionError as error:
        raise ConversionError(f"{src}: {error}") from error
    if not any("time_stack" in key for key in groups["vae"].values()):
        raise ConversionError(
            f"{src} has the frame-by-frame image decoder; use the file with the temporal decoder "
            "(svd.safetensors, svd_xt.safetensors)"
        )
    tensors = {}
    for component, names in groups.items():
        tensors[component] = Tensors()
        for name, key in names.items():
            tensors[component].add(name, src, key)
    absent = [name for name in COMPONENTS if not isinstance(configs.get(name), dict)]
    if absent:
        raise ConversionError(f"the given configs lack {', '.join(absent)}; expected one per part")
    configs = {name: dict(config) for name, config in configs.items()}
    for name in COMPONENTS:
        _check_class(configs[name], name, Path(f"the config of {name}"))
    configs.setdefault("scheduler", stability.SCHEDULER)
    # The epsilon the weights were trained with; diffusers' own folders keep diffusers' (6e-5 apart).
    configs["unet"].setdefault("groupnorm_eps", "stability")
    try:
        tables = {name: (stability.TABLES[name](configs[name]), MECHANICAL) for name in COMPONENTS}
    except (KeyError, TypeError) as error:
        raise ConversionError(f"the given configs are incomplete ({error!r})") from error
    return Source(
        configs=configs,
        tensors=tensors,
        tables=tables,
        unused={name: () for name in COMPONENTS},
        num_frames=num_frames or (25 if src.stem.lower().startswith("svd_xt") else 14),
        files=(Path(src.name),),
        root=src.parent,
    )
