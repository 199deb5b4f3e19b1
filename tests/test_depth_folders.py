"""Depth for a whole video or for the frames used, as EXR, and with poses in folders of ViPE and GEN3C."""

import sys
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

from recapture_jax import source
from recapture_jax.config import default_config, validate
from recapture_jax.depth import exr, files, folders
from recapture_jax.depth.files import Frames
from recapture_jax.depth.precomputed import load_depth
from recapture_jax.errors import InputError
from recapture_jax.first_stage import FirstStage
from recapture_jax.preview import preview
from recapture_jax.video.write import write_video

TOTAL, H, W = 9, 48, 64
START, STRIDE, COUNT = 2, 3, 3  # of the frames used: 2, 5, 8
USED = [2, 5, 8]
DEPTH = np.random.default_rng(0).uniform(2, 4, (TOTAL, H, W)).astype(np.float16)
FOCAL = np.linspace(60, 62, TOTAL)


def refused(call, *parts):
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    for part in parts:
        assert part in message, message


@pytest.fixture
def exr_is_npy(monkeypatch):
    """A stand-in for the OpenEXR package whose 'EXR' are npz of channels."""

    class File:
        def __init__(self, path, separate_channels):
            assert separate_channels
            self.stored = np.load(path)

        def channels(self):
            return {k: types.SimpleNamespace(pixels=v) for k, v in self.stored.items()}

    monkeypatch.setitem(sys.modules, "OpenEXR", types.SimpleNamespace(File=File))


def fake_exr(path, **channels):
    with open(path, "wb") as file:
        np.savez(file, **channels)


def poses():
    """World_from_camera of a camera that goes right by 0.1 a frame, from somewhere in the world."""
    turn = np.array([[0, 0, 1.0], [0, 1, 0], [-1, 0, 0]])
    path = np.tile(np.eye(4), (TOTAL, 1, 1))
    path[:, :3, :3] = turn
    path[:, :3, 3] = 0.1 * np.arange(TOTAL)[:, None] * turn[:, 0] + (5, 6, 7)
    return path


def intrinsics():
    k = np.tile(np.eye(3), (TOTAL, 1, 1))
    k[:, 0, 0] = k[:, 1, 1] = FOCAL
    k[:, 0, 2], k[:, 1, 2] = W / 2 + 1, H / 2 - 1
    return k


def gen3c(folder, frames=slice(None), depth=DEPTH, mask=None):
    folder.mkdir()
    np.savez(folder / "depth.npz", depth=depth[frames].astype(np.float32))
    w2c = np.linalg.inv(poses())[frames]
    np.savez(folder / "camera.npz", w2c=w2c, intrinsics=intrinsics()[frames])
    if mask is not None:
        np.savez(folder / "mask.npz", mask=mask[frames])
    return folder


def vipe(folder, names=("clip",), camera="PINHOLE"):
    for part in ("depth", "pose", "intrinsics"):
        (folder / part).mkdir(parents=True)
    for name in names:
        with zipfile.ZipFile(folder / "depth" / f"{name}.zip", "w") as archive:
            for t in range(TOTAL):
                fake_exr(folder / "frame", Z=DEPTH[t])
                archive.write(folder / "frame", f"{t:05d}.exr")
        k, inds = intrinsics(), np.arange(TOTAL)
        rows = np.stack([k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2]], -1)
        np.savez(folder / "pose" / f"{name}.npz", inds=inds, data=poses())
        np.savez(folder / "intrinsics" / f"{name}.npz", inds=inds, data=rows)
        lines = "".join(f"{t}: {camera}\n" for t in range(TOTAL))
        (folder / "intrinsics" / f"{name}_camera.txt").write_text(lines)
    return folder


# --- which frames -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npy", "npz", "png", "zip"])
@pytest.mark.parametrize("whole", [True, False])
def test_frames_of_the_whole_video_or_those_used(tmp_path, suffix, whole):
    values = (DEPTH * 1000).astype(np.uint16)
    stored, path = values if whole else values[USED], tmp_path / f"depth.{suffix}"
    if suffix == "npy":
        np.save(path, stored)
    elif suffix == "npz":
        np.savez(path, depth=stored)
    else:
        path = tmp_path / "pictures"
        path.mkdir()
        for t, picture in enumerate(stored):
            Image.fromarray(picture).save(path / f"{t}.png")
        if suffix == "zip":
            with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
                for file in path.iterdir():
                    archive.write(file, f"inside/{file.name}")
            path = tmp_path / "d.zip"
    found = files.read_depth(path, Frames(COUNT, START, STRIDE, TOTAL))
    np.testing.assert_array_equal(found, values[USED])
    if suffix != "npy":
        assert files.picture_size(path) == (H, W)
    both = "holds 8 frames", "the video has 8, of which 3 are used", "or exactly those"
    if not whole:
        refused(
            lambda: files.read_depth(path, Frames(4, 0, 1, 20)),
            *("holds 3 frames", "the video has 20, of which 4 are used", "or exactly those"),
        )
    else:
        refused(lambda: files.read_depth(path, Frames(3, 0, 1, 8)), "holds 9 frames", *both[1:])


