"""The import rule of the house, read from the source: data flows down only."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "recapture_jax"

# What each part may import from the package; a part is a folder or a module of its root.
BELOW = {
    "errors": set(),
    "xla": set(),
    "assets": {"errors"},
    "models": {"errors"},
    "diffusion": {"errors", "xla"},
    "lora": {"errors"},
    "terminal": {"errors"},
    "camera": {"errors", "terminal"},
    "geometry": {"errors", "camera"},
    "scenes": {"errors", "camera", "geometry"},
    "evaluation": {"errors", "xla", "camera", "geometry"},
    "video": {"errors"},
    "depth": {"errors", "xla", "geometry", "models", "assets", "progress", "checkpoints"},
    "progress": {"errors"},
    "processes": {"errors", "progress"},
    "storage": {"errors"},
    "cache": {"errors", "processes", "progress", "storage"},
    "checkpoints": {"errors", "processes", "storage"},
    "sharding": {"errors", "processes"},
    "tuning": {"errors", "xla", "diffusion", "lora", "checkpoints", "sharding", "progress"},
    "stages": {
        *(
            "errors",
            "models",
            "diffusion",
            "lora",
            "camera",
            "geometry",
            "depth",
            "video",
            "tuning",
        ),
        *("checkpoints", "progress", "sharding", "storage", "xla"),
    },
    "weights": {"errors", "models", "checkpoints", "stages"},
    "config": {"errors", "camera", "diffusion", "lora", "assets", "terminal"},
    "source": {"errors", "config", "camera", "depth", "video"},
    "first_stage": {
        "source",
        *("errors", "cache", "config", "progress", "stages", "video", "depth", "camera"),
        *("diffusion", "processes", "storage"),
    },
    "cost": {"xla"},
    "estimate": {
        *("cost", "errors", "sharding", "models", "diffusion", "lora", "tuning", "stages"),
    },
    "outputs": {"camera", "stages", "video"},
    "preflight": {"cost", "errors", "estimate", "progress"},
    "pipeline": {
        "outputs",
        *("preflight", "processes", "storage"),
        *(
            "errors",
            "first_stage",
            "cache",
            "config",
            "progress",
            "sharding",
            "weights",
            "stages",
            "video",
            "checkpoints",
        ),
        *("camera", "depth", "lora", "models"),
    },
    "main": {"errors", "command", "pipeline"},
    "together": {"errors", "cache", "first_stage", "pipeline", "progress", "stages", "tuning"},
    "matrix": {
        *("errors", "command", "config", "first_stage", "pipeline", "progress", "processes"),
        *("storage", "together"),
    },
    "command": {"errors", "terminal", "processes"},
    "pictures": {"errors", "camera"},
    "advice": {"errors", "camera", "geometry", "stages"},
    "preview": {
        *(
            "camera",
            "errors",
            "cache",
            "config",
            "first_stage",
            "stages",
            "depth",
            "video",
            "weights",
        ),
        *("advice", "command", "pictures", "storage"),
    },
}
FORBIDDEN = {
    "torch",
    "tensorflow",
    "gradio",
    "onnx",
    "onnxruntime",
    "av",
    "converters",
    "configs",
    "experiments",
    "tests",
}


def files():
    return sorted(PACKAGE.rglob("*.py"))


def part(path: pathlib.Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: pathlib.Path, top_level_only: bool):
    """Dotted names imported by a file."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_what_lies_below(path):
    name = part(path)
    if name == "__init__":
        return
    used = set()
    for module in imports(path, top_level_only=False):
        pieces = module.split(".")
        if module.startswith("recapture_jax.geometry.safe_math"):
            continue  # below everything
        if pieces[0] == "recapture_jax" and len(pieces) > 1:
            used.add(pieces[1])
    used &= set(BELOW)  # names such as __version__ are no parts
    assert used - {name} <= BELOW[name]


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_or_upper_packages_stay_out_of_module_level(path):
    tops = {module.split(".")[0] for module in imports(path, top_level_only=True)}
    assert not tops & FORBIDDEN


def test_flax_is_confined():
    """Flax may be imported by the networks and the adapter (and its flatten helper by weights) only."""
    users = {p for p in files() if any(m.split(".")[0] == "flax" for m in imports(p, False))}
    allowed = {
        PACKAGE / "lora/adapter.py",
        PACKAGE / "weights.py",
        *(PACKAGE / "models").glob("*.py"),
    }
    assert users <= allowed


def test_files_hold_one_thing():
    """Past about 400 lines a file holds two."""
    long = {str(p): n for p in files() if (n := len(p.read_text().splitlines())) > 420}
    assert not long
