"""FastDepth's ONNX file -> this package's safetensors file.

    python -m converters.fastdepth --src fastdepth_7.onnx --dst DIR_OR_FILE [--overwrite]

DST is a .safetensors file, or a folder that gets fastdepth.safetensors. The tensors of the ONNX
file have numbers for names, so each is known by its place: the graph is walked node by node and
has to be, operation for operation, the one that recapture_jax.models.fastdepth builds. Every
tensor is used exactly once and every leaf of the tree is filled, or nothing is written. The result
is float32, holds the source's SHA-256 as metadata and is the same bytes every time. Needs `onnx`.
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from converters.command import Parser, run
from converters.rules import ConversionError, Transform, flat_shapes
from recapture_jax.models import fastdepth as model

FILE_NAME = "fastdepth.safetensors"
_NORM = ("scale", "bias", "mean", "var")  # order of BatchNormalization's inputs 1 to 4
_LISTED = 6  # entries of a +/- list, so that the message stays one readable line


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Converts `src` and returns the file written; see the module's docstring.

    Raises:
        ConversionError: unreadable or different source; nothing has been written then.
        InputError: dst exists and overwrite is False, or it cannot be written.
    """
    from safetensors.numpy import save

    from recapture_jax.video.write import atomic

    src, dst = Path(src), _destination(Path(dst))
    try:
        content = src.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConversionError(f"{src} cannot be read ({reason}); give FastDepth's .onnx") from None
    leaves = read_leaves(content, str(src))
    # One entry only: safetensors writes several in random order.
    blob = save(leaves, {"source_sha256": hashlib.sha256(content).hexdigest()})
    with atomic(dst, overwrite) as temporary:
        temporary.write_bytes(blob)
    count = sum(leaf.size for leaf in leaves.values())
    say(f"wrote {dst}: {len(leaves)} arrays, {count:,} parameters, float32")
    return dst


def _destination(dst: Path) -> Path:
    if dst.is_dir():
        return dst / FILE_NAME
    if dst.suffix != ".safetensors":
        raise ConversionError(
            f"{dst} is neither an existing folder nor a .safetensors file; create the folder first"
        )
    return dst


def read_leaves(content: bytes, what: str) -> dict[str, np.ndarray]:
    """The network's leaves by path, from the bytes of the ONNX file.

    Raises:
        ConversionError: not ONNX, another graph, or tensors that do not fit; one line.
    """
    graph = _parse(content, what).graph
    tensors = _tensors(graph, what)
    nodes, used = _describe(graph, {name: array.shape for name, array in tensors.items()})
    expected = list(expected_nodes())
    if nodes != expected:
        missing, extra = Counter(expected) - Counter(nodes), Counter(nodes) - Counter(expected)
        listed = _listed([f"-{n}" for n in missing], [f"+{n}" for n in extra])
        raise ConversionError(
            f"{what}: the graph is not FastDepth's, {missing.total() + extra.total()} nodes differ "
            f"(+ only in the file, - only in FastDepth): {listed or 'their order'}; "
            "use fastdepth_7.onnx"
        )
    leaves = {}
    uses = Counter(used)
    wrong = [f"{name} is used {count} times" for name, count in uses.items() if count > 1]
    for path, name in zip(leaf_paths(), used, strict=True):
        array = tensors[name]
        if array.dtype != np.float32 or not np.isfinite(array).all():
            wrong.append(f"{name} ({path}) is not finite float32")
        elif array.ndim == 4:
            array = Transform.CONV2D(array)
        leaves[path] = np.ascontiguousarray(array)
    extra = [
        f"+{name} {array.shape}"
        for name, array in tensors.items()
        # batch counters of training: integer scalars that no node reads
        if name not in uses and not (array.dtype == np.int64 and array.shape == ())
    ]
    wanted, found = flat_shapes(model.abstract_params()), flat_shapes(leaves)
    absent = [f"-{path} {wanted[path]}" for path in wanted.keys() - found.keys()]
    extra += [f"+{path} {found[path]}" for path in found.keys() - wanted.keys()]
    wrong += [
        f"{path}: {found[path]} is not {wanted[path]}"
        for path in wanted.keys() & found.keys()
        if found[path] != wanted[path]
    ]
    if wrong or extra or absent:
        raise ConversionError(
            f"{what}: {len(wrong + extra + absent)} tensors do not fit FastDepth (+ has no place, "
            f"- missing): {_listed(sorted(extra), sorted(absent), wrong)}; use fastdepth_7.onnx"
        )
    return leaves


def _layers() -> Iterator[tuple[str, int, int, int, int, int, float | None]]:
    """(path, inputs, outputs, groups, kernel, stride, ceiling) of every layer, in graph order."""
    width = model.STEM
    yield "stem", 3, width, 1, 3, 2, 6.0
    for i, (features, stride) in enumerate(model.ENCODER, 1):
        yield f"encoder_{i}/depthwise", width, width, width, 3, stride, 6.0
        yield f"encoder_{i}/pointwise", width, features, 1, 1, 1, 6.0
        width = features
    for i, features in enumerate(model.DECODER, 1):
        yield f"decoder_{i}/depthwise", width, width, width, 5, 1, None
        yield f"decoder_{i}/pointwise", width, features, 1, 1, 1, None
        width = features
    yield "head", width, 1, 1, 1, 1, None


