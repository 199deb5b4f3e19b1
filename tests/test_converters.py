"""SVD converter: complete on the full-size key lists, exact on tiny weights, clear on bad input."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import svd_layouts as layouts
from safetensors.numpy import load_file, save_file
from svd_layouts import shapes_once  # noqa: F401  (an autouse fixture)

from converters import rules, sources, stability, svd
from converters.rules import MECHANICAL, ConversionError, Rule, Transform, plan, resolve
from recapture_jax.checkpoints import restore_tree

KEYS = Path(__file__).parent / "data" / "svd_keys"


def _manifest(name):
    return {key: tuple(s) for key, s in json.loads((KEYS / f"{name}.json").read_text()).items()}


# ---- rules --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "shape", "path", "target"),
    [
        (
            "down_blocks.0.attentions.1.temporal_transformer_blocks.0.attn1.to_out.0.weight",
            (6, 4),
            "down_blocks_0/attentions_1/temporal_transformer_blocks_0/attn1/to_out_0/kernel",
            (4, 6),
        ),
        ("a.ff.net.0.proj.weight", (8, 2), "a/ff/net_0/proj/kernel", (2, 8)),
        ("a.norm.weight", (5,), "a/norm/scale", (5,)),
        ("a.norm.bias", (5,), "a/norm/bias", (5,)),
        ("a.conv.weight", (7, 3, 1, 2), "a/conv/kernel", (1, 2, 3, 7)),
        ("a.conv.weight", (7, 3, 3, 1, 2), "a/conv/kernel", (3, 1, 2, 3, 7)),
        ("e.time_mixer.mix_factor", (1,), "e/time_mixer/mix_factor", (1,)),
        ("e.position_embedding.weight", (9, 4), "e/position_embedding/embedding", (9, 4)),
        ("time_embedding.linear_1.weight", (9, 4), "time_embedding/linear_1/kernel", (4, 9)),
        ("e.class_embedding", (4,), "e/class_embedding", (4,)),
    ],
)
def test_mechanical_rule(key, shape, path, target):
    ((fill, shape_there),) = resolve(key, shape, (MECHANICAL,))
    assert (fill.path, shape_there) == (path, target)


def test_transforms_compute_the_same_layer():
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((5, 3)), rng.standard_normal(3)
    np.testing.assert_allclose(x @ Transform.LINEAR(weight), weight @ x)
    square = weight[:, :, None, None]
    np.testing.assert_array_equal(Transform.SQUEEZE_LINEAR(square), weight.T)
    conv = rng.standard_normal((5, 3, 2, 4, 6))
    out = Transform.CONV3D(conv)
    for index in np.ndindex(conv.shape):
        o, i, t, h, w = index
        assert out[t, h, w, i, o] == conv[index]
    np.testing.assert_array_equal(Transform.CONV2D(conv[:, :, 0]), out[0])
    with pytest.raises(ValueError, match="not a 1x1"):
        Transform.SQUEEZE_LINEAR(conv[:, :, 0])


def test_plan_lists_every_kind_of_mismatch_once():
    source = {"a.weight": (2, 3), "b.weight": (4,), "c.weight": (2, 2), "junk": (1,), "skip": (9,)}
    target = {"a/kernel": (3, 2), "b/scale": (5,), "c/kernel": (2, 2), "d/bias": (6,)}
    with pytest.raises(ConversionError) as error:
        plan(source, target, unused=("skip",), what="part")
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("part: 3 tensors do not fit")
    assert "+junk (1,)" in text and "-d/bias (6,)" in text
    assert "b.weight: (4,) is not (5,) of b/scale" in text
    assert "skip" not in text and "a.weight" not in text


def test_plan_refuses_two_sources_for_one_leaf():
    table = (Rule(r"old\.weight", "x.weight"), Rule(r"(.+)", r"\1"))
    with pytest.raises(ConversionError, match="x/scale is filled by both old.weight and x.weight"):
        plan({"old.weight": (2,), "x.weight": (2,)}, {"x/scale": (2,)}, (table, MECHANICAL))


def test_plan_caps_its_list():
    with pytest.raises(ConversionError) as error:
        plan({f"k{i:03}.bias": (1,) for i in range(900)}, {})
    assert "900 tensors" in str(error.value) and "894 more" in str(error.value)
    assert len(str(error.value)) < 500


def test_split_rule_keeps_the_order():
    table = (Rule("in_proj_weight", ("q.weight", "k.weight", "v.weight")),)
    fills = plan(
        {"in_proj_weight": (6, 2)},
        {f"{n}/kernel": (2, 2) for n in "qkv"},
        (table, MECHANICAL),
    )
    array = np.arange(12.0).reshape(6, 2)
    tree = rules.build_tree(fills, {"in_proj_weight": array}.__getitem__, np.float32)
    np.testing.assert_array_equal(tree["q"]["kernel"], array[:2].T)
    np.testing.assert_array_equal(tree["v"]["kernel"], array[4:].T)
    with pytest.raises(ConversionError, match="cannot be split"):
        plan({"in_proj_weight": (7, 2)}, {}, (table, MECHANICAL))


# ---- full size: names and shapes ----------------------------------------------------------------


@pytest.fixture(scope="module")
def full_targets():
    return {name: svd.target_shapes(name, stability.CONFIGS[name]) for name in sources.COMPONENTS}


@pytest.fixture(scope="module")
def full_clip():
    """transformers' names and shapes of ViT-H, from its description: no manifest is at hand."""
    shapes = {
        "vision_model.embeddings.class_embedding": (1280,),
        "vision_model.embeddings.patch_embedding.weight": (1280, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, 1280),
        "visual_projection.weight": (1024, 1280),
    }
    linears = {f"self_attn.{n}_proj": (1280, 1280) for n in ("q", "k", "v", "out")}
    linears |= {"mlp.fc1": (5120, 1280), "mlp.fc2": (1280, 5120)}
    for i in range(32):
        for name, shape in linears.items():
            shapes[f"vision_model.encoder.layers.{i}.{name}.weight"] = shape
            shapes[f"vision_model.encoder.layers.{i}.{name}.bias"] = shape[:1]
        for name in ("layer_norm1", "layer_norm2"):
            for leaf in ("weight", "bias"):
                shapes[f"vision_model.encoder.layers.{i}.{name}.{leaf}"] = (1280,)
    for name in ("pre_layrnorm", "post_layernorm"):
        for leaf in ("weight", "bias"):
            shapes[f"vision_model.{name}.{leaf}"] = (1280,)
    return shapes


