"""Bad depth files, arguments and arrays: one clear line that names what is wrong."""

import numpy as np
import pytest
from PIL import Image

from recapture_jax.depth import base, fastdepth
from recapture_jax.depth.align import disparity_to_depth, stabilise
from recapture_jax.depth.base import DepthMap
from recapture_jax.depth.files import Frames
from recapture_jax.depth.precomputed import load_depth
from recapture_jax.errors import InputError

T, H, W = 3, 6, 8
GOOD = np.random.default_rng(0).uniform(1, 9, (T, H, W)).astype(np.float32)


def refused(call, *parts):
    """`call` raises one line that holds every part."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and 20 < len(message) < 500, message
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"


def load(path, kind="metric", scale=1.0, **options):
    return load_depth(
        path, kind, scale, **{"frames": Frames(T), "height": H, "width": W, **options}
    )


def saved(array, suffix=".npy"):
    def make(folder):
        path = folder / f"depth{suffix}"
        np.save(path, array) if suffix == ".npy" else np.savez(path, **array)
        return path

    return make


def written(name, content):
    def make(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return make


def pngs(*pictures):
    def make(folder):
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / f"{i}.png")
        return folder

    return make


def cut(make, keep, name=None):
    """A file of `make`, truncated to the share `keep`."""

    def truncated(folder):
        path = made = make(folder)
        if name:
            path = made / name
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])
        return made

    return truncated


def damaged_zip(folder):
    path = folder / "depth.npz"
    np.savez_compressed(path, depth=GOOD)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    return path


def with_values(value, share=1.0):
    array = GOOD.copy()
    array[1].flat[: round(share * H * W)] = value
    return array


SIXTEEN = (GOOD * 1000).astype(np.uint16)
FILES = {
    "missing": (lambda f: f / "none.npz", ["does not exist"]),
    "unknown format": (written("depth.exr", b"v/1\x01"), ["unknown format", ".npz"]),
    "empty folder": (lambda f: f, ["no PNG"]),
    "empty file": (written("depth.npy", b""), ["cannot be read"]),
    "not a zip": (written("depth.npz", b"PK nothing of the kind" * 9), ["cannot be read"]),
    "text": (written("depth.npy", b"1.0 2.0 3.0\n" * 9), ["cannot be read"]),
    "truncated npy": (cut(saved(GOOD), 0.7), ["cannot be read"]),
    "truncated npz": (cut(saved({"depth": GOOD}, ".npz"), 0.7), ["cannot be read"]),
    "damaged npz": (damaged_zip, ["depth.npz", "CRC"]),
    "empty npz": (saved({}, ".npz"), ["holds nothing"]),
    "ambiguous npz": (saved({"a": GOOD, "b": GOOD}, ".npz"), ["a, b", "depths"]),
    "pickled objects": (saved(np.array([{"a": 1}, None])), ["cannot be read"]),
    "frame count": (saved(GOOD[:2]), ["2 frames", "has 3"]),
    "one picture": (saved(GOOD[0]), ["(6, 8)", "[frames, height, width]"]),
    "colours": (saved(np.zeros((T, H, W, 3), np.float32)), ["(3, 6, 8, 3)"]),
    "no pixels": (saved(np.zeros((T, 0, W), np.float32)), ["(3, 0, 8)"]),
    "text array": (saved(np.full((T, H, W), "far")), ["<U3"]),
    "complex": (saved(GOOD.astype(np.complex64)), ["complex64"]),
    "booleans": (saved(GOOD > 4), ["bool"]),
    "bytes": (saved(GOOD.astype(np.uint8)), ["uint8", "8 bits"]),
    "aspect": (saved(np.ones((T, H, 2 * W), np.float32)), ["6x16", "6x8", "aspect"]),
    "rotated": (saved(np.ones((T, W, H), np.float32)), ["8x6", "aspect"]),
    "NaN": (saved(with_values(np.nan)), ["100% of frame 1"]),
    "half zeros": (saved(with_values(0, 0.5)), ["50% of frame 1", "zero"]),
    "infinity": (saved(with_values(-np.inf, 0.8)), ["frame 1", "infinite"]),
    "negative": (saved(-GOOD), ["100% of frame 0", "negative"]),
    "8-bit PNG": (pngs(*(GOOD * 20).astype(np.uint8)), ["type L", "16-bit"]),
    "colour PNG": (pngs(*np.zeros((T, H, W, 3), np.uint8)), ["type RGB"]),
    "PNG count": (pngs(*SIXTEEN[:2]), ["folder", "2 frames", "has 3"]),
    "PNG sizes": (pngs(*SIXTEEN[:2], SIXTEEN[2][:, :4]), ["2.png", "6x4", "6x8"]),
    "truncated PNG": (cut(pngs(*SIXTEEN), 0.6, "1.png"), ["1.png", "cannot be read"]),
    "black PNG": (pngs(*np.zeros((T, H, W), np.uint16)), ["100% of frame 0"]),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_file(tmp_path, case):
    make, parts = FILES[case]
    path = make(tmp_path)
    refused(lambda: load(path), str(path.name), *parts)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"kind": "depth"}, ["'depth'", "metric, relative, disparity"]),
        ({"encoding": "uint8"}, ["'uint8'", "float16_bits"]),
        ({"scale": 0.0}, ["0.0", "above 0"]),
        ({"scale": -1.0}, ["-1.0"]),
        ({"scale": float("nan")}, ["nan"]),
        ({"scale": 1e-50}, ["another scale"]),
        ({"kind": "disparity", "near": 3.0, "far": 2.0}, ["near is 3.0", "far 2.0"]),
        ({"kind": "disparity", "near": None}, ["near is None"]),
        ({"kind": "disparity", "near": 0.0}, ["0 < near"]),
    ],
)
def test_bad_argument(tmp_path, options, parts):
    refused(lambda: load(saved(GOOD)(tmp_path), **options), *parts)


def test_half_float_bits_that_are_not_depth(tmp_path):
    not_numbers = np.full((T, H, W), 0xFFFF, np.uint16)
    refused(lambda: load(pngs(*not_numbers)(tmp_path), encoding="float16_bits"), "100% of frame 0")


@pytest.mark.parametrize(
    ("disparity", "near", "far", "part"),
    [
        (np.ones((2, 3, 4)), 1.0, 20.0, "everywhere"),
        (np.zeros((2, 3, 4)), None, None, "goes down to 0"),
        (GOOD, 1.0, np.inf, "far inf"),
    ],
)
def test_bad_disparity(disparity, near, far, part):
    refused(lambda: disparity_to_depth(disparity, near, far), part)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"kind": "disparity"}, "metric, relative"),
        ({"depth": GOOD[0]}, "(6, 8)"),
        ({"depth": GOOD[:0]}, "[T, H, W]"),
        ({"depth": GOOD.astype(np.float64)}, "float64"),
        ({"depth": with_values(0.0, 0.1)}, "frame 1"),
        ({"depth": with_values(np.nan, 0.1)}, "frame 1"),
        ({"depth": with_values(np.inf, 0.1)}, "frame 1"),
        ({"intrinsics": np.ones((T, 3, 3))}, "(3, 3, 3)"),
    ],
)
def test_bad_depth_map(changes, part):
    fields = {"depth": GOOD, "kind": "metric", "source": "test", **changes}
    refused(lambda: DepthMap(**fields), part)


def test_unknown_estimator():
    refused(lambda: base.get_estimator("zoedepth"), "'zoedepth'", "fastdepth")


@pytest.mark.parametrize(
    ("frames", "part"),
    [
        (np.zeros((4, 8, 3), np.float32), "(4, 8, 3)"),
        (np.zeros((0, 4, 8, 3), np.float32), "(0, 4, 8, 3)"),
        (np.zeros((2, 4, 8, 4), np.float32), "[T, H, W, 3]"),
        (np.zeros((2, 4, 8, 3), np.uint8), "uint8"),
    ],
)
def test_bad_frames(frames, part):
    refused(lambda: base.check_frames(frames), part)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"frames": np.zeros((T, H, W + 1, 3))}, "(3, 6, 9, 3)"),
        ({"frames": np.zeros((T, H, W))}, "[T, H, W, 3]"),
        ({"mode": "median"}, "auto, clip"),
        ({"radius": -1}, "radius -1"),
        ({"sigma_depth": 0.0}, "sigma_depth 0.0"),
    ],
)
def test_bad_stabilise(options, part):
    options = {"frames": np.zeros((T, H, W, 3)), **options}
    refused(lambda: stabilise(DepthMap(GOOD, "metric", "test"), **options), part)


def test_bad_weights(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "w.safetensors"
    refused(lambda: fastdepth.FastDepth(path), "w.safetensors", "cannot be read")
    path.write_bytes(b"not weights")
    refused(lambda: fastdepth.FastDepth(path), "cannot be read")
    save_file({"head/conv/kernel": np.zeros((1, 1, 16, 1), np.float32)}, path)
    refused(lambda: fastdepth.FastDepth(path), "183 more")  # of 189; six are named
