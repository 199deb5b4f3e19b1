"""Which linear layers get a LoRA: named sets of regular expressions on '/'-joined module paths.

Every expression must match the whole path (`re.fullmatch`), so that `transformer_blocks_0` is not
found inside `temporal_transformer_blocks_0`.
"""

import difflib
import re
from collections.abc import Iterable

from recapture_jax.errors import InputError

_SPATIAL = r"(?:.+/)?transformer_blocks_\d+"
_TEMPORAL = r"(?:.+/)?temporal_transformer_blocks_\d+"
_ATTENTION = r"/attn1/(?:to_q|to_k|to_v|to_out_0)"

# The cross-attention context of SVD is one token: its softmax is 1 whatever query and key are.
WITHOUT_EFFECT = r"(?:.+/)?attn2/(?:to_q|to_k)"

TARGETS: dict[str, tuple[str, ...]] = {
    "spatial": (_SPATIAL + _ATTENTION,),
    "temporal": (_TEMPORAL + _ATTENTION,),
    "temporal_all_linear": (
        _TEMPORAL + _ATTENTION,
        _TEMPORAL + r"/attn2/(?:to_v|to_out_0)",
        _TEMPORAL + r"/ff/(?:net_0/proj|net_2)",
        _TEMPORAL + r"/ff_in/(?:net_0/proj|net_2)",
    ),
}


def patterns(targets: str | Iterable[str]) -> tuple[re.Pattern, ...]:
    """The expressions of a target set.

    Args:
      targets: a name of `TARGETS`, a regular expression on whole '/'-paths, or several of either.

    Raises:
      InputError: for no target at all, or an expression that does not compile.
    """
    texts = []
    for target in (targets,) if isinstance(targets, str) else tuple(targets):
        texts += TARGETS.get(target, (target,))
    if not texts:
        raise InputError(f"no LoRA targets: expected {sorted(TARGETS)} or regexes on paths")
    compiled = []
    for text in texts:
        try:
            compiled.append(re.compile(text))
        except re.error as error:
            raise InputError(f"LoRA target {text!r} is not a regular expression: {error}") from None
    return tuple(compiled)


def matches(targets: str | Iterable[str], path: str) -> bool:
    """Whether the module at `path` (no '/kernel') belongs to the targets."""
    return any(pattern.fullmatch(path) for pattern in patterns(targets))


def select(targets: str | Iterable[str], paths: Iterable[str]) -> list[str]:
    """The paths that belong to the targets, sorted.

    Raises:
      InputError: if one of the expressions matches no path; the message names similar paths.
    """
    paths = sorted(paths)
    chosen: set[str] = set()
    for pattern in patterns(targets):
        found = [path for path in paths if pattern.fullmatch(path)]
        if not found:
            raise InputError(
                f"LoRA target {pattern.pattern!r} matches none of the {len(paths)} linear layers: "
                f"expected one of {sorted(TARGETS)} or a regex for whole paths such as "
                f"{', '.join(_similar(pattern.pattern, paths)) or '(the model has none)'}"
            )
        chosen.update(found)
    return sorted(chosen)


def _similar(pattern: str, paths: list[str], number: int = 3) -> list[str]:
    literal = re.sub(r"\\[dw]", "0", pattern)
    literal = re.sub(r"[^\w/]", "", literal)
    return difflib.get_close_matches(literal, paths, number, cutoff=0.0)
