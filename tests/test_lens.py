"""The lens of the source: every way to know it, in which order, and what is said of it."""

import math

import av
import numpy as np
import pytest
from PIL import Image

from recapture_jax.camera import lens
from recapture_jax.camera.path import PosePath
from recapture_jax.camera.pinhole import intrinsics_from_fov
from recapture_jax.errors import InputError
from recapture_jax.video.clip import Origin
from recapture_jax.video.read import read_clip

SIZE = (48, 64)
QUICKTIME = "com.apple.quicktime.camera.focal_length.35mm_equivalent"


def k(fx, fy, cx=32.0, cy=24.0):
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


def poses(*intrinsics, size=SIZE):
    count = len(intrinsics)
    path = PosePath(np.tile(np.eye(4), (count, 1, 1)), "metres", np.stack(intrinsics), size)
    return path, range(count)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("70", k(70, 70)),
        ("70 71", k(70, 71)),
        ("70, 71, 30, 25", k(70, 71, 30, 25)),
        ("1.5", k(96, 96)),
        ("1.5 2", k(96, 96)),
        ("1.5 2 0.5 0.25", k(96, 96, 32, 12)),
        ("90deg", k(24, 24)),
        ("90 degrees", k(24, 24)),
    ],
)
def test_given(text, expected):
    np.testing.assert_allclose(lens.parse(text, SIZE), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "text, says",
    [
        ("wide", "expected 'f'"),
        ("70 70 32", "expected 'f'"),
        ("-70", "expected 'f'"),
        ("nan", "expected 'f'"),
        ("200deg", "between 0deg and 180deg"),
        ("1.2.3deg", "expected 'f'"),
        ("70 70 320 240", "outside of the video's 64x48"),
    ],
)
def test_given_badly(text, says):
    with pytest.raises(InputError) as error:
        lens.parse(text, SIZE)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_order_of_what_is_known():
    """Given, then field of view, then poses or depth folder, then metadata, then the default."""
    known = {
        "given": "70",
        "paths": (poses(k(80, 80)), poses(k(85, 85))),
        "focal_35mm": 43.2666,
        "vertical_fov": 60.0,
    }
    expected = {
        "given": (70, "given (70)"),
        "vertical_fov": (24 / math.tan(math.radians(30)), "config.camera.vertical_fov"),
        "paths": (80, "from path"),
        "focal_35mm": (80.0, "metadata (43.2666 mm equivalent)"),  # of the diagonal, 80 pixels
    }
    for name, (focal, said) in expected.items():
        found = lens.choose(SIZE, **known)
        assert found.intrinsics[0, 0] == pytest.approx(focal, rel=1e-5), name
        assert said in found.said
        del known[name]
    found = lens.choose(SIZE)
    expected = intrinsics_from_fov(lens.DEFAULT_FOV, *SIZE)
    np.testing.assert_allclose(found.intrinsics, expected, rtol=1e-6)
    line = lens.describe(found, SIZE)
    assert "40.0 degrees" in line and "assumed" in line and "--config.camera.intrinsics" in line


def test_of_poses():
    """The median of the frames used, at the video's size; an unknown size only if it fits."""
    path, frames = poses(*(k(f, f) for f in (80, 90, 70, 500)))
    found = lens.from_path(path, (96, 128), range(0, 3))
    np.testing.assert_allclose(found.intrinsics, k(160, 160, 64, 48))
    assert "changes from 160 to 140 px" in found.said
    unsized = poses(k(80, 80), size=None)
    np.testing.assert_allclose(lens.from_path(unsized[0], SIZE, range(1)).intrinsics, k(80, 80))
    assert lens.from_path(unsized[0], (480, 640), range(1)) is None
    assert lens.from_path(PosePath(np.eye(4)[None], "metres"), SIZE, range(1)) is None
    said = lens.choose((480, 640), paths=[(unsized[0], range(1))]).said
    assert "the poses' is of pictures of unknown size" in said
    with pytest.raises(
        InputError, match="of 64x48 pixels, the video has 48x64: expected one shape"
    ):
        lens.from_path(path, SIZE[::-1], range(0, 3))
    # the next one that knows is taken
    both = ((unsized[0], range(1)), (poses(k(700, 700), size=(480, 640))[0], range(1)))
    assert lens.choose((480, 640), paths=both).intrinsics[0, 0] == 700


def movie(path, tags=None, stream_tags=None, count=3):
    options = {} if path.suffix == ".mkv" else {"movflags": "use_metadata_tags"}
    with av.open(str(path), "w", options=options) as container:
        container.metadata.update(tags or {})
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        stream.metadata.update(stream_tags or {})
        for t in range(count):
            picture = np.full((*SIZE, 3), 40 * t, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    "name, tags, stream_tags, expected",
    [
        ("a.mov", {QUICKTIME: "26"}, {}, 26.0),
        ("a.mp4", {QUICKTIME: "77.5"}, {}, 77.5),
        ("a.mkv", {QUICKTIME: "26"}, {"focal_length_35mm": "31"}, 31.0),
        ("a.mov", {QUICKTIME: "-13"}, {}, None),
        ("a.mov", {QUICKTIME: "0"}, {}, None),
        ("a.mov", {QUICKTIME: "wide"}, {}, None),
        ("a.mov", {"title": "26"}, {}, None),
    ],
)
def test_of_a_video_file(tmp_path, name, tags, stream_tags, expected):
    clip = read_clip(movie(tmp_path / name, tags, stream_tags), num_frames=2)
    assert clip.origin == Origin(3, SIZE, expected)


@pytest.mark.parametrize("focal", [28, 0, None])
def test_of_a_folder_of_photos(tmp_path, focal):
    for t in range(3):
        image, exif = Image.fromarray(np.full((*SIZE, 3), t, np.uint8)), Image.Exif()
        if focal is not None:
            exif.get_ifd(0x8769)[0xA405] = focal
        image.save(tmp_path / f"{t}.jpg", exif=exif)
    assert read_clip(tmp_path).origin == Origin(3, SIZE, focal or None)