def test_full_size_diffusers_layout(full_targets, full_clip):
    counts = {}
    clip = full_clip | {"vision_model.embeddings.position_ids": (1, 257)}
    for name, shapes in (
        ("unet", _manifest("unet_sd")),
        ("vae", _manifest("vae_sd")),
        ("image_encoder", clip),
    ):
        fills = plan(shapes, full_targets[name], unused=sources.UNUSED.get(name, ()))
        assert {fill.path for fill in fills} == set(full_targets[name])
        counts[name] = (len(fills), sum(int(np.prod(s)) for s in full_targets[name].values()))
    assert counts == {
        "unet": (1428, 1_524_623_082),
        "vae": (374, 97_742_847),
        "image_encoder": (520, 632_076_800),
    }


def _full_single(full_clip):
    """All names and shapes of a full-size single file (zero-stride arrays: no memory)."""
    empty = {key: np.broadcast_to(np.float32(0), shape) for key, shape in full_clip.items()}
    shapes = {f"model.diffusion_model.{k}": s for k, s in _manifest("sgm_unet").items()}
    shapes |= {f"first_stage_model.decoder.{k}": s for k, s in _manifest("sgm_dec").items()}
    encoder = _manifest("sgm_enc")
    shapes |= {f"conditioner.embedders.3.encoder.encoder.{k}": s for k, s in encoder.items()}
    shapes |= {f"first_stage_model.encoder.{k}": s for k, s in encoder.items()}
    for name in ("quant_conv", "post_quant_conv"):
        shapes[f"conditioner.embedders.3.encoder.{name}.weight"] = (8, 8, 1, 1)
        shapes[f"conditioner.embedders.3.encoder.{name}.bias"] = (8,)
    visual = "conditioner.embedders.0.open_clip.model.visual."
    clip = layouts.clip_to_open_clip(empty)
    assert len(clip) == 392
    return shapes | {visual + key: value.shape for key, value in clip.items()}


