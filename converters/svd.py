"""Stable Video Diffusion weights -> this package's checkpoints.

    python -m converters.svd --src SRC --dst DST [--dtype float32|bfloat16|float16]

SRC is a diffusers folder (unet, vae, image_encoder; any sizes their config.json files state) or
Stability's svd.safetensors / svd_xt.safetensors. DST becomes

    config.json    {'unet', 'vae', 'image_encoder', 'scheduler', 'num_frames'}
    source.json    where it came from: name, SHA-256 of every file, dtype, converter version
    unet/ vae/ image_encoder/    parameter trees for recapture_jax.checkpoints.restore_tree

and appears whole or not at all. Bad input exits with code 2 and one line. One component
is in memory at a time, twice while it is written.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from converters import sources, stability
from converters.command import Parser, run
from converters.rules import ConversionError, Fill, Shape, build_tree, flat_shapes, plan
from recapture_jax.checkpoints import save_tree
from recapture_jax.models.zoo import abstract_params

VERSION = 1  # raised when the same source would give another tree
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_ID_FIELDS = ("projection_class_embeddings_input_dim", "addition_time_embed_dim")


def target_shapes(component: str, config: Mapping) -> dict[str, Shape]:
    """Shapes by path of the Flax module that `config` (a config.json) describes; allocates nothing.

    Raises:
        ConversionError: the config does not describe a model this package has.
    """
    try:
        if component == "unet":
            # Three ids (fps, motion, augmentation); other models of the family have other numbers.
            ids, width = (config[name] for name in _ID_FIELDS)
            if ids != 3 * width:
                raise ValueError(
                    f"{_ID_FIELDS[0]} is {ids}, expected 3 x {width}: not an SVD U-Net"
                )
        # Only `component` is looked at; the other two are there because a whole model is expected.
        return flat_shapes(abstract_params(component, {**stability.CONFIGS, component: config}))
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise ConversionError(f"the config of {component} is not usable: {error}") from error


def plan_all(source: sources.Source) -> dict[str, list[Fill]]:
    """The complete plan of every component, from names and shapes alone.

    Raises:
        ConversionError: see rules.plan; or a tensor that is not a plain float.
    """
    plans = {}
    for component in sources.COMPONENTS:
        tensors = source.tensors[component]
        plans[component] = plan(
            tensors.shapes,
            target_shapes(component, source.configs[component]),
            source.tables[component],
            source.unused[component],
            what=component,
        )
        tensors.check_float([fill.key for fill in plans[component]], component)
    return plans


def convert(
    src: str | Path,
    dst: str | Path,
    dtype: str = "float32",
    *,
    num_frames: int | None = None,
    variant: str | None = None,
    configs: Mapping[str, dict] | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Converts `src` into the folder `dst`; see the module's docstring for both.

    Args:
        src, num_frames, variant, configs: see sources.open_source.
        dst: must not exist, unless `overwrite`; then it must be an earlier conversion (or empty)
            and is replaced only after success.
        dtype: of the stored parameters: 'float32', 'bfloat16' or 'float16'.
        say: gets a line per component.

    Raises:
        ConversionError: nothing has been written then, and an old `dst` is as it was.
    """
    if dtype not in DTYPES:
        raise ConversionError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    dst = Path(dst).absolute()
    _check_destination(dst, overwrite)
    source = sources.open_source(src, num_frames, variant, configs)
    plans = plan_all(source)
    config = {**source.configs, "num_frames": source.num_frames}
    config["unet"] = {**config["unet"], "num_frames": source.num_frames}

    building = dst.with_name(f"{dst.name}.tmp-{os.getpid()}")
    try:
        building.mkdir(parents=True)
        _check_space(building, source, plans, dtype)
        for component, fills in plans.items():
            read = source.tensors[component].read
            tree = build_tree(fills, read, DTYPES[dtype], component)
            save_tree(building / component, tree)
            count = sum(leaf.size for leaf in jax.tree.leaves(tree))
            say(f"{component}: {len(fills)} arrays, {count:,} parameters, {dtype}")
            del tree
        origin = {
            "source": Path(src).absolute().name,
            "sha256": {path.as_posix(): _sha256(source.root / path) for path in source.files},
            "dtype": dtype,
            "converter": f"converters.svd {VERSION}",
        }
        for name, content in (("config.json", config), ("source.json", origin)):
            (building / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        _put_in_place(building, dst)
    except OSError as error:
        raise ConversionError(f"{dst} cannot be written ({error})") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    say(f"wrote {dst}")


def _check_destination(dst: Path, overwrite: bool) -> None:
    if not dst.exists():
        return
    if not overwrite:
        raise ConversionError(f"{dst} exists already; choose another folder or pass --overwrite")
    # Replacing means deleting: only what is known to be ours.
    empty = dst.is_dir() and not any(dst.iterdir())
    if not empty and not (dst / "source.json").is_file():
        raise ConversionError(
            f"{dst} is not an earlier conversion (no source.json in it), so it is not replaced; "
            "choose another folder"
        )


def _check_space(
    folder: Path, source: sources.Source, plans: Mapping[str, Sequence[Fill]], dtype: str
) -> None:
    size = np.dtype(DTYPES[dtype]).itemsize
    need = sum(
        int(np.prod(source.tensors[component].shapes[fill.key])) // fill.parts * size
        for component, fills in plans.items()
        for fill in fills
    )
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ConversionError(
            f"{folder.parent} has {free / 1e9:.1f} GB free, the checkpoint needs "
            f"{need / 1e9:.1f} GB; make room or choose another --dtype or folder"
        )


def _put_in_place(building: Path, dst: Path) -> None:
    """Renames `building` to `dst`; an old `dst` is moved aside first and comes back on failure."""
    if not dst.exists():
        building.rename(dst)
        return
    aside = dst.with_name(f"{dst.name}.old-{os.getpid()}")
    dst.rename(aside)
    try:
        building.rename(dst)
    except OSError:
        aside.rename(dst)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (0, or 2 for bad input)."""
    parser = Parser(prog="python -m converters.svd", description=__doc__.split("\n")[0])
    parser.add_argument("--src", required=True, help="diffusers folder, or svd[_xt].safetensors")
    parser.add_argument("--dst", required=True, help="folder to write; must not exist")
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES))
    parser.add_argument("--num_frames", type=int, help="default: from the config or the file name")
    parser.add_argument("--variant", help="weights of a folder: '' or fp16; default: '' if present")
    parser.add_argument("--configs", help="JSON with the three configs, for other sizes (one file)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier conversion")

    def work(flags) -> None:
        remedy = "give a JSON file"
        configs = sources.read_json(Path(flags.configs), remedy) if flags.configs else None
        convert(
            flags.src,
            flags.dst,
            flags.dtype,
            num_frames=flags.num_frames,
            variant=flags.variant,
            configs=configs,
            overwrite=flags.overwrite,
            say=print,
        )

    return run(parser, argv, work)


if __name__ == "__main__":
    sys.exit(main())
