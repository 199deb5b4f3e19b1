"""Weights of depth networks -> this package's checkpoints.

    python -m converters.depth --src SRC --dst DST [--dtype float32|bfloat16|float16]
        [--kind relative|metric] [--max_depth METRES]

SRC is a Hugging Face folder (config.json and model.safetensors, whole or in shards) or the authors'
single file (.pth or .safetensors; reading .pth needs no torch and runs nothing that is in it). What
is in it is recognised by its keys. DST becomes

    config.json    the network's configuration; 'architecture' names the estimator
    source.json    where it came from: name, SHA-256 of every file, dtype, converter version
    params/        parameter tree for recapture_jax.checkpoints.restore_tree

and appears whole or not at all. Bad input exits with code 2 and one line.

A module of FAMILIES knows the layouts of one family of networks by two functions:

    recognise(keys, config) -> bool
        keys: names of the tensors; config: contents of config.json, None for a single file. True if
        the family is meant, even if something of it is missing: `convert` then says what.
    convert(source, kind, max_depth) -> Conversion
        source: a Source; kind and max_depth: the flags, None where not given. Reads names and
        shapes only and raises ConversionError (one line) unless every key is used once or known to
        be unused and every leaf is filled once (rules.plan); the tensors are read afterwards.
"""

import importlib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from converters.command import Parser, run
from converters.destination import (
    DTYPES,
    check_destination,
    check_space,
    new_folder,
    write_json,
    write_origin,
)
from converters.rules import ConversionError, Fill, build_tree
from converters.sources import Tensors, open_component, open_safetensors, read_json
from converters.torch_file import open_torch
from recapture_jax.checkpoints import save_tree

VERSION = 1  # raised when the same source would give another tree
FAMILIES = ("converters.depth_anything", "converters.zoedepth")
KINDS = ("relative", "metric")


@dataclass(frozen=True)
class Source:
    """An opened checkpoint.

    Attributes:
        tensors: names, shapes and, when asked, values.
        config: contents of config.json; None for a single file.
        name: of the folder or file, for messages and for what file names tell.
        root, files: the folder, and the files used, relative to it.
    """

    tensors: Tensors
    config: Mapping | None
    name: str
    root: Path
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Conversion:
    """A complete plan.

    Attributes:
        config: what becomes config.json; 'architecture' is a key of
            recapture_jax.depth.networks.ARCHITECTURES.
        fills: one per leaf of the tree, from rules.plan.
    """

    config: dict
    fills: Sequence[Fill]


def open_source(src: str | Path) -> Source:
    """Opens a folder or a single file.

    Raises:
        ConversionError: missing, unreadable or of another kind; one line.
    """
    src = Path(src)
    if not src.exists():
        raise ConversionError(f"{src} does not exist; expected a folder, a .safetensors or a .pth")
    if src.is_file():
        openers = {".safetensors": open_safetensors, ".pth": open_torch, ".pt": open_torch}
        if src.suffix not in openers:
            raise ConversionError(f"{src} is neither a folder nor a .safetensors or .pth file")
        tensors = openers[src.suffix](src)
        return Source(tensors, None, src.name, src.parent, (Path(src.name),))
    path = src / "config.json"
    config = read_json(path, "a folder of weights needs it; or give the single file of weights")
    tensors, used = open_component(src, "model", None)
    files = tuple(file.relative_to(src) for file in (path, *used))
    return Source(tensors, config, src.absolute().name, src, files)


def recognise(keys: Collection[str], config: Mapping | None):
    """The module of FAMILIES that knows this network, None if there is none."""
    for name in FAMILIES:
        family = importlib.import_module(name)
        if family.recognise(keys, config):
            return family
    return None


def convert(
    src: str | Path,
    dst: str | Path,
    dtype: str = "float32",
    *,
    kind: str | None = None,
    max_depth: float | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Converts `src` into the folder `dst`; see the module's docstring for both.

    Args:
        dst: must not exist, unless `overwrite`; then it must be an earlier conversion (or empty)
            and is replaced only after success.
        dtype: of the stored parameters: 'float32', 'bfloat16' or 'float16'.
        kind: 'relative' or 'metric', for files that do not tell.
        max_depth: metres, of a metric head that ends in a sigmoid, for files that do not tell.
        say: gets a line about what was converted.

    Raises:
        ConversionError: nothing has been written then, and an old `dst` is as it was.
    """
    if dtype not in DTYPES:
        raise ConversionError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    if kind not in (None, *KINDS):
        raise ConversionError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    if max_depth is not None and not 0 < max_depth < float("inf"):
        raise ConversionError(f"max_depth is {max_depth}, expected metres above 0")
    dst = Path(dst).absolute()
    check_destination(dst, overwrite)
    source = open_source(src)
    family = recognise(source.tensors.shapes.keys(), source.config)
    if family is None:
        raise ConversionError(
            f"{src} is none of the depth networks known here; expected Depth Anything V2, "
            "Video Depth Anything or ZoeDepth"
        )
    conversion = family.convert(source, kind, max_depth)
    what = conversion.config["architecture"]
    source.tensors.check_float([fill.key for fill in conversion.fills], what)
    with new_folder(dst) as building:
        check_space(building, [(source.tensors, conversion.fills)], dtype)
        tree = build_tree(conversion.fills, source.tensors.read, DTYPES[dtype], what)
        save_tree(building / "params", tree)
        write_json(building / "config.json", conversion.config)
        converter = f"converters.depth {VERSION}"
        write_origin(building, source.name, source.root, source.files, dtype, converter)
    count = sum(leaf.size for leaf in jax.tree.leaves(tree))
    say(f"{what}: {len(conversion.fills)} arrays, {count:,} parameters, {dtype}")
    say(f"wrote {dst}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (0, or 2 for bad input)."""
    parser = Parser(prog="python -m converters.depth", description=__doc__.split("\n")[0])
    parser.add_argument("--src", required=True, help="Hugging Face folder, .pth or .safetensors")
    parser.add_argument("--dst", required=True, help="folder to write; must not exist")
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES))
    parser.add_argument("--kind", choices=KINDS, help="of depth, for files that do not tell")
    parser.add_argument(
        "--max_depth", type=float, help="metres: 20 (indoor), 80 (outdoor), for files as above"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier conversion")

    def work(flags) -> None:
        convert(
            flags.src,
            flags.dst,
            flags.dtype,
            kind=flags.kind,
            max_depth=flags.max_depth,
            overwrite=flags.overwrite,
            say=print,
        )

    return run(parser, argv, work)


if __name__ == "__main__":
    sys.exit(main())
