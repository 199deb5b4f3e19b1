"""Configurations: every file loads and validates; bad values are refused in one line."""

import importlib.util
import pathlib

import pytest

from recapture_jax.config import VARIANTS, default_config, described, get, validate
from recapture_jax.errors import InputError

CONFIGS = sorted(
    p
    for p in (pathlib.Path(__file__).parent.parent / "configs").glob("*.py")
    if p.stem != "__init__"
)


@pytest.mark.parametrize("variant", [None, *VARIANTS])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_validates(path, variant):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(variant)
    validate(config)
    assert "python -m recapture_jax.main" in module.__doc__


BAD = [
    ("camera.moves", "orbit sideways 20", "sideways"),
    ("camera.moves", "teleport 3", "teleport"),
    ("camera.moves", "dolly in 1.5", "pivot"),
    ("camera.vertical_fov", -1.0, "vertical_fov"),
    ("depth.near", 30.0, "0 < near < far"),
    ("depth.far", 0.0, "0 < near < far"),
    ("depth.sky_beyond", 0.5, "more than 1"),
    ("depth.sky_depth", 0.1, "sky_depth"),
    ("camera.pivot_depth", -1.0, "pivot_depth"),
    ("depth.estimator", "fastdeph", "did you mean 'fastdepth'"),
    ("depth.kind", "metres", "metric, relative, disparity"),
    ("depth.scale", 0.0, "depth.scale"),
    ("anchor.taps", 0, "anchor.taps"),
    ("anchor.erode", -1, "anchor.erode"),
    ("model.dtype", "float8", "float32"),
    ("model.attention", "ring", "chunked"),
    ("model.remat", "some", "none, full, dots"),
    ("lora.rank", 0, "lora.rank"),
    ("lora.spatial_targets", "(", "regular expression"),
    ("tune.steps", 0, "tune.steps"),
    ("tune.learning_rate", float("nan"), "learning_rate"),
    ("tune.learning_rate", float("inf"), "learning_rate"),
    ("tune.loss", "x0", "v, eps"),
    ("tune.schedule", "together", "spatial_first, joint"),
    ("generate.steps", 0, "generate.steps"),
    ("generate.max_guidance", 0.5, "max_guidance"),
    ("generate.motion_bucket", 300, "0 to 255"),
    ("generate.sdedit_sigma", -1.0, "sdedit_sigma"),
    ("generate.sdedit_sigma", 0.001, "or 0 for no SDEdit"),
    ("video.stride", 0, "video.stride"),
    ("video.short_side", 8, "short_side"),
    ("video.path", "", "video.path"),
    ("mesh.data", 0, "mesh.data"),
    ("seed", -1, "seed"),
]


@pytest.mark.parametrize("field, value, says", BAD, ids=[f"{f}={v}" for f, v, _ in BAD])
def test_bad_value_is_refused_in_one_line(field, value, says):
    config = default_config()
    group, _, name = field.rpartition(".")
    with config.unlocked():
        setattr(config[group] if group else config, name, value)
    with pytest.raises(InputError) as error:
        validate(config)
    message = str(error.value)
    assert says in message and "\n" not in message


def test_precomputed_depth_needs_a_path():
    config = default_config()
    config.depth.estimator = "precomputed"
    with pytest.raises(InputError, match="config.depth.path is empty"):
        validate(config)


def test_unknown_variant():
    with pytest.raises(InputError, match="small, smoke, svd, svd_xt"):
        default_config("huge")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_field_is_listed_with_its_default_and_meaning(variant):
    config = default_config(variant)
    lines = described(variant).splitlines()
    fields = {line.split("=")[0].removeprefix("--config."): line for line in lines}
    groups = [name for name in config if name not in ("variant", "seed")]
    assert set(fields) == {"seed"} | {f"{g}.{name}" for g in groups for name in config[g]}
    for field, line in fields.items():
        value, meaning = line.split("=", 1)[1].split("  ", 1)
        assert value.strip() == str(get(config, field)) and len(meaning.strip()) > 3, line
