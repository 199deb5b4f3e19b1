"""One engine that lays foreign tensors out as a Flax tree: all of them, all of it, or an error.

A table is an ordered tuple of Rules; the first whose pattern matches a key decides. Tables are
chained: the first ones rename the keys of another layout, the last one (MECHANICAL) turns the
renamed key into a path of the tree. Planning needs names and shapes only, so a conversion is known
to be complete before the first tensor is read or a file is written.
"""

import enum
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recapture_jax.errors import InputError

Shape = tuple[int, ...]
_LISTED = 6  # entries shown per kind of mismatch, so that the message stays one readable line


class ConversionError(InputError):
    """The source cannot be converted; nothing has been written. One line."""


class Transform(enum.Enum):
    """How the values of a torch tensor are laid out in the tree; the value is the axis order."""

    IDENTITY = None
    LINEAR = (1, 0)  # (O, I) -> (I, O)
    CONV2D = (2, 3, 1, 0)  # (O, I, h, w) -> (h, w, I, O)
    CONV_TRANSPOSE2D = (2, 3, 0, 1)  # (I, O, h, w) -> (h, w, I, O), taps not flipped
    CONV3D = (2, 3, 4, 1, 0)  # (O, I, t, h, w) -> (t, h, w, I, O)
    SQUEEZE_LINEAR = "1x1"  # (O, I, 1, 1) -> (I, O): a Linear that was stored as a 1x1 convolution

    def shape(self, shape: Shape) -> Shape:
        """The shape after the transform. Raises ValueError if it does not apply."""
        if self is Transform.IDENTITY:
            return shape
        if self is Transform.SQUEEZE_LINEAR:
            if len(shape) != 4 or shape[2:] != (1, 1):
                raise ValueError(f"{shape} is not a 1x1 convolution")
            return shape[1], shape[0]
        if len(shape) != len(self.value):
            raise ValueError(f"{shape} does not have {len(self.value)} axes")
        return tuple(shape[axis] for axis in self.value)

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """The array after the transform (a view). Raises ValueError if it does not apply."""
        self.shape(array.shape)
        if self is Transform.IDENTITY:
            return array
        if self is Transform.SQUEEZE_LINEAR:
            return array[:, :, 0, 0].T
        return array.transpose(self.value)


@dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
        pattern: regular expression for the whole key.
        targets: what the key becomes (`re.expand` templates). Several targets split the tensor
            into as many equal parts along its first axis, in order.
        transform: None leaves the choice to a later table.
        ndim: apply only to tensors with this many axes.
    """

    pattern: str
    targets: str | tuple[str, ...]
    transform: Transform | None = None
    ndim: int | None = None

    def names(self, key: str, ndim: int) -> tuple[str, ...] | None:
        """The target names of `key`, None if the rule is not for it."""
        if self.ndim not in (None, ndim):
            return None
        match = _compiled(self.pattern).fullmatch(key)
        if match is None:
            return None
        targets = (self.targets,) if isinstance(self.targets, str) else self.targets
        return tuple(match.expand(target) for target in targets)


_compiled = functools.lru_cache(maxsize=None)(re.compile)

Table = tuple[Rule, ...]

# torch leaf names -> Flax leaf names; "weight" depends on what owns it.
MECHANICAL: Table = (
    Rule(r"(.+\.position_embedding)\.weight", r"\1.embedding", Transform.IDENTITY, ndim=2),
    Rule(r"(.+)\.weight", r"\1.scale", Transform.IDENTITY, ndim=1),
    Rule(r"(.+)\.weight", r"\1.kernel", Transform.LINEAR, ndim=2),
    Rule(r"(.+)\.weight", r"\1.kernel", Transform.CONV2D, ndim=4),
    Rule(r"(.+)\.weight", r"\1.kernel", Transform.CONV3D, ndim=5),
    Rule(r"(.+\.)?(bias|mix_factor|class_embedding)", r"\1\2", Transform.IDENTITY),
)


@dataclass(frozen=True)
class Fill:
    """One leaf of the tree: part `part` of `parts` of the source tensor `key`, transformed."""

    path: str
    key: str
    transform: Transform
    part: int = 0
    parts: int = 1

    def value(self, array: np.ndarray) -> np.ndarray:
        """The leaf from the whole source tensor (a view of it)."""
        if self.parts > 1:
            array = np.split(array, self.parts)[self.part]
        return self.transform(array)


def tree_path(name: str) -> str:
    """Dotted name to path: `blocks.0.attn.to_out.0.kernel` -> `blocks_0/attn/to_out_0/kernel`."""
    return re.sub(r"\.(\d+)(?=\.|$)", r"_\1", name).replace(".", "/")


def resolve(key: str, shape: Shape, tables: Sequence[Table]) -> list[tuple[Fill, Shape]] | None:
    """What becomes of one tensor: its leaves with their shapes; None if no rule knows the key.

    Raises:
        ValueError: a rule knows the key, but its shape cannot be transformed or split so.
    """
    names, transform = (key,), None
    for table in tables:
        expanded: list[str] = []
        for name in names:
            for rule in table:
                found = rule.names(name, len(shape))
                if found is not None:
                    expanded += found
                    transform = transform or rule.transform
                    break
            else:
                return None
        names = tuple(expanded)
    transform = transform or Transform.IDENTITY
    parts = len(names)
    if parts > 1 and (not shape or shape[0] % parts):
        raise ValueError(f"{shape} cannot be split into {parts} equal parts")
    part_shape = (shape[0] // parts, *shape[1:]) if parts > 1 else shape
    target_shape = transform.shape(part_shape)
    return [
        (Fill(tree_path(name), key, transform, part, parts), target_shape)
        for part, name in enumerate(names)
    ]


def plan(
    source: Mapping[str, Shape],
    target: Mapping[str, Shape],
    tables: Sequence[Table] = (MECHANICAL,),
    unused: Sequence[str] = (),
    what: str = "model",
    remedy: str = "use the weights of an SVD checkpoint",
) -> list[Fill]:
    """Where every source tensor goes, so that every leaf of the target is filled exactly once.

    Args:
        source: shapes by torch key.
        target: shapes by path, as `kernel` and the like are stored in the tree.
        tables: chained rule tables; the last one gives paths.
        unused: regular expressions of keys that are known and not needed.
        what: the component's name for messages.
        remedy: what a message tells to do.

    Returns:
        One Fill per leaf, ordered by source key.

    Raises:
        ConversionError: any key unknown, any leaf unfilled or filled twice, any shape different;
            all of them are listed (capped): + has no place in the model, - is missing in the
            source.
    """
    skip = [re.compile(pattern) for pattern in unused]
    fills: dict[str, Fill] = {}
    extra, differs = [], []
    seen: set[str] = set()
    for key, shape in sorted(source.items()):
        if any(pattern.fullmatch(key) for pattern in skip):
            continue
        try:
            resolved = resolve(key, shape, tables)
        except ValueError as error:
            differs.append(f"{key}: {error}")
            continue
        for fill, shape_there in resolved or [(None, None)]:
            if fill is None or fill.path not in target:
                extra.append(f"+{key} {shape}")
                continue
            seen.add(fill.path)
            if fill.path in fills:
                differs.append(f"{fill.path} is filled by both {fills[fill.path].key} and {key}")
            elif shape_there != tuple(target[fill.path]):
                wanted = tuple(target[fill.path])
                differs.append(f"{key}: {shape_there} is not {wanted} of {fill.path}")
            fills.setdefault(fill.path, fill)
    absent = [f"-{path} {tuple(shape)}" for path, shape in target.items() if path not in seen]
    if extra or absent or differs:
        raise ConversionError(_report(what, remedy, extra, absent, differs))
    return list(fills.values())


def _report(what: str, remedy: str, *groups: list[str]) -> str:
    listed = []
    for group in groups:
        listed += group[:_LISTED]
        if len(group) > _LISTED:
            listed.append(f"... {len(group) - _LISTED} more")
    count = sum(map(len, groups))
    return (
        f"{what}: {count} tensors do not fit the model of its config (+ has no place in the model, "
        f"- missing in the source): {'; '.join(listed)}; {remedy}"
    )


def build_tree(
    fills: Sequence[Fill], read: Callable[[str], np.ndarray], dtype: np.dtype, what: str = "model"
) -> dict:
    """Reads the planned tensors one by one into a nested dict of contiguous `dtype` arrays.

    Raises:
        ConversionError: a value is not finite in the source or overflows in `dtype`.
    """
    tree: dict = {}
    by_key: dict[str, list[Fill]] = {}
    for fill in fills:
        by_key.setdefault(fill.key, []).append(fill)
    for key, parts in by_key.items():
        array = read(key)
        for fill in parts:
            with np.errstate(over="ignore"):  # reported just below, with the tensor's name
                value = np.array(fill.value(array), dtype=dtype, order="C")
            if not np.isfinite(value).all():
                finite = np.isfinite(array).all()
                why = f"overflows in {np.dtype(dtype).name}" if finite else "holds NaN or infinity"
                raise ConversionError(f"{what}: {key} {why}; use --dtype float32 or other weights")
            node = tree
            *branches, leaf = fill.path.split("/")
            for branch in branches:
                node = node.setdefault(branch, {})
            node[leaf] = value
    return tree


def flat_shapes(tree: Mapping) -> dict[str, Shape]:
    """Shapes by path of a nested dict of arrays or ShapeDtypeStructs."""
    shapes: dict[str, Shape] = {}
    for name, node in tree.items():
        if isinstance(node, Mapping):
            shapes |= {f"{name}/{path}": shape for path, shape in flat_shapes(node).items()}
        else:
            shapes[name] = tuple(node.shape)
    return shapes
