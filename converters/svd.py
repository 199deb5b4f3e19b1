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

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from converters import sources, stability
from converters.command import Parser, run
from converters.destination import (
    DTYPES,
    check_destination,
    check_space,
    new_folder,
    write_json,
    write_origin,
)
from converters.rules import ConversionError, Fill, Shape, build_tree, flat_shapes, plan
from recapture_jax.checkpoints import save_tree
from recapture_jax.models.zoo import abstract_params

VERSION = 1  # raised when the same source would give another tree
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
    check_destination(dst, overwrite)
    source = sources.open_source(src, num_frames, variant, configs)
    plans = plan_all(source)
    config = {**source.configs, "num_frames": source.num_frames}
    config["unet"] = {**config["unet"], "num_frames": source.num_frames}

    with new_folder(dst) as building:
        pairs = [(source.tensors[component], fills) for component, fills in plans.items()]
        check_space(building, pairs, dtype)
        for component, fills in plans.items():
            read = source.tensors[component].read
            tree = build_tree(fills, read, DTYPES[dtype], component)
            save_tree(building / component, tree)
            count = sum(leaf.size for leaf in jax.tree.leaves(tree))
            say(f"{component}: {len(fills)} arrays, {count:,} parameters, {dtype}")
            del tree
        write_json(building / "config.json", config)
        name, converter = Path(src).absolute().name, f"converters.svd {VERSION}"
        write_origin(building, name, source.root, source.files, dtype, converter)
    say(f"wrote {dst}")


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
