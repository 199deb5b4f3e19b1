"""ZoeDepth's converter without torch: both spellings, and one clear line for what does not fit."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from svd_layouts import flat
from zoedepth_layouts import CONFIGS, random_tree, write_folder

from converters import depth as converter
from converters.rules import ConversionError
from converters.zoedepth import recognise
from recapture_jax.depth.zoedepth import Preprocessing, ZoeDepth, from_folder
from recapture_jax.errors import InputError
from recapture_jax.models.metric_bins import Bins

SMALL = Preprocessing(size=(64, 96))


@pytest.fixture(scope="module")
def tree():
    return random_tree("single")


def edit_json(path, **changes):
    """Changes fields of a JSON file; None removes one."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


@pytest.mark.parametrize(("name", "version"), [("single", 4), ("domains", 4), ("domains", 5)])
def test_round_trip(tmp_path, name, version):
    tree = random_tree(name)
    src = write_folder(tmp_path / "src", name, version, tree)
    assert converter.main(["--src", str(src), "--dst", str(tmp_path / "out")]) == 0
    estimator = from_folder(tmp_path / "out")
    got, want = flat(estimator.params), flat(tree)
    assert got.keys() == want.keys()
    for path, leaf in want.items():
        np.testing.assert_array_equal(np.asarray(got[path]), leaf, err_msg=path)
    assert estimator.preprocessing == SMALL
    assert estimator.config.backbone.out_indices == (1, 2, 4, 5)
    if name == "domains":
        assert estimator.config.head.bins[1] == Bins("kitti", 9, 0.002, 80.0)
    assert (tmp_path / "out/source.json").is_file()


def test_half_precision_and_old_leftovers(tmp_path, tree):
    """Keys of pretraining and of earlier versions are known and not needed."""
    src = write_folder(tmp_path / "src", "single", 4, tree)
    file = src / "model.safetensors"
    old = "backbone.encoder.layer.0.attention.attention.relative_position_bias."
    extra = {
        "backbone.embeddings.mask_token": np.zeros((1, 1, 32), np.float32),
        old + "relative_position_index": np.zeros((17, 17), np.int64),
    }
    save_file(load_file(file) | extra, file)
    (src / "preprocessor_config.json").unlink()
    converter.convert(src, tmp_path / "out", "bfloat16")
    estimator = from_folder(tmp_path / "out", dtype=jax.numpy.bfloat16)
    leaf = estimator.params["metric_head"]["conv2"]["kernel"]
    assert leaf.dtype == jax.numpy.bfloat16
    want = tree["metric_head"]["conv2"]["kernel"]
    np.testing.assert_allclose(np.asarray(leaf, np.float32), want, rtol=2**-8)
    assert estimator.preprocessing == Preprocessing()
    small = ZoeDepth(estimator.config, estimator.params, SMALL, dtype=jax.numpy.bfloat16)
    exact = ZoeDepth(estimator.config, tree, SMALL)
    frames = np.random.default_rng(0).random((1, 30, 50, 3), dtype=np.float32)
    ratio = small(frames).depth / exact(frames).depth
    assert 0 < np.abs(np.log(ratio)).mean() < 0.1


def test_presets_of_the_library(tmp_path, tree):
    """A field that says what is the library's preset may as well be absent, or null."""
    src = write_folder(tmp_path / "src", "single", 4, tree)
    backbone = CONFIGS["single"]["backbone_config"]
    stages = {"out_features": None, "out_indices": [1, 2, 4, 5], "patch_size": 16}
    edit_json(
        src / "config.json",
        backbone_config={**backbone, **stages, "hidden_act": "gelu", "image_size": [64, 64]},
        readout_type="project",
        use_bias_in_fusion_residual=None,
        bin_centers_type="softplus",
        reassemble_factors=[4, 2, 1, 0.5],
    )
    converter.convert(src, tmp_path / "out")
    write_folder(tmp_path / "plain", "single", 4, tree)
    converter.convert(tmp_path / "plain", tmp_path / "out2")
    assert from_folder(tmp_path / "out").config == from_folder(tmp_path / "out2").config


def drop(key):
    return lambda src: edit_tensors(src, lambda tensors: tensors.pop(key))


