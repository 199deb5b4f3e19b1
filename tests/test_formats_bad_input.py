"""Malformed camera files: each refused in one line that says where and what was expected."""

import json
import struct

import numpy as np
import pytest

from recapture_jax.camera.formats import FORMATS, read_as, read_path, write_path
from recapture_jax.camera.path import PosePath
from recapture_jax.errors import InputError

EYE = np.eye(4).tolist()
FLAT = np.eye(4).reshape(-1).tolist()


def changed(value, *keys):
    """An identity matrix with one entry changed."""
    matrix = np.eye(4).tolist()
    matrix[keys[0]][keys[1]] = value
    return matrix


def nerfstudio(**camera):
    camera = {"camera_to_world": FLAT, "fov": 50.0, "aspect": 1.5} | camera
    return json.dumps({"camera_path": [{k: v for k, v in camera.items() if v is not None}]})


def transforms(frame=None, **fields):
    lens = {"fl_x": 50.0, "w": 64, "h": 48} | fields
    frames = [{"transform_matrix": EYE} | (frame or {})]
    return json.dumps({k: v for k, v in lens.items() if v is not None} | {"frames": frames})


def keyframes(*frames, **fields):
    data = {"format": "recapture_jax keyframes", "version": 1, "units": "pivot"} | fields
    return json.dumps(data | {"keyframes": list(frames)})


def recammaster(text, frame="frame0"):
    return json.dumps({frame: {"cam01": text}})


RE = "0 0.5 0.9 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0"
TUM = "0 1 2 3 0 0 0 1"
UNREAL = "[1 0 0 0] [0 1 0 0] [0 0 1 0] [0 0 0 1]"

