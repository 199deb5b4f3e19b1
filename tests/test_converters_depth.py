"""Depth networks' converter: every layout gives the same tree; bad input, nothing left behind."""

import dataclasses
import json
import pickle
import shutil
import zipfile

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from depth_reference import Upstream, authors_names  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from test_depth_anything import hub_model  # noqa: E402
from torch_params import randomise  # noqa: E402

from converters import depth as converter  # noqa: E402
from converters.rules import ConversionError  # noqa: E402
from converters.torch_file import open_torch  # noqa: E402
from recapture_jax.depth import networks  # noqa: E402
from recapture_jax.errors import InputError  # noqa: E402
from recapture_jax.models.depth_anything import DepthAnythingConfig  # noqa: E402
from recapture_jax.models.dinov2 import Dinov2Config  # noqa: E402
from recapture_jax.models.dpt import NeckConfig  # noqa: E402
from recapture_jax.models.video_depth_anything import VideoDepthAnythingConfig  # noqa: E402

# The authors' files do not state heads and taken layers, so that these are those of size small.
CONFIG = DepthAnythingConfig(
    Dinov2Config(64, 12, 1, (3, 6, 9, 12), image_size=28), NeckConfig((8, 8, 32, 32), 32), 4
)
METRIC = dataclasses.replace(CONFIG, kind="metric", max_depth=20.0)
VIDEO = VideoDepthAnythingConfig(
    dataclasses.replace(CONFIG.backbone, interpolate_offset=0.1), CONFIG.neck, 4
)


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    """What transformers itself writes, metric."""
    folder = tmp_path_factory.mktemp("hub")
    hub_model(METRIC).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def authors_state():
    return authors_names(hub_model(METRIC).state_dict())


@pytest.fixture(scope="module")
def video_state():
    torch.manual_seed(0)
    return randomise(Upstream(VIDEO, video=True), 0).state_dict()


def leaves(folder):
    """{path: array} of a converted folder, and its config.json."""
    config = json.loads((folder / "config.json").read_text())
    kinds = {
        "depth_anything": DepthAnythingConfig,
        "video_depth_anything": VideoDepthAnythingConfig,
    }
    estimator = networks.load(folder)
    assert isinstance(estimator.config, kinds[config["architecture"]])
    flat, _ = jax.tree_util.tree_flatten_with_path(estimator.params)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}, estimator


def assert_same(one, other):
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[path], err_msg=path)


def rename(folder, new, change):
    """A copy of a hub folder with other names of tensors."""
    shutil.copytree(folder, new)
    tensors = load_file(new / "model.safetensors")
    save_file({change(key): value for key, value in tensors.items()}, new / "model.safetensors")
    return new


def old_names(key):
    """transformers 5 -> 4, which is what the files on the hub have."""
    for new, old in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        key = key.replace(f"attention.{new}", f"attention.attention.{old}")
    return key.replace("attention.o_proj", "attention.output.dense")


def new_names(key):
    for new, old in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        key = key.replace(f"attention.attention.{old}", f"attention.{new}")
    return key.replace("attention.output.dense", "attention.o_proj")


# Layouts


def test_every_layout_gives_the_same_tree(tmp_path, hub_folder, authors_state, capsys):
    sources = {
        "hub": hub_folder,
        "hub 4": rename(hub_folder, tmp_path / "4", old_names),
        "hub 5": rename(hub_folder, tmp_path / "5", new_names),
        "pth": tmp_path / "depth_anything_v2_metric_hypersim_vits.pth",
        "safetensors": tmp_path / "depth_anything_v2_metric_hypersim_vits.safetensors",
        "training": tmp_path / "latest.pth",
    }
    torch.save(authors_state, sources["pth"])
    save_file(authors_state, sources["safetensors"])
    parallel = {f"module.{key}": value for key, value in authors_state.items()}
    torch.save({"model": parallel, "epoch": 3}, sources["training"])
    first = None
    for name, source in sources.items():
        flags = ["--max_depth", "20"] if name == "training" else []
        dst = tmp_path / f"out {name}"
        assert converter.main(["--src", str(source), "--dst", str(dst), *flags]) == 0
        assert "depth_anything: 2" in capsys.readouterr().out
        tree, estimator = leaves(dst)
        assert (estimator.config.kind, estimator.config.max_depth) == ("metric", 20.0)
        offset = 0.0 if name.startswith("hub") else 0.1
        backbone = dataclasses.replace(METRIC.backbone, interpolate_offset=offset)
        assert estimator.config == dataclasses.replace(METRIC, backbone=backbone)
        first = first or tree
        assert_same(first, tree)
    origin = json.loads((tmp_path / "out pth/source.json").read_text())
    assert origin["source"] == sources["pth"].name and list(origin["sha256"]) == [origin["source"]]
    assert {path.name for path in (tmp_path / "out hub").iterdir()} == {
        *("config.json", "source.json", "params")
    }


