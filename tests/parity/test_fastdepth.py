"""FastDepth against ONNX Runtime on the original file, and the converter that reads that file."""

import hashlib
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open

from converters import fastdepth as converter
from converters.rules import ConversionError
from recapture_jax.assets import asset_path
from recapture_jax.depth.fastdepth import ASSET, load_params
from recapture_jax.errors import InputError
from recapture_jax.models.fastdepth import FastDepthNet

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

SOURCE = Path(__file__).parents[1] / "data" / "fastdepth_7.onnx"
SHA256 = "6275c23f467d476874d0eecea2a2c7059733ca6681de4f17bfbfe3fc3a52a71d"


@pytest.fixture(scope="module")
def reference():
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns of each unused batch counter
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(SOURCE.read_bytes(), options, ["CPUExecutionProvider"])
    return lambda images: session.run(None, {"0": images.transpose(0, 3, 1, 2)})[0][:, 0]


@pytest.fixture(scope="module")
def network():
    params = load_params(asset_path(ASSET))
    apply = jax.jit(lambda images: FastDepthNet().apply({"params": params}, images)[..., 0])
    return lambda images: np.asarray(apply(images))


def photo() -> np.ndarray:
    data = pytest.importorskip("skimage.data")
    image = jax.image.resize(data.astronaut().astype(np.float32) / 255, (224, 224, 3), "linear")
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["photo", "uniform noise", "beyond the range"])
def test_matches_onnxruntime(reference, network, kind):
    """Measured: 2e-7 to 3e-7 overall, at most 1.9e-6 at the worst pixel."""
    rng = np.random.default_rng(0)
    image = {
        "photo": photo,
        "uniform noise": lambda: rng.random((224, 224, 3)),
        "beyond the range": lambda: rng.normal(0, 3, (224, 224, 3)),  # reaches both rectifiers
    }[kind]()
    image = image.astype(np.float32)[None]
    expected, found = reference(image), network(image)
    assert expected.std() > 0.01
    assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)
    np.testing.assert_array_less(np.abs(found - expected), 5e-6 * np.maximum(expected, 0.1))


def test_photo_is_sane(network):
    """The astronaut is nearer than the wall behind her; depth lies in the range of a room."""
    depth = network(photo()[None])[0]
    body, wall = depth[150:, 60:100], depth[10:60, 130:170]
    assert 0.5 < depth.min() and depth.max() < 6
    assert np.median(wall) > 1.3 * np.median(body)


def test_reproduces_the_asset(tmp_path):
    assert hashlib.sha256(SOURCE.read_bytes()).hexdigest() == SHA256
    assert converter.main(["--src", str(SOURCE), "--dst", str(tmp_path)]) == 0
    made = tmp_path / "fastdepth.safetensors"
    assert made.read_bytes() == asset_path(ASSET).read_bytes()
    with safe_open(made, framework="np") as file:
        assert file.metadata() == {"source_sha256": SHA256}
    readme = (asset_path(ASSET).parent / "README.md").read_text(encoding="utf-8")
    assert SHA256 in readme and hashlib.sha256(made.read_bytes()).hexdigest() in readme
    assert [p.name for p in tmp_path.iterdir()] == ["fastdepth.safetensors"]


def test_keeps_what_exists(tmp_path):
    made = tmp_path / "other.safetensors"
    made.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        converter.convert(SOURCE, made)
    assert made.read_bytes() == b"mine"
    converter.convert(SOURCE, made, overwrite=True)
    assert made.read_bytes() == asset_path(ASSET).read_bytes()


def edited(change):
    """The original model as bytes after `change(graph)`."""
    model = onnx.load(SOURCE)
    change(model.graph)
    return model.SerializeToString()


def set_tensor(graph, name, array):
    tensor = next(t for t in graph.initializer if t.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))


def attribute(graph, node, name):
    return next(a for a in graph.node[node].attribute if a.name == name)


def swap_skips(graph):
    one, two = (node for node in graph.node if node.op_type == "Add" and "323" not in node.input)
    one.input[1], two.input[1] = two.input[1], one.input[1]


def drop_last_layer(graph):
    del graph.node[-3:]
    graph.output[0].name = graph.node[-1].output[0]


WRONG = {
    "truncated": (lambda: SOURCE.read_bytes()[:4_000_000], ["whole ONNX", "again"]),
    "text": (lambda: b"not a model at all\n" * 99, ["ONNX"]),
    "empty": (lambda: b"", ["no ONNX graph"]),
    "stride": (
        lambda: edited(lambda g: attribute(g, 0, "strides").ints.__setitem__(0, 1)),
        ["graph", "-Conv(input) (16, 3, 3, 3) stride 2"],
    ),
    "clip": (
        lambda: edited(lambda g: setattr(attribute(g, 2, "max"), "f", 1.0)),
        ["-Clip(1) 0 to 6", "+Clip(1) 0 to 1"],
    ),
    "upsampling": (
        lambda: edited(
            lambda g: setattr(
                next(a for n in g.node if n.op_type == "Upsample" for a in n.attribute), "s", b"x"
            )
        ),
        ["-Upsample(", "nearest 2x2"],
    ),
    "skips": (lambda: edited(swap_skips), ["4 nodes", "-Add("]),
    "missing layer": (lambda: edited(drop_last_layer), ["-Conv(", "(1, 16, 1, 1)"]),
    "width": (
        lambda: edited(lambda g: set_tensor(g, "13", np.zeros((40, 16, 1, 1), np.float32))),
        ["+Conv(5) (40, 16, 1, 1)", "-Conv(5) (56, 16, 1, 1)"],
    ),
    "extra tensor": (
        lambda: edited(
            lambda g: g.initializer.append(
                onnx.numpy_helper.from_array(np.zeros(7, np.float32), "spare")
            )
        ),
        ["+spare (7,)"],
    ),
    "missing tensor": (lambda: edited(lambda g: g.initializer.pop(0)), ["graph", "Conv("]),
    "shared tensor": (
        lambda: edited(lambda g: g.node[4].input.__setitem__(1, g.node[1].input[1])),
        ["2 is used 2 times", "+8 (16,)"],
    ),
    "half": (
        lambda: edited(lambda g: set_tensor(g, "2", np.ones(16, np.float16))),
        ["stem/norm/scale", "float32"],
    ),
    "nan": (
        lambda: edited(lambda g: set_tensor(g, "2", np.full(16, np.nan, np.float32))),
        ["stem/norm/scale", "finite"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_refuses_another_file(tmp_path, case, capsys):
    make, parts = WRONG[case]
    source = tmp_path / "model.onnx"
    source.write_bytes(make())
    with pytest.raises(ConversionError) as caught:
        converter.convert(source, tmp_path / "out.safetensors")
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1500
    for part in [str(source), *parts]:
        assert part in message, f"{part!r} is not in: {message}"
    assert converter.main(["--src", str(source), "--dst", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("src", "dst", "part"),
    [
        ("none.onnx", "", "no such file"),
        ("", "", "cannot be read"),
        (SOURCE, "nowhere/at/all.safetensors", "does not exist"),
        (SOURCE, "nowhere", "neither"),
    ],
)
def test_refuses_bad_paths(tmp_path, src, dst, part):
    with pytest.raises(InputError, match=part):
        converter.convert(tmp_path / src, tmp_path / dst)
    assert not list(tmp_path.iterdir())