TEXT = {
    # any file
    "empty file": ("p.json", None, " \n", "is empty"),
    "no json": ("p.json", None, '{"frames": [\n  {,}]}', "line 2, column 4"),
    "json list": ("p.json", None, "[1, 2]", "expected an object"),
    "unknown json": ("p.json", None, '{"a": 1}', "camera_path, frames, keyframes, frame0"),
    "unknown suffix": ("p.fbx", None, "x", "expected .json, .txt, .npz"),
    "txt of five columns": ("p.txt", None, "1 2 3 4 5\n" * 4, "expected 8 .tum. or 19"),
    "three lines without tool": ("p.txt", None, "0 1\n0 1\n0 1\n", "three lines"),
    "unknown format": ("p.txt", "tumm", TUM, "did you mean 'tum'"),
    # nerfstudio camera path
    "no cameras": ("p.json", None, '{"camera_path": []}', "camera_path is empty"),
    "camera without pose": (
        *("p.json", None, nerfstudio(camera_to_world=None)),
        r"camera_path\[0\]: field 'camera_to_world' is missing",
    ),
    "15 numbers": ("p.json", None, nerfstudio(camera_to_world=FLAT[1:]), "has 15 numbers"),
    "fov 0": ("p.json", None, nerfstudio(fov=0), "fov is 0: expected above 0"),
    "fov 200": ("p.json", None, nerfstudio(fov=200.0), "between 0 and 180"),
    "fov in words": ("p.json", None, nerfstudio(fov="wide"), "fov is 'wide': expected a number"),
    "fov NaN": ("p.json", None, nerfstudio(fov=float("nan")), "fov is nan"),
    "true is no number": ("p.json", None, nerfstudio(fov=True), "fov is true"),
    "fisheye path": (
        *("p.json", None, '{"camera_path": [1], "camera_type": "fisheye"}', "expected perspective"),
    ),
    "pose is an object": ("p.json", None, nerfstudio(camera_to_world={}), "expected a list"),
    "number of 400 digits": ("p.json", None, nerfstudio(fov=10**400), "fov is a huge number"),
    "number of 5000 digits": (
        "p.json",
        None,
        '{"frames": ' + "1" * 5000 + "}",
        "expected their JSON",
    ),
    "far, far away": (
        *("p.json", None, nerfstudio(camera_to_world=[*FLAT[:3], 1e20, *FLAT[4:]])),
        r"camera_to_world holds 1e\+20: expected at most 1e\+12",
    ),
    # transforms.json
    "no frames": ("p.json", None, '{"frames": []}', "frames is empty"),
    "frames no list": ("p.json", None, '{"frames": 3}', "frames is 3: expected a list"),
    "three rows of three": (
        *("p.json", None, transforms({"transform_matrix": [[1, 0, 0]] * 3})),
        r"frames\[0\].transform_matrix has 3 rows of 3",
    ),
    "transposed": (
        *("p.json", None, transforms({"transform_matrix": changed(2.0, 3, 0)})),
        "is the matrix transposed",
    ),
    "mirrored": (
        *("p.json", None, transforms({"transform_matrix": changed(-1.0, 0, 0)})),
        "mirrored .determinant -1.",
    ),
    "scaled": (
        *("p.json", None, transforms({"transform_matrix": (np.diag([2, 2, 2, 1.0])).tolist()})),
        "axes have lengths 2, 2, 2",
    ),
    "sheared": (
        *("p.json", None, transforms({"transform_matrix": changed(0.06, 0, 1)})),
        "not at right angles",
    ),
    "infinite": (
        *("p.json", None, transforms({"transform_matrix": changed(1e999, 0, 3)})),
        "item 4 is inf: expected a finite number",
    ),
    "null in a matrix": (
        *("p.json", None, transforms({"transform_matrix": changed(None, 1, 3)})),
        "item 8 is null",
    ),
    "focal without size": ("p.json", None, transforms(w=None), "fl_x without w and h"),
    "no focal": ("p.json", None, transforms(fl_x=None), "'camera_angle_x' is missing"),
    "angle in degrees": ("p.json", None, transforms(fl_x=None, camera_angle_x=60), "radians"),
    "fisheye": ("p.json", None, transforms(camera_model="OPENCV_FISHEYE"), "OPENCV or PINHOLE"),
    "negative focal": ("p.json", None, transforms(fl_x=-5), "fl_x is -5: expected above 0"),
    # keyframes
    "other format": ("p.json", None, keyframes({"frame": 0}, format="x"), "format is 'x'"),
    "version 2": ("p.json", None, keyframes({"frame": 0}, version=2), "version is 2: expected 1"),
    "unit feet": ("p.json", None, keyframes({"frame": 0}, units="feet"), "metres, pivot, arb"),
    "no keyframes": ("p.json", None, keyframes(), "keyframes is empty"),
    "frame 1.5": ("p.json", None, keyframes({"frame": 1.5}), "frame is 1.5: expected a whole"),
    "frames go back": (
        *("p.json", None, keyframes({"frame": 4}, {"frame": 4})),
        r"keyframes\[1\]: frame is 4: expected at least 5",
    ),
    "keyframe beyond clip end": (
        *("p.json", None, keyframes({"frame": 0}, {"frame": 24}, num_frames=24)),
        "frame is 24: expected at most 23",
    ),
    "unknown field": (
        *("p.json", None, keyframes({"frame": 0, "postion": [0, 0, 1]})),
        "unknown field 'postion'",
    ),
    "two aims": (
        *("p.json", None, keyframes({"frame": 0, "pan": 3, "look_at": [0, 0, 1]})),
        "expected one way to aim",
    ),
    "position of two": (
        *("p.json", None, keyframes({"frame": 0, "position": [0, 1]})),
        "position has 2 numbers: expected 3",
    ),
    "looks at itself": (
        *("p.json", None, keyframes({"frame": 0, "look_at": [0, 0, 0]})),
        "look_at is the position",
    ),
    "unknown easing": (
        *("p.json", None, keyframes({"frame": 0, "easing": "bounce"})),
        "easing is 'bounce': expected one of linear",
    ),
    "a million frames": (
        *("p.json", None, keyframes({"frame": 0}, num_frames=10**6)),
        "num_frames is 1000000: expected at most 100000",
    ),
    "zoom 0": ("p.json", None, keyframes({"frame": 0, "zoom": 0}), "zoom is 0: expected above 0"),
    # ReCamMaster
    "frame named badly": ("p.json", "recammaster", recammaster(UNREAL, "f0"), "expected frame0"),
    "gap in frames": ("p.json", "recammaster", recammaster(UNREAL, "frame1"), "frame0 is missing"),
    "three rows": ("p.json", None, recammaster("[1 0 0 0] [0 1 0 0] [0 0 1 0]"), "four rows"),
    "row of three": (
        *("p.json", None, recammaster(UNREAL.replace("[0 0 0 1]", "[0 0 0]"))),
        "four numbers in each row",
    ),
    "not transposed": (
        *("p.json", None, recammaster("[1 0 0 5] [0 1 0 0] [0 0 1 0] [0 0 0 1]")),
        "is the matrix transposed",
    ),
    "word in a row": (
        *("p.json", None, recammaster(UNREAL.replace("[1 0 0 0]", "[one 0 0 0]"))),
        "item 1 is 'one'",
    ),
    # one pose per line
    "tum of seven": ("p.txt", "tum", "0 1 2 3 0 0 1", "line 1 has 7 numbers: expected 8"),
    "tum word": ("p.txt", "tum", f"# c\n{TUM}\n1 1 2 x 0 0 0 1", "line 3: tz is 'x'"),
    "tum quaternion 0": ("p.txt", "tum", "0 1 2 3 0 0 0 0", "quaternion has length 0"),
    "tum time back": ("p.txt", "tum", f"{TUM}\n{TUM}", "line 2: timestamp 0 follows 0"),
    "tum inf": ("p.txt", "tum", TUM.replace("3", "inf"), "tz is inf: expected a finite"),
    "tum only comments": ("p.txt", "tum", "# nothing\n", "holds no pose"),
    "re10k of 18": ("p.txt", "realestate10k", RE[:-2], "line 1 has 18 numbers: expected 19"),
    "re10k in pixels": (
        *("p.txt", "realestate10k", RE.replace("0.5 0.9 0.5 0.5", "640 640 640 360")),
        "divide pixels by the size",
    ),
    "re10k focal 0": ("p.txt", "realestate10k", RE.replace("0.5 0.9", "0 0.9"), "above 0"),
    "re10k sheared": (
        *("p.txt", "realestate10k", f"url\n{RE}\n" + RE.replace("1 0 0 0 0 1", "1 .3 0 0 0 1")),
        "line 3, pose",
    ),
    # three lines
    "two lines": ("p.txt", "cognvs", "0 1\n0 1", "has 2 lines: expected 3 for cognvs"),
    "one number": ("p.txt", "cognvs", "0 1\n0\n0 1", r"line 2 \(theta\) has 1 number"),
    "word among angles": (
        "p.txt",
        "trajectorycrafter",
        "0 a\n0 1\n0 1",
        r"line 1 \(theta\): item 2",
    ),
    "r past the pivot": ("p.txt", "trajectorycrafter", "0 1\n0 1\n0 1", "to or past the pivot"),
    "r past the pivot, other sign": ("p.txt", "viewcrafter", "0 1\n0 1\n0 -1", "expected above -1"),
    "angle of a million": (
        "p.txt",
        "cognvs",
        "0 1\n0 1e6\n0 0",
        r"\(theta\) holds 1e\+06: expected",
    ),
    "viewcrafter not from 0": ("p.txt", "viewcrafter", "1 2\n0 1\n0 0", r"\(phi\) starts with 1"),
    "viewcrafter 26 numbers": (
        *("p.txt", "viewcrafter", "0 " * 26 + "\n0 1\n0 0"),
        "at most 25",
    ),
}