def test_full_size_single_file_layout(full_targets, full_clip):
    shapes = _full_single(full_clip)
    groups = sources.split_groups(list(shapes))
    for name in sources.COMPONENTS:
        table = stability.TABLES[name](stability.CONFIGS[name])
        own = {key: shapes[whole] for key, whole in groups[name].items()}
        fills = plan(own, full_targets[name], (table, MECHANICAL))
        assert {fill.path for fill in fills} == set(full_targets[name])


@pytest.mark.parametrize("component", ["unet", "vae"])
def test_full_size_names_agree_with_the_reverse_map(component):
    """Renaming diffusers' keys by the tests' own map gives the released file's keys and shapes."""
    table = stability.TABLES[component](stability.CONFIGS[component])
    if component == "unet":
        known = _manifest("sgm_unet")
    else:
        quant = {"quant_conv.weight": (8, 8, 1, 1), "quant_conv.bias": (8,)}
        known = {f"conditioner.embedders.3.encoder.{key}": shape for key, shape in quant.items()}
        for prefix, name in (
            ("conditioner.embedders.3.encoder.encoder.", "sgm_enc"),
            ("first_stage_model.decoder.", "sgm_dec"),
        ):
            known |= {prefix + key: shape for key, shape in _manifest(name).items()}
    for key, shape in _manifest(f"{component}_sd").items():
        if component == "unet":
            theirs = inner = layouts.unet_to_stability(key, 2, [False, True, True, True])
        else:
            theirs = layouts.vae_to_stability(key, 4)
            inner = theirs
            for prefix, (_, new) in stability.GROUPS.items():
                inner = inner.replace(prefix, new)
        there = known.pop(theirs)
        assert there == shape or there == (*shape, 1, 1)
        (ours,) = resolve(inner, there, (table,))
        assert ours[0].path == rules.tree_path(key)
    assert not known


# ---- tiny weights through the command line ------------------------------------------------------


@pytest.fixture(scope="module")
def trees():
    return layouts.random_trees()


def _assert_converted(dst, trees, dtype=np.float32):
    assert sorted(p.name for p in dst.iterdir()) == sorted(
        ["config.json", "source.json", *sources.COMPONENTS]
    )
    config = json.loads((dst / "config.json").read_text())
    for name, want in trees.items():
        shapes = svd.target_shapes(name, config[name])
        abstract: dict = {}
        for path, shape in shapes.items():
            node = abstract
            *branches, leaf = path.split("/")
            for branch in branches:
                node = node.setdefault(branch, {})
            node[leaf] = jax.ShapeDtypeStruct(shape, dtype)
        got = layouts.flat(restore_tree(dst / name, abstract))
        assert got.keys() == want.keys()
        for path, leaf in got.items():
            assert leaf.dtype == dtype
            np.testing.assert_array_equal(np.asarray(leaf), want[path].astype(dtype), err_msg=path)
    return config


def test_folder_by_the_command_line(tmp_path, trees):
    src, dst = layouts.tiny_folder(tmp_path, trees), tmp_path / "out" / "tiny"
    command = [sys.executable, "-m", "converters.svd", "--src", str(src), "--dst", str(dst)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [line.split(":")[0] for line in done.stdout.splitlines()[:3]] == list(sources.COMPONENTS)
    config = _assert_converted(dst, trees)
    assert config["num_frames"] == 14
    assert config["vae"] == layouts.CONFIGS["vae"]
    assert config["scheduler"]["sigma_max"] == 700.0
    origin = json.loads((dst / "source.json").read_text())
    assert origin["source"] == "src" and origin["dtype"] == "float32"
    assert origin["sha256"].keys() == {
        f"{name}/{file}"
        for name in sources.COMPONENTS
        for file in ("config.json", f"{layouts.STEMS.get(name, 'model')}.safetensors")
    }
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in origin["sha256"].values())
    assert [p.name for p in dst.parent.iterdir()] == ["tiny"]