@pytest.mark.parametrize("kind", ["relative", "metric"])
def test_video_network(tmp_path, video_state, kind):
    name = "video_depth_anything_vits.pth"
    source = tmp_path / (name if kind == "relative" else f"metric_{name}")
    torch.save(video_state, source)
    converter.convert(source, tmp_path / "out")
    tree, estimator = leaves(tmp_path / "out")
    assert estimator.config == dataclasses.replace(VIDEO, kind=kind)
    kernel = tree[
        "['motion_modules_1']['transformer_blocks_0']['attention_blocks_1']['to_q']['kernel']"
    ]
    key = "head.motion_modules.1.temporal_transformer.transformer_blocks.0.attention_blocks.1.to_q"
    np.testing.assert_array_equal(kernel, video_state[f"{key}.weight"].T)


def test_converted_network_estimates(tmp_path, hub_folder):
    converter.convert(hub_folder, tmp_path / "out", "bfloat16")
    estimator = networks.load(tmp_path / "out")
    depth = estimator(np.random.default_rng(0).random((2, 20, 30, 3), dtype=np.float32))
    assert depth.kind == "metric" and depth.depth.shape == (2, 20, 30)
    assert 0 < depth.depth.min() and depth.depth.max() < 20


def test_defaults_of_transformers_are_known(tmp_path):
    """A config.json may leave out what is default; ours are then those of transformers."""
    theirs = transformers.DepthAnythingConfig(backbone_config=transformers.Dinov2Config())
    from converters.depth_anything import _hub_config

    ours = _hub_config(
        {
            "model_type": "depth_anything",
            "backbone_config": {"model_type": "dinov2", "out_indices": [3, 6, 9, 12]},
        }
    )
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size"):
        assert getattr(ours.backbone, name) == getattr(theirs.backbone_config, name)
    for name in ("patch_size", "mlp_ratio", "layer_norm_eps"):
        assert getattr(ours.backbone, name) == getattr(theirs.backbone_config, name)
    for name in ("neck_hidden_sizes", "fusion_hidden_size", "reassemble_factors"):
        found = getattr(ours.neck, name)
        assert found == getattr(theirs, name) or list(found) == list(getattr(theirs, name))
    assert (ours.head_hidden_size, ours.kind) == (theirs.head_hidden_size, "relative")


# .pth files


def test_reads_what_torch_reads(tmp_path):
    base = torch.arange(24, dtype=torch.float32)
    state = {
        "whole": base.view(2, 3, 4),
        "transposed": base.view(4, 6).t(),
        "part": base[5:11],
        "half": torch.tensor([1.5, -2], dtype=torch.bfloat16),
        "scalar": torch.tensor(7.0),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "count": torch.tensor([3]),
    }
    torch.save(state, tmp_path / "state.pth")
    found = open_torch(tmp_path / "state.pth")
    assert found.shapes == {key: tuple(value.shape) for key, value in state.items()}
    for key, value in state.items():
        np.testing.assert_array_equal(found.read(key).astype(np.float64), value.detach().double())


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_runs_nothing_that_is_in_a_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"a": Harmful(tmp_path / "made")}))
    with pytest.raises(ConversionError, match="plain weights .*io.open"):
        converter.convert(tmp_path / "model.pth", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (5,), (1,)), (2, (3,), (1,)), (3, (2,), (-1,)), (-1, (1,), (1,)), (0, (2, 3), (3, 1))],
)
def test_reads_nothing_beside_the_values(tmp_path, offset, shape, strides):
    """A file may claim any view of its four values; only those inside are given."""
    torch.save({"a": torch.arange(4.0)}, tmp_path / "state.pth")
    found = open_torch(tmp_path / "state.pth")
    found.put("a", dataclasses.replace(found.stored["a"], offset=1, shape=(3,), strides=(1,)))
    np.testing.assert_array_equal(found.read("a"), [1, 2, 3])
    wrong = dataclasses.replace(found.stored["a"], offset=offset, shape=shape, strides=strides)
    found.put("a", wrong)
    with pytest.raises(ConversionError, match="a is damaged"):
        found.read("a")


# Bad input

NAME = "depth_anything_v2_metric_hypersim_vits"


def _without(key):
    return lambda state: state.pop(key)