@pytest.mark.parametrize("case", TEXT)
def test_malformed_text_is_refused(case, tmp_path):
    name, format, content, message = TEXT[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_path(tmp_path / name, format)
    assert "\n" not in str(error.value) and "expected" in str(error.value)
    assert name in str(error.value) or "unknown format" in str(error.value)


CAMERAS = "1 PINHOLE 64 48 50 50 32 24\n"
IMAGES = "1 1 0 0 0 0 0 0 1 a.png\n\n"
COLMAP = {
    "image of nine": (CAMERAS, IMAGES.replace(" a.png", ""), "images.txt, line 1 has 9 fields"),
    "quaternion of 2": (CAMERAS, IMAGES.replace("1 1 0", "1 2 0"), "quaternion has length 2"),
    "translation in words": (CAMERAS, "1 1 0 0 0 0 y 0 1 a.png\n\n", "line 1: TY is 'y'"),
    "camera not there": (CAMERAS, IMAGES.replace("1 a.png", "7 a.png"), "CAMERA_ID of a.png is 7"),
    "unknown model": ("1 LENS 64 48 50 50 32 24\n", IMAGES, "MODEL is 'LENS'"),
    "fisheye model": ("1 OPENCV_FISHEYE 64 48 5 5 3 2 0 0 0 0\n", IMAGES, "undistort first"),
    "parameters": ("1 PINHOLE 64 48 50 32 24\n", IMAGES, "PINHOLE has 3 parameters: expected 4"),
    "no size": ("1 PINHOLE 0 48 50 50 32 24\n", IMAGES, "a size and a focal length above 0"),
    "short camera": ("1 PINHOLE 64\n", IMAGES, "cameras.txt, line 1 has 3 fields"),
    "two sizes": (
        CAMERAS + "2 PINHOLE 32 48 50 50 32 24\n",
        IMAGES + IMAGES.replace("1 a.png", "2 b.png"),
        "pictures of different size",
    ),
    "only comments": (CAMERAS, "# none\n", "holds no image"),
}


@pytest.mark.parametrize("case", COLMAP)
def test_malformed_colmap_text_is_refused(case, tmp_path):
    cameras, images, message = COLMAP[case]
    (tmp_path / "cameras.txt").write_text(cameras)
    (tmp_path / "images.txt").write_text(images)
    with pytest.raises(InputError, match=message) as error:
        read_path(tmp_path)
    assert "\n" not in str(error.value) and "expected" in str(error.value)


CAMERA_BIN = struct.pack("<QiiQQ4d", 1, 1, 1, 64, 48, 50, 50, 32, 24)
IMAGE_BIN = struct.pack("<QI7dI", 1, 1, 1, 0, 0, 0, 0, 0, 0, 1)
BINARY = {
    "camera cut off": (CAMERA_BIN[:-4], IMAGE_BIN + b"a\0" + bytes(8), "cameras.bin ends at byte"),
    "name without end": (CAMERA_BIN, IMAGE_BIN + b"abc", "a name without end"),
    "points cut off": (CAMERA_BIN, IMAGE_BIN + b"a\0" + struct.pack("<Q", 9), "cut off"),
    "unknown number": (CAMERA_BIN[:12] + b"\x63" + CAMERA_BIN[13:], IMAGE_BIN, "camera model 99"),
    "NaN": (
        CAMERA_BIN,
        struct.pack("<QI7dI", 1, 1, 1, 0, 0, 0, np.nan, 0, 0, 1) + b"a\0" + bytes(8),
        "TX is nan",
    ),
}


@pytest.mark.parametrize("case", BINARY)
def test_malformed_colmap_binary_is_refused(case, tmp_path):
    cameras, images, message = BINARY[case]
    (tmp_path / "cameras.bin").write_bytes(cameras)
    (tmp_path / "images.bin").write_bytes(images)
    with pytest.raises(InputError, match=message) as error:
        read_path(tmp_path)
    assert "\n" not in str(error.value)


POSES = np.tile(np.eye(4), (3, 1, 1))
NPZ = {
    "shape": ({"c2w": POSES[:, :2]}, r"c2w has shape \(3, 2, 4\): expected"),
    "mirrored": ({"c2w": POSES * [[-1.0], [1], [1], [1]]}, r"c2w\[0\]: the axes are mirrored"),
    "NaN": ({"w2c": POSES * np.nan}, "not finite"),
    "complex": ({"c2w": POSES * 1j}, "expected real numbers"),
    "silent name": ({"poses": POSES}, "give the convention, c2w or w2c"),
    "two of them": ({"c2w": POSES, "w2c": POSES}, "keep one of them"),
    "no poses": ({"depth": np.zeros((3, 4, 5))}, "expected one array of poses"),
    "inds of another length": ({"data": POSES, "inds": np.arange(2)}, r"inds has shape \(2,\)"),
    "inds go back": ({"data": POSES, "inds": np.array([0, 2, 1])}, "entry 1 follows 2"),
    "intrinsics": ({"c2w": POSES, "intrinsics": np.eye(4)}, r"intrinsics has shape \(4, 4\)"),
    "focal 0": ({"c2w": POSES, "K": np.zeros((3, 3))}, "fx, fy above 0"),
    "units": ({"c2w": POSES, "units": np.array("feet")}, "units is 'feet'"),
    "zoom 0": ({"c2w": POSES, "zoom": np.zeros(3)}, "numbers above 0"),
    "size in words": ({"c2w": POSES, "size": np.array(["a", "b"])}, "size is <U1"),
    "size": ({"c2w": POSES, "size": np.array([4])}, "expected height, width"),
}


@pytest.mark.parametrize("case", NPZ)
def test_malformed_npz_is_refused(case, tmp_path):
    arrays, message = NPZ[case]
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(InputError, match=message) as error:
        read_path(tmp_path / "p.npz")
    assert "\n" not in str(error.value) and "expected" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04rubbish", b"no archive", bytes(300)])
def test_damaged_npz_is_refused(content, tmp_path):
    (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(InputError, match="p.npz cannot be read"):
        read_path(tmp_path / "p.npz")


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_path(tmp_path / "gone.json")
    with pytest.raises(InputError, match="holds no COLMAP model"):
        read_path(tmp_path)
    (tmp_path / "p.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no text"):
        read_path(tmp_path / "p.json")
    (tmp_path / "d.json").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        read_path(tmp_path / "d.json", "keyframes")


def test_options_of_other_formats_are_refused(tmp_path):
    (tmp_path / "p.txt").write_text(TUM)
    with pytest.raises(InputError, match="option camera means nothing for tum"):
        read_path(tmp_path / "p.txt", "tum", camera="cam01")
    (tmp_path / "t.txt").write_text("0 1\n0 1\n0 0")
    with pytest.raises(InputError, match="degrees from -89 to 89"):
        read_path(tmp_path / "t.txt", "viewcrafter", elevation=90.0)
    with pytest.raises(InputError, match="expected one of c2w, w2c"):
        np.savez(tmp_path / "p.npz", poses=POSES)
        read_path(tmp_path / "p.npz", convention="opengl")


@pytest.mark.parametrize(
    "spec, message",
    [
        ("recamaster", "did you mean 'recammaster'"),
        ("tum camera=cam01", "option camera means nothing for tum: expected none"),
        ("tum speed=2", "cannot read 'speed=2' in the format 'tum speed=2'"),
        ("tum camera=", "cannot read 'camera='"),
        ("tum realestate10k", "cannot read 'realestate10k'"),
        ("num_frames=3", "cannot read 'num_frames=3'"),
        ("viewcrafter elevation=high", "elevation is 'high': expected a number"),
        ("convention=c2w", "option convention means nothing for tum"),  # told from the content
    ],
)
def test_formats_in_words_are_refused_in_one_line(spec, message, tmp_path):
    (tmp_path / "p.txt").write_text(TUM)
    with pytest.raises(InputError) as error:
        read_as(tmp_path / "p.txt", spec)
    assert message in str(error.value) and "\n" not in str(error.value)


NO_LENS = PosePath(POSES.copy(), "arbitrary")
CANNOT = {
    "keyframes": "in a world of its own",
    "nerfstudio": "has no intrinsics",
    "transforms": "has no intrinsics",
    "colmap": "has no intrinsics",
    "realestate10k": "has no intrinsics",
    "recammaster": "scale the path to metres",
    "trajectorycrafter": "not in pivot depths",
    "cognvs": "not in pivot depths",
    "viewcrafter": "not in pivot depths",
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_a_format_cannot_say_is_not_written(name, tmp_path):
    with pytest.raises(InputError, match=CANNOT[name]):
        write_path(NO_LENS, tmp_path / "p", name)
    assert not (tmp_path / "p").exists()
    assert set(CANNOT) | {"tum", "npz"} == set(FORMATS)