# --- EXR ----------------------------------------------------------------------------------------


def test_without_the_package_the_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    for t in range(COUNT):
        fake_exr(tmp_path / f"{t}.exr", Z=DEPTH[t])
    refused(lambda: load(tmp_path), "0.exr", "pip install OpenEXR", "npz")


def load(path, frames=None, **options):
    frames = frames or Frames(COUNT)
    return load_depth(path, "metric", frames=frames, height=H, width=W, **options)


@pytest.mark.parametrize(
    "names, wanted",
    [
        (["Z"], ""),
        (["Y"], ""),
        (["R", "G", "B", "Z"], ""),
        (["Combined.R", "View.Depth.Z"], ""),
        (["depth", "mask"], ""),
        (["R", "G", "B"], "R"),
        (["Z", "other"], "other"),
    ],
)
def test_channel(tmp_path, exr_is_npy, names, wanted):
    right = wanted or next((n for n in names if n[-1] in "Zhy"[:2]), names[0])
    channels = {n: DEPTH[0] if n == right else DEPTH[1] for n in names}
    fake_exr(tmp_path / "f.exr", **channels)
    np.testing.assert_array_equal(exr.read_exr(tmp_path / "f.exr", wanted), DEPTH[0])


def test_folder_of_exr(tmp_path, exr_is_npy):
    values = DEPTH.copy()
    values[:, :10] = np.inf  # sky
    for t in range(TOTAL):
        fake_exr(tmp_path / f"frame{t + 5}.exr", Z=values[t])  # frame10 comes after frame9
    found = load(tmp_path, Frames(COUNT, START, STRIDE, TOTAL))
    np.testing.assert_array_equal(found.depth[:, 10:], DEPTH[USED][:, 10:].astype(np.float32))
    assert found.sky[:, :10].all() and not found.sky[:, 10:].any()