def leaf_paths() -> Iterator[str]:
    """The tree's paths in the order in which the graph uses their tensors."""
    for path, *_ in _layers():
        yield f"{path}/conv/kernel"
        yield from (f"{path}/norm/{name}" for name in _NORM)


def expected_nodes() -> Iterator[str]:
    """FastDepth's graph in the words of `_describe`."""
    outputs: dict[str, int] = {}
    node, last = -1, "input"
    for path, inputs, width, groups, kernel, stride, ceiling in _layers():
        shape = (width, inputs // groups, kernel, kernel)
        yield f"Conv({last}) {shape} stride {stride} padding {kernel // 2} groups {groups}"
        yield f"BatchNormalization({node + 1}) {width} eps {np.float32(model.EPSILON)}"
        yield f"{'Relu' if ceiling is None else 'Clip'}({node + 2})" + (
            "" if ceiling is None else f" 0 to {ceiling:g}"
        )
        node += 3
        outputs[path] = node
        block, _, half = path.partition("/")
        if block.startswith("decoder") and half == "pointwise":
            yield f"Upsample({node}) nearest 2x2"
            node += 1
            skip = model.SKIPS.get(int(block.removeprefix("decoder_")))
            if skip:
                yield f"Add({node}, {outputs[f'encoder_{skip}/pointwise']})"
                node += 1
        last = str(node)
    yield f"output {node}"


def _describe(graph, shapes: dict[str, tuple]) -> tuple[list[str], list[str]]:
    """A line per node, its data inputs given by the number of the node they come from; and the
    names of the tensors that the nodes read, in order."""
    from onnx.helper import get_attribute_value

    numbers = {graph.input[0].name: "input"} if graph.input else {}
    lines, used = [], []
    for number, node in enumerate(graph.node):
        used += [name for name in node.input if name in shapes]
        own = [shapes[name] for name in node.input if name in shapes]
        data = ", ".join(numbers.get(name, "?") for name in node.input if name not in shapes)
        values = {a.name: get_attribute_value(a) for a in node.attribute}
        lines.append(f"{node.op_type}({data})" + _details(node.op_type, values, own))
        numbers |= {name: str(number) for name in node.output}
    lines.append("output " + ", ".join(numbers.get(value.name, "?") for value in graph.output))
    return lines, used


def _details(op: str, values: dict, shapes: list[tuple]) -> str:
    """The attributes and tensor shapes that change what a node computes."""
    if op == "Conv" and len(shapes) == 1:
        stride, padding = set(values.get("strides", [1])), set(values.get("pads", [0]))
        dilation = set(values.get("dilations", [1]))
        if len(stride) == len(padding) == 1 and dilation == {1} and "auto_pad" not in values:
            return (
                f" {shapes[0]} stride {stride.pop()} padding {padding.pop()} "
                f"groups {values.get('group', 1)}"
            )
    if op == "BatchNormalization" and len(shapes) == 4 and len(set(shapes)) == 1:
        if len(shapes[0]) == 1:
            return f" {shapes[0][0]} eps {np.float32(values.get('epsilon', 1e-5))}"
    if op == "Clip" and values.keys() == {"min", "max"} and not shapes:
        return f" {values['min']:g} to {values['max']:g}"
    if op == "Upsample" and values.get("scales") == [1.0, 1.0, 2.0, 2.0]:
        return f" {values.get('mode', b'nearest').decode()} 2x2"
    return f" {shapes} {values}" if shapes or values else ""


def _parse(content: bytes, what: str):
    try:
        import onnx
    except ImportError:
        raise ConversionError(
            "reading ONNX needs the onnx package; run `pip install onnx`"
        ) from None
    try:
        loaded = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's DecodeError has no public home across its versions
        raise ConversionError(
            f"{what} is not a whole ONNX file ({error}); download it again"
        ) from None
    if not loaded.graph.node:
        raise ConversionError(f"{what} holds no ONNX graph; expected fastdepth_7.onnx")
    return loaded


def _tensors(graph, what: str) -> dict[str, np.ndarray]:
    from onnx import TensorProto, numpy_helper

    arrays = {}
    for tensor in graph.initializer:
        if tensor.name in arrays:
            raise ConversionError(f"{what} holds tensor {tensor.name} twice; download it again")
        try:
            if tensor.data_location == TensorProto.EXTERNAL:
                raise ValueError("stored in another file")
            arrays[tensor.name] = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise ConversionError(
                f"{what}: tensor {tensor.name} is not usable ({error}); download it again"
            ) from None
    return arrays


def _listed(*groups: list[str]) -> str:
    parts = []
    for group in groups:
        parts += group[:_LISTED]
        if len(group) > _LISTED:
            parts.append(f"... {len(group) - _LISTED} more")
    return "; ".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (0, or 2 for bad input)."""
    parser = Parser(prog="python -m converters.fastdepth", description=__doc__.split("\n")[0])
    parser.add_argument("--src", required=True, help="fastdepth_7.onnx")
    parser.add_argument("--dst", required=True, help=f"folder, or file like {FILE_NAME}")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return run(
        parser,
        argv,
        lambda flags: convert(flags.src, flags.dst, overwrite=flags.overwrite, say=print),
    )


if __name__ == "__main__":
    sys.exit(main())