def test_single_file_gives_the_same_trees(tmp_path, trees, capsys):
    args = layouts.tiny_single(tmp_path, trees, "svd_xt_1_1.safetensors")
    code, out, err = layouts.run_main(capsys, "--dst", tmp_path / "out", "--src", *args)
    assert (code, err) == (0, "")
    config = _assert_converted(tmp_path / "out", trees)
    assert config["num_frames"] == config["unet"]["num_frames"] == 25


@pytest.mark.parametrize(
    ("name", "flags", "frames"),
    [("svd.safetensors", [], 14), ("svd.safetensors", ["--num_frames", "20"], 20)],
)
def test_single_file_frames(tmp_path, trees, name, flags, frames):
    path, _, configs = layouts.tiny_single(tmp_path, trees, name)
    given = int(flags[1]) if flags else None
    source = sources.open_source(path, given, configs=json.loads(Path(configs).read_text()))
    assert source.num_frames == frames


@pytest.mark.parametrize(
    ("stored", "dtype"), [(np.float16, "float32"), (ml_dtypes.bfloat16, "bfloat16")]
)
def test_half_precision_sources_and_targets(tmp_path, capsys, stored, dtype):
    trees = layouts.random_trees(stored)
    src = layouts.tiny_folder(tmp_path, trees, variant="fp16")
    code, _, err = layouts.run_main(
        capsys, "--src", src, "--dst", tmp_path / "out", "--dtype", dtype
    )
    assert (code, err) == (0, "")
    _assert_converted(tmp_path / "out", trees, svd.DTYPES[dtype])


def test_shards_and_optional_folders(tmp_path, trees, capsys):
    src = layouts.tiny_folder(tmp_path, trees)
    layouts.shard(src / "unet", "diffusion_pytorch_model")
    layouts.shard(src / "image_encoder", "model")
    for name, file in (
        ("scheduler", "scheduler_config"),
        ("feature_extractor", "preprocessor_config"),
    ):
        (src / name).mkdir()
        (src / name / f"{file}.json").write_text('{"mine": 1}')
    code, _, err = layouts.run_main(capsys, "--src", src, "--dst", tmp_path / "out")
    assert (code, err) == (0, "")
    config = _assert_converted(tmp_path / "out", trees)
    assert config["scheduler"] == config["feature_extractor"] == {"mine": 1}


def test_plain_weights_are_preferred_and_a_variant_can_be_asked_for(tmp_path, trees, capsys):
    src = layouts.tiny_folder(tmp_path, trees)
    halves = {}
    for name in sources.COMPONENTS:
        stem = layouts.STEMS.get(name, "model")
        tensors = load_file(src / name / f"{stem}.safetensors")
        save_file(
            {key: value.astype(np.float16) for key, value in tensors.items()},
            src / name / f"{stem}.fp16.safetensors",
        )
        halves[name] = {path: leaf.astype(np.float16) for path, leaf in trees[name].items()}
    assert layouts.run_main(capsys, "--src", src, "--dst", tmp_path / "a")[0] == 0
    _assert_converted(tmp_path / "a", trees)
    assert (
        layouts.run_main(capsys, "--src", src, "--dst", tmp_path / "b", "--variant", "fp16")[0] == 0
    )
    _assert_converted(tmp_path / "b", halves)


def test_overwrite_replaces_only_after_success(tmp_path, trees, capsys, monkeypatch):
    src, dst = layouts.tiny_folder(tmp_path, trees), tmp_path / "out"
    assert layouts.run_main(capsys, "--src", src, "--dst", dst)[0] == 0
    code, _, err = layouts.run_main(capsys, "--src", src, "--dst", dst)
    assert code == 2 and "exists already" in err

    real, calls = svd.save_tree, []

    def full_disk(path, tree):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(path, tree)

    with monkeypatch.context() as patch:
        patch.setattr(svd, "save_tree", full_disk)
        code, _, err = layouts.run_main(
            capsys, "--src", src, "--dst", dst, "--dtype", "bfloat16", "--overwrite"
        )
    assert code == 2 and "No space left" in err
    _assert_converted(dst, trees)
    assert json.loads((dst / "source.json").read_text())["dtype"] == "float32"

    argv = ["--src", src, "--dst", dst, "--dtype", "bfloat16", "--overwrite"]
    assert layouts.run_main(capsys, *argv)[0] == 0
    _assert_converted(dst, trees, ml_dtypes.bfloat16)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "src"]