def test_bad_exr(tmp_path, exr_is_npy):
    fake_exr(tmp_path / "colours.exr", R=DEPTH[0], G=DEPTH[0])
    refused(lambda: exr.read_exr(tmp_path / "colours.exr"), "G, R", "config.depth.channel")
    refused(lambda: exr.read_exr(tmp_path / "colours.exr", "Z"), "no channel 'Z'", "G, R")
    (tmp_path / "broken.exr").write_bytes(b"v/1\x01")
    refused(lambda: exr.read_exr(tmp_path / "broken.exr"), "broken.exr cannot be read as EXR")
    Image.fromarray((DEPTH[0] * 1000).astype(np.uint16)).save(tmp_path / "one.png")
    refused(lambda: load(tmp_path), "both PNG or EXR")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_real_exr(tmp_path, dtype):
    """With the package itself, through every way of reading."""
    library = pytest.importorskip("OpenEXR")
    for t in range(TOTAL):
        header = {"compression": library.ZIP_COMPRESSION, "type": library.scanlineimage}
        library.File(header, {"Z": DEPTH[t].astype(dtype)}).write(str(tmp_path / f"{t}.exr"))
    frames = Frames(COUNT, START, STRIDE, TOTAL)
    expected = DEPTH[USED].astype(np.float32)
    np.testing.assert_array_equal(load(tmp_path, frames).depth, expected)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for t in range(TOTAL):
            archive.write(tmp_path / f"{t}.exr", f"{t:05d}.exr")
    np.testing.assert_array_equal(load(tmp_path / "all.zip", frames).depth, expected)
    assert files.picture_size(tmp_path / "all.zip") == (H, W)
    content = (tmp_path / "3.exr").read_bytes()
    (tmp_path / "3.exr").write_bytes(content[: len(content) // 2])
    refused(lambda: exr.read_exr(tmp_path / "3.exr"), "3.exr cannot be read as EXR")


# --- folders of other tools, in a run -----------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    noise = np.random.default_rng(1).random((TOTAL, H, W, 3)).astype(np.float32)
    write_video(tmp_path / "clip.mp4", noise, 8)
    config = default_config("smoke")
    config.video.path, config.output.root = str(tmp_path / "clip.mp4"), str(tmp_path / "out")
    config.video.start, config.video.stride, config.video.num_frames = START, STRIDE, COUNT
    config.video.short_side, config.video.multiple = H, 16
    config.depth.estimator, config.depth.stabilise = "precomputed", False
    return config


def stage(config):
    validate(config)
    model = {"num_frames": COUNT, "vae": {"block_out_channels": [8, 8, 8]}}
    first = FirstStage(config, model)
    first.read()
    return first


def check(first, tool):
    """Depth of the frames used, the median lens of them, and their poses seen from the first."""
    np.testing.assert_allclose(first.depth().depth, DEPTH[USED].astype(np.float32), rtol=1e-6)
    focal = np.median(FOCAL[USED])
    expected = np.array([[focal, 0, W / 2 + 1], [0, focal, H / 2 - 1], [0, 0, 1]])
    np.testing.assert_allclose(first.clip.intrinsics, expected, rtol=1e-5)
    assert tool in first.camera.said
    own = np.tile(np.eye(4), (COUNT, 1, 1))
    own[:, 0, 3] = 0.1 * STRIDE * np.arange(COUNT)
    np.testing.assert_allclose(first.camera.poses, own, atol=1e-5)
    first.config.camera.mode = "absolute"
    path = first.plan(first.config.camera, first.depth())
    np.testing.assert_allclose(path.cameras.world_from_camera[:, 0, 3], -own[:, 0, 3], atol=1e-5)


def test_gen3c_folder(config, tmp_path):
    config.depth.path = str(gen3c(tmp_path / "all"))
    check(stage(config), "GEN3C")
    config.depth.path = str(gen3c(tmp_path / "used", USED))
    check(stage(config), "GEN3C")


def test_gen3c_mask_is_sky(config, tmp_path):
    mask = np.ones(DEPTH.shape, bool)
    mask[:, :12] = False
    config.depth.path = str(gen3c(tmp_path / "g", depth=np.where(mask, DEPTH, 1e3), mask=mask))
    first = stage(config)
    found = first.depth()
    np.testing.assert_array_equal(found.sky, ~mask[USED])
    assert first.depth_report["sky"]["share"] == 0.25
    assert stage(config).depth().sky.any()  # from the cache, too


def test_vipe_folder(config, tmp_path, exr_is_npy):
    config.depth.path = str(vipe(tmp_path / "v", names=("other", "clip")))
    check(stage(config), "ViPE")
    (tmp_path / "v" / "pose" / "clip.npz").unlink()
    config.camera.mode = "relative"
    first = stage(config)
    assert first.camera.poses is None
    assert first.clip.intrinsics[0, 0] == pytest.approx(np.median(FOCAL[USED]))
    config.camera.mode = "absolute"
    refused(lambda: stage(config), "config.camera.poses is empty")


def test_bad_folders(config, tmp_path, exr_is_npy):
    config.depth.path = str(vipe(tmp_path / "two", names=("a", "b")))
    refused(lambda: stage(config), "of 2 videos (a, b)", "none called 'clip'")
    config.depth.path = str(vipe(tmp_path / "fisheye", camera="MEI"))
    refused(lambda: stage(config), "clip_camera.txt, line 1", "MEI", "PINHOLE")
    made = vipe(tmp_path / "short")
    np.savez(made / "intrinsics" / "clip.npz", inds=np.arange(4), data=np.ones((4, 4)))
    config.depth.path = str(made)
    refused(lambda: stage(config), "has 4 entries", "has 9")
    np.savez(made / "intrinsics" / "clip.npz", k=np.ones((9, 4)))
    refused(lambda: stage(config), "holds k", "inds and data")
    config.depth.path = str(gen3c(tmp_path / "part", slice(0, 5)))
    refused(lambda: stage(config), "holds 5 frames", "the video has 9, of which 3 are used")
    made = gen3c(tmp_path / "mask", mask=np.ones((TOTAL, 4, 4)))
    config.depth.path = str(made)
    refused(lambda: stage(config).depth(), "mask.npz")
    assert folders.find_folder(tmp_path) is None


def test_preview_says_lens_near_far_and_sky(config, tmp_path, capsys):
    values = 3 / DEPTH.astype(np.float32)
    values[:, :12] = 0
    np.save(tmp_path / "disparity.npy", values)
    config.depth.path, config.depth.kind = str(tmp_path / "disparity.npy"), "disparity"
    config.depth.near, config.depth.far = 3.0, 7.0
    config.camera.intrinsics, config.camera.moves = "60deg", "static"
    config.output.compilation_cache = False
    result = preview(config)
    report = result.report["depth"]
    assert (report["near"], report["far"], report["kind"]) == (3.0, 7.0, "relative")
    assert report["sky"]["share"] == 0.25
    said = str(result)
    lens = result.report["lens"]
    assert "60.0 degrees" in lens and "given (60deg)" in lens and lens in capsys.readouterr().err
    assert "sky: 25 %" in said
    ground = stage(config).depth()
    ends = [ground.depth[~ground.sky].min(), ground.depth[~ground.sky].max()]
    np.testing.assert_allclose(ends, [3, 7], rtol=1e-5)
    config.depth.kind = "metric"
    assert source.depth_report(config, ground)["near"] is None