def _with(key, value):
    return lambda state: state.__setitem__(key, value)


QKV = "pretrained.blocks.3.attn.qkv.weight"
BAD_STATES = {  # change of the authors' state dict, parts of the message
    "missing": (
        _without("depth_head.scratch.refinenet2.out_conv.weight"),
        ["1 tensors", "-neck/fusion_stage/layers_2/projection/kernel (1, 1, 32, 32)"],
    ),
    "missing where sizes are read": (_without("pretrained.pos_embed"), ["pos_embed is missing"]),
    "extra": (_with("depth_head.scratch.spare", torch.ones(3)), ["+depth_head.scratch.spare (3,)"]),
    "registers": (
        _with("pretrained.register_tokens", torch.ones(1, 4, 64)),
        ["+pretrained.register_tokens (1, 4, 64)"],
    ),
    "shape": (
        _with("pretrained.norm.weight", torch.ones(63)),
        ["pretrained.norm.weight: (63,) is not (64,) of backbone/layernorm/scale"],
    ),
    "not three": (_with(QKV, torch.ones(190, 64)), [QKV, "cannot be split into 3"]),
    "transposed": (
        _with("depth_head.resize_layers.1.weight", torch.ones(8, 8, 3, 2)),
        ["(3, 2, 8, 8) is not (2, 2, 8, 8)"],
    ),
    "nan": (_with("pretrained.norm.bias", torch.full((64,), torch.nan)), ["NaN", "norm.bias"]),
    "integers": (_with("pretrained.norm.bias", torch.ones(64, dtype=torch.int64)), ["I64"]),
    "layers": (
        lambda state: [
            state.pop(key) for key in list(state) if key.startswith("pretrained.blocks.7.")
        ],
        ["11 transformer layers", "[12, 24]"],
    ),
    "head": (
        lambda state: [state.pop(key) for key in list(state) if key.startswith("depth_head.")],
        ["none of the depth networks"],
    ),
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("case", BAD_STATES)
def test_refuses_other_tensors(tmp_path, authors_state, case, suffix, capsys):
    change, parts = BAD_STATES[case]
    state, source = dict(authors_state), tmp_path / f"{NAME}.{suffix}"
    change(state)
    (torch.save if suffix == "pth" else save_file)(state, source)
    check_refused(source, tmp_path, parts, capsys)


def check_refused(source, folder, parts, capsys, *flags):
    """Exit code 2, one line that holds the parts, and nothing new in the folder."""
    before = sorted(path.name for path in folder.iterdir())
    assert converter.main(["--src", str(source), "--dst", str(folder / "out"), *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and len(err) < 1500
    for part in parts:
        assert part in err, f"{part!r} is not in: {err}"
    assert sorted(path.name for path in folder.iterdir()) == before


FLAGS = {  # name of the file, flags, parts of the message
    "unknown name": ("mine", (), ["mine.pth does not tell", "--kind relative", "--max_depth 20"]),
    "no limit": ("mine", ("--kind", "metric"), ["--max_depth 20"]),
    "contradiction": (NAME, ("--kind", "relative"), ["by its name metric"]),
    "limit of relative": ("mine", ("--kind", "relative", "--max_depth", "9"), ["no bounded"]),
    "bad limit": ("mine", ("--max_depth", "-1"), ["max_depth is -1.0", "above 0"]),
    "bad kind": ("mine", ("--kind", "disparity"), ["--kind"]),
    "bad dtype": ("mine", ("--dtype", "int8"), ["--dtype"]),
}


@pytest.mark.parametrize("case", FLAGS)
def test_refuses_flags(tmp_path, authors_state, case, capsys):
    name, flags, parts = FLAGS[case]
    torch.save(authors_state, tmp_path / f"{name}.pth")
    check_refused(tmp_path / f"{name}.pth", tmp_path, parts, capsys, *flags)


def test_video_networks_have_no_limit(tmp_path, video_state, capsys):
    source = tmp_path / "mine.pth"
    torch.save(video_state, source)
    check_refused(source, tmp_path, ["does not tell", "or --kind metric"], capsys)
    flags = ("--kind", "metric", "--max_depth", "80")
    check_refused(source, tmp_path, ["no bounded metric head"], capsys, *flags)


CONFIGS = {  # change of the hub's config.json, parts of the message
    "giant": (lambda c: c["backbone_config"].update(use_swiglu_ffn=True), ["use_swiglu_ffn True"]),
    "other backbone": (lambda c: c["backbone_config"].update(model_type="beit"), ["not dinov2"]),
    "no limit": (lambda c: c.update(max_depth=None), ["metric without a max_depth"]),
    "heads": (lambda c: c["backbone_config"].update(num_attention_heads=5), ["not a multiple"]),
    "layers": (
        lambda c: c["backbone_config"].update(out_indices=[3, 6, 9, 13]),
        ["are not layers 1 to 12"],
    ),
    "levels": (lambda c: c.update(neck_hidden_sizes=[8, 8, 32]), ["4 maps", "neck of 3 widths"]),
    "width": (lambda c: c.update(fusion_hidden_size=16), ["neck.convs.0.weight", "is not"]),
    "other network": (lambda c: c.update(model_type="dpt"), ["none of the depth networks"]),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_refuses_configs(tmp_path, hub_folder, case, capsys):
    change, parts = CONFIGS[case]
    shutil.copytree(hub_folder, tmp_path / "hub")
    config = json.loads((tmp_path / "hub/config.json").read_text())
    change(config)
    (tmp_path / "hub/config.json").write_text(json.dumps(config))
    check_refused(tmp_path / "hub", tmp_path, parts, capsys)


def test_refuses_other_files(tmp_path, hub_folder, authors_state, capsys):
    flags = ("--kind", "metric")
    check_refused(hub_folder, tmp_path, ["config.json states", "--kind"], capsys, *flags)
    single = tmp_path / "model.safetensors"
    shutil.copy(hub_folder / "model.safetensors", single)
    check_refused(single, tmp_path, ["needs the config.json", "give the folder"], capsys)
    torch.save(authors_state, tmp_path / f"{NAME}.pth")
    whole = (tmp_path / f"{NAME}.pth").read_bytes()
    for name, content, part in (
        ("cut.pth", whole[: len(whole) // 2], "not a whole .pth"),
        ("text.pth", b"not weights\n" * 99, "not a whole .pth"),
        ("text.safetensors", b"not weights\n" * 99, "not a whole safetensors"),
        ("weights.onnx", b"", "neither a folder"),
    ):
        (tmp_path / name).write_bytes(content)
        check_refused(tmp_path / name, tmp_path, [part, name], capsys)
    torch.save([1, 2], tmp_path / "list.pth")
    check_refused(tmp_path / "list.pth", tmp_path, ["state dict"], capsys)
    torch.save({"a": torch.ones(2), "b": 3}, tmp_path / "number.pth")
    check_refused(tmp_path / "number.pth", tmp_path, ["holds b beside named tensors"], capsys)
    check_refused(tmp_path / "absent.pth", tmp_path, ["does not exist"], capsys)
    (tmp_path / "empty").mkdir()
    check_refused(tmp_path / "empty", tmp_path, ["config.json is missing"], capsys)


def test_keeps_what_exists(tmp_path, hub_folder, monkeypatch):
    dst = tmp_path / "out"
    dst.mkdir()
    (dst / "mine").write_text("mine")
    for overwrite, part in ((False, "exists already"), (True, "not an earlier conversion")):
        with pytest.raises(InputError, match=part):
            converter.convert(hub_folder, dst, overwrite=overwrite)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]
    (dst / "mine").unlink()
    converter.convert(hub_folder, dst, overwrite=True)
    before = {path: path.read_bytes() for path in dst.rglob("*") if path.is_file()}
    monkeypatch.setattr(converter, "save_tree", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(ConversionError, match="cannot be written .full"):
        converter.convert(hub_folder, dst, overwrite=True)
    assert before == {path: path.read_bytes() for path in dst.rglob("*") if path.is_file()}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Folders that are read


def test_refuses_folders_that_are_not_ours(tmp_path, hub_folder):
    from recapture_jax.depth import depth_anything, video_depth

    with pytest.raises(InputError, match="does not exist; convert the weights"):
        networks.load(tmp_path / "absent")
    with pytest.raises(InputError, match="architecture"):
        networks.load(hub_folder)
    converter.convert(hub_folder, tmp_path / "out")
    with pytest.raises(InputError, match="depth_anything network, expected video_depth_anything"):
        video_depth.from_folder(tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    for change, part in (
        ({"architecture": "midas"}, "'midas', expected one of depth_anything"),
        ({"neck": {}}, "not usable"),
        ({"head_hidden_size": 5}, "does not fit the expected tree"),
    ):
        (tmp_path / "out/config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError, match=part):
            networks.load(tmp_path / "out")
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    shutil.rmtree(tmp_path / "out/params")
    with pytest.raises(InputError, match="no checkpoint at"):
        depth_anything.from_folder(tmp_path / "out")