def put(key, shape, dtype=np.float32, value=0.5):
    return lambda src: edit_tensors(
        src, lambda tensors: tensors.__setitem__(key, np.full(shape, value, dtype))
    )


def edit_tensors(src, change):
    tensors = load_file(src / "model.safetensors")
    change(tensors)
    save_file(tensors, src / "model.safetensors")


def config(**changes):
    return lambda src: edit_json(src / "config.json", **changes)


def backbone(**changes):
    return config(backbone_config={**CONFIGS["single"]["backbone_config"], **changes})


def pictures(**changes):
    return lambda src: edit_json(src / "preprocessor_config.json", **changes)


TABLE = "backbone.encoder.layer.4.attention.attention.relative_position_bias."
WRONG = {
    "missing": (drop("metric_head.attractors.2.conv1.weight"), ["1 tensors", "-metric_head/bins"]),
    "extra": (put("metric_head.spare.weight", (3,)), ["1 tensors", "+metric_head.spare.weight"]),
    "key with a bias": (
        put("backbone.encoder.layer.0.attention.attention.key.bias", (32,)),
        ["+backbone.encoder.layer.0.attention.attention.key.bias (32,)"],
    ),
    "window": (
        put(TABLE + "relative_position_bias_table", (172, 2)),
        [TABLE, "(172, 2) is not (52, 2)"],
    ),
    "width": (put("neck.convs.1.weight", (24, 13, 3, 3)), ["(3, 3, 13, 24) is not (3, 3, 12, 24)"]),
    "twice": (
        put("backbone.beit.layers.0.mlp.fc1.bias", (48,)),
        ["backbone/layers_0/mlp/fc1/bias is filled by both"],
    ),
    "integers": (put("relative_head.conv3.bias", (1,), np.int32, 1), ["relative_head.conv3.bias"]),
    "nan": (
        put("relative_head.conv3.bias", (1,), value=np.nan),
        ["relative_head.conv3.bias", "NaN"],
    ),
    "two heads in the config only": (
        config(
            bin_configurations=CONFIGS["domains"]["bin_configurations"],
            num_patch_transformer_layers=4,
            patch_transformer_hidden_size=128,
            patch_transformer_intermediate_size=40,
            patch_transformer_num_attention_heads=4,
        ),
        ["157 tensors", "-metric_head/bins_kitti/attractors_0", "+metric_head.attractors.0"],
    ),
    "no classifier": (
        config(bin_configurations=CONFIGS["domains"]["bin_configurations"]),
        ["num_patch_transformer_layers"],
    ),
    "no backbone": (config(backbone_config=None), ["backbone_config"]),
    "another backbone": (backbone(model_type="dinov2"), ["model_type 'dinov2'", "'beit'"]),
    "positions": (
        backbone(use_absolute_position_embeddings=True),
        ["use_absolute_position_embeddings True", "False"],
    ),
    "not square": (backbone(image_size=[64, 96]), ["image_size [64, 96]", "square"]),
    "no such layer": (backbone(out_features=["stage1", "stage9"]), ["(1, 9)", "5 layers"]),
    "maps": (backbone(out_features=["stage1", "stage5"]), ["2 maps", "4 levels"]),
    "readout": (config(readout_type="add"), ["readout_type 'add'", "'project'"]),
    "factors": (
        config(reassemble_factors=[2, 1, 1, 0.5]),
        ["reassemble_factors", "[4, 2, 1, 0.5]"],
    ),
    "centres": (config(bin_centers_type="hybrid"), ["'hybrid'", "softplus, normed"]),
    "bottleneck": (config(bottleneck_features=32), ["bottleneck_features 32", "24"]),
    "words": (config(neck_hidden_sizes=["a", 1, 1, 1]), ["config.json is not usable"]),
    "bins": (
        config(bin_configurations=[{"n_bins": 7}]),
        ["config.json is not usable", "min_depth"],
    ),
    "resample": (pictures(resample=3), ["preprocessor_config.json", "resample 3"]),
    "multiple": (pictures(ensure_multiple_of=0.03125), ["ensure_multiple_of 0.03125", "32"]),
    "size": (pictures(size={"shortest_edge": 384}), ["preprocessor_config.json", "height"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_refuses(tmp_path, case, tree, capsys):
    change, parts = WRONG[case]
    src = write_folder(tmp_path / "src", "single", 4, tree)
    change(src)
    with pytest.raises(ConversionError) as caught:
        converter.convert(src, tmp_path / "out")
    message = str(caught.value)
    assert "\n" not in message and len(message) < 2000
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    assert converter.main(["--src", str(src), "--dst", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_refuses_flags_and_files_without_config(tmp_path, tree):
    src = write_folder(tmp_path / "src", "single", 4, tree)
    for options in ({"kind": "relative"}, {"max_depth": 10.0}):
        with pytest.raises(ConversionError, match="metric"):
            converter.convert(src, tmp_path / "out", **options)
    with pytest.raises(ConversionError, match=r"config\.json"):
        converter.convert(src / "model.safetensors", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["src"]
    converter.convert(src, tmp_path / "out", kind="metric")


def test_recognises_the_family_only():
    assert recognise([], {"model_type": "zoedepth"})
    assert recognise(["core.core.pretrained.model.cls_token"], None)
    assert not recognise(["neck.convs.0.weight", "head.conv1.weight"], None)
    assert not recognise(["neck.convs.0.weight"], {"model_type": "depth_anything"})


def test_refuses_a_damaged_result(tmp_path, tree):
    converter.convert(write_folder(tmp_path / "src", "single", 4, tree), tmp_path / "out")
    file = tmp_path / "out/config.json"
    whole = file.read_text()
    for changes in ({"head": None}, {"preprocessing": None}, {"neck": {"width": 3}}):
        edit_json(file, **changes)
        with pytest.raises(InputError, match=r"is not usable .* convert the weights again"):
            from_folder(tmp_path / "out")
        file.write_text(whole)


def test_estimator(tmp_path, tree):
    """Batches are of two frames; a picture alone, or in another batch, has the same depth."""
    converter.convert(write_folder(tmp_path / "src", "single", 4, tree), tmp_path / "out")
    estimator = from_folder(tmp_path / "out")
    frames = np.random.default_rng(0).random((3, 30, 50, 3), dtype=np.float32)
    found = estimator(frames)
    assert (found.kind, found.source, found.size) == ("metric", "zoedepth", (30, 50))
    np.testing.assert_allclose(estimator(frames[2:]).depth[0], found.depth[2], rtol=1e-4)
    assert np.abs(found.depth[2] / found.depth[1] - 1).max() > 0.01
    with pytest.raises(InputError, match=r"\[T, H, W, 3\]"):
        estimator(frames[0])


@pytest.mark.parametrize(
    ("size", "options", "padding", "seen"),
    [
        ((480, 640), {}, (46, 53), (384, 512)),
        ((720, 1280), {}, (56, 75), (384, 672)),
        ((1920, 1080), {}, (92, 69), (896, 512)),
        ((50, 5000), {}, (15, 150), (32, 512)),  # the authors' rule gives a height of 0
        ((480, 640), {"pad": False}, (0, 0), (384, 512)),
        ((720, 1280), {"keep_aspect": False}, (56, 75), (384, 512)),
    ],
)
def test_sizes(size, options, padding, seen):
    """By hand from the authors' rules."""
    preprocessing = Preprocessing(**options)
    assert preprocessing.padding(*size) == padding
    padded = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    assert preprocessing.network_size(*padded) == seen


def test_reflection_and_its_removal():
    """The picture is where the padding ends, and comes back to its own pixels."""
    preprocessing = Preprocessing(size=(40, 60), multiple=4, mean=(0.0,) * 3, std=(1.0,) * 3)
    ramp = np.linspace(0, 1, 40, dtype=np.float32)
    frame = np.broadcast_to(ramp[None, None, :, None], (1, 24, 40, 3))
    seen = np.asarray(preprocessing(frame))
    above, beside = preprocessing.padding(24, 40)
    assert (above, beside) == (10, 13) and seen.shape[1:3] == preprocessing.network_size(44, 66)
    lowest = np.argmin(seen[0, 0, :, 0])  # mirrored there
    assert abs(lowest / (seen.shape[2] - 1) - beside / 65) < 0.02
    back = np.asarray(preprocessing.undo(seen[..., 0], (24, 40)))[0]
    assert back.shape == (24, 40)
    np.testing.assert_allclose(back[:, 3:-3], frame[0, :, 3:-3, 0], atol=0.02)
