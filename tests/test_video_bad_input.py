"""Bad videos, arguments and disks: one clear line before any work, and nothing left behind."""

import errno
import os
import resource
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from recapture_jax.assets import asset_path
from recapture_jax.errors import InputError
from recapture_jax.video import read
from recapture_jax.video.clip import Audio, Clip, exact_rate
from recapture_jax.video.read import read_clip
from recapture_jax.video.resize import apply_fit, cover, fit_size, resize, resize_depth
from recapture_jax.video.write import atomic, side_by_side, write_png, write_video

NOISE = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)


def snapshot(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(call, folder, *parts):
    """`call` raises one line that holds every part, and the folder is as it was."""
    before = snapshot(folder)
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and 20 < len(message) < 400, message
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    assert snapshot(folder) == before


def encode(path, frames=NOISE, codec="libx264", **options):
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=20)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for k, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 20)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def sound_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def overwritten(path, begin, end):
    """The same file with a stretch of random bytes in the middle."""
    data = bytearray(path.read_bytes())
    a, b = int(len(data) * begin), int(len(data) * end)
    data[a:b] = np.random.default_rng(1).bytes(b - a)
    path.write_bytes(data)
    return path


def text_file(path):
    path.write_text("this is not a video\n" * 50)
    return path


def empty_file(path):
    path.touch()
    return path


def folder(path, files=()):
    path.mkdir()
    for name, content in files:
        if isinstance(content, bytes):
            (path / name).write_bytes(content)
        else:
            Image.fromarray(content).save(path / name)
    return path


def fifo(path):
    os.mkfifo(path)
    return path


def two_sizes(path):
    """Two recordings joined byte by byte, which H.264 streams allow."""
    encode(path)
    small = encode(path.with_name("small.h264"), NOISE[:, :32, :48])
    path.write_bytes(path.read_bytes() + small.read_bytes())
    return path


PICTURE = NOISE[0]
PNG = [("1.png", PICTURE), ("2.png", PICTURE)]
FILES = {
    "missing": (lambda d: d / "no.mp4", ["no.mp4", "does not exist"]),
    "empty folder": (lambda d: folder(d / "f"), ["without images", "PNG"]),
    "folder of text": (
        lambda d: folder(d / "f", [("a.txt", b"x")]),
        ["without images"],
    ),
    "folder with one image": (
        lambda d: folder(d / "f", PNG[:1]),
        ["has 1 frame", "at least 2"],
    ),
    "folder with a broken image": (
        lambda d: folder(d / "f", [*PNG, ("3.png", b"\x89PNG\r\n\x1a\nxxxx")]),
        ["3.png", "cannot be read as an image"],
    ),
    "folder with a truncated image": (
        lambda d: cut(folder(d / "f", PNG) / "2.png", 0.5).parent,
        ["2.png", "cannot be read as an image"],
    ),
    "folder of two sizes": (
        lambda d: folder(d / "f", [*PNG, ("3.png", PICTURE[:32, :40])]),
        ["3.png", "40x32", "64x48"],
    ),
    "zero bytes": (lambda d: empty_file(d / "a.mp4"), ["empty", "0 bytes"]),
    "text named mp4": (lambda d: text_file(d / "a.mp4"), ["cannot be read as a video"]),
    "random bytes": (
        lambda d: overwritten(encode(d / "a.mp4"), 0, 1),
        ["cannot be read as a video"],
    ),
    "only sound": (lambda d: sound_only(d / "a.mp4"), ["only sound", "video track"]),
    "one frame": (lambda d: encode(d / "a.mp4", NOISE[:1]), ["has 1 frame", "at least 2"]),
    "still picture": (
        lambda d: folder(d / "f", PNG) / "1.png",
        ["has 1 frame", "still picture"],
    ),
    "mp4 without its index": (
        lambda d: cut(encode(d / "a.mp4"), 0.6),
        ["cannot be read as a video"],
    ),
    "mp4 cut short": (
        lambda d: cut(encode(d / "a.mp4", movflags="+faststart"), 0.6),
        ["truncated"],
    ),
    "webm cut short": (
        lambda d: cut(encode(d / "a.webm", codec="libvpx-vp9"), 0.6),
        ["truncated", "1.00 s"],
    ),
    "avi cut short": (lambda d: cut(encode(d / "a.avi", codec="mpeg4"), 0.6), ["truncated"]),
    "mp4 with a damaged middle": (
        lambda d: overwritten(encode(d / "a.mp4"), 0.3, 0.6),
        ["damaged", "convert it again"],
    ),
    "two sizes in one file": (
        lambda d: two_sizes(d / "a.h264"),
        ["changes its frame size", "64x48", "48x32"],
    ),
    "named pipe": (lambda d: fifo(d / "pipe"), ["not a regular file"]),
    "device": (lambda d: "/dev/null", ["not a regular file"]),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_file_is_refused(tmp_path, name):
    make, parts = FILES[name]
    path = make(tmp_path)
    refused(lambda: read_clip(path), tmp_path, *parts)


def test_truncated_gif_is_refused(tmp_path):
    path = tmp_path / "a.gif"
    pictures = [Image.fromarray(f) for f in NOISE]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50)
    assert read_clip(path).num_frames == 20
    cut(path, 0.6)
    refused(lambda: read_clip(path), tmp_path, "truncated")


ARGUMENTS = {
    "too many frames": (dict(num_frames=21), ["has 20 frames", "21 are needed"]),
    "too many after start": (
        dict(num_frames=14, start=10),
        ["has 10 frames from frame 10 on", "20 in all", "14 are needed"],
    ),
    "too many at this stride": (
        dict(num_frames=14, stride=3),
        ["has 7 frames at stride 3", "14 are needed"],
    ),
    "start past the end": (dict(start=20), ["has 0 frames from frame 20 on"]),
    "start on the last frame": (dict(start=19), ["has 1 frame from frame 19 on", "2 are needed"]),
    "negative start": (dict(start=-1), ["start is -1", "at least 0"]),
    "start in seconds": (dict(start=1.5), ["start is 1.5", "whole number"]),
    "stride zero": (dict(stride=0), ["stride is 0", "at least 1"]),
    "stride far too long": (dict(stride=10**9), ["at stride 1000000000", "2 are needed"]),
    "one frame asked": (dict(num_frames=1), ["num_frames is 1", "at least 2"]),
    "frames as text": (dict(num_frames="14"), ["num_frames is '14'", "whole number"]),
    "fps zero": (dict(fps=0), ["fps is 0"]),
    "fps as text": (dict(fps="24"), ["fps is '24'", "number"]),
    "fps nan": (dict(fps=float("nan")), ["fps is nan"]),
    "fps absurd": (dict(fps=1e6), ["fps is", "at most 1000"]),
    "size one number": (dict(size=512), ["size is 512", "(height, width)"]),
    "size zero": (dict(size=(0, 64)), ["size is 0"]),
    "no pixels": (dict(max_pixels=0), ["max_pixels is 0"]),
    "size twice": (dict(max_pixels=99, size=(8, 8)), ["max_pixels or size"]),
    "more memory than there is": (dict(size=(60000, 80000)), ["GiB", "max_pixels"]),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_bad_argument_is_refused_before_decoding(tmp_path, monkeypatch, name):
    path = encode(tmp_path / "a.mp4")
    options, parts = ARGUMENTS[name]

    def decoded(*_):
        raise AssertionError("decoding began")

    monkeypatch.setattr(read.decode, "frames_at", decoded)
    refused(lambda: read_clip(path, **options), tmp_path, *parts)


VIDEO = NOISE[:4]
NANS = np.full((2, 8, 8, 3), np.nan, np.float32)
WRITES = {
    "existing file": (lambda d: write_video(d / "old.mp4", VIDEO, 24), ["exists", "overwrite"]),
    "existing picture": (lambda d: write_png(d / "old.png", PICTURE), ["exists", "overwrite"]),
    "no folder": (lambda d: write_video(d / "no" / "a.mp4", VIDEO, 24), ["does not exist"]),
    "a folder": (lambda d: write_video(d / "d.mp4", VIDEO, 24, overwrite=True), ["is a folder"]),
    "other container": (lambda d: write_video(d / "a.avi", VIDEO, 24), [".mp4"]),
    "picture as jpg": (lambda d: write_png(d / "a.jpg", PICTURE), [".png"]),
    "rgba": (lambda d: write_video(d / "a.mp4", np.zeros((2, 8, 8, 4)), 24), ["(2, 8, 8, 4)"]),
    "no frames": (lambda d: write_video(d / "a.mp4", VIDEO[:0], 24), ["(0, 48, 64, 3)"]),
    "one picture": (lambda d: write_png(d / "a.png", VIDEO), ["(4, 48, 64, 3)"]),
    "nan": (lambda d: write_video(d / "a.mp4", NANS, 24), ["NaN"]),
    "int32": (lambda d: write_video(d / "a.mp4", VIDEO.astype(np.int32), 24), ["int32"]),
    "fps": (lambda d: write_video(d / "a.mp4", VIDEO, -1), ["fps is -1"]),
    "quality": (lambda d: write_video(d / "a.mp4", VIDEO, 24, quality=99), ["quality is 99"]),
    "audio shape": (
        lambda d: write_video(d / "a.mp4", VIDEO, 24, Audio(np.zeros(99, np.float32), 16000)),
        ["audio samples", "(99,)"],
    ),
    "audio nan": (
        lambda d: write_video(d / "a.mp4", VIDEO, 24, Audio(np.full((99, 1), np.nan), 16000)),
        ["audio contains NaN"],
    ),
    "nothing beside": (lambda d: side_by_side([]), ["no videos"]),
    "heights differ": (lambda d: side_by_side([VIDEO, VIDEO[:, :40]]), ["(4, 40)", "(4, 48)"]),
    "lengths differ": (lambda d: side_by_side([VIDEO, VIDEO[:3]]), ["(3, 48)", "(4, 48)"]),
}


@pytest.mark.parametrize("name", WRITES)
def test_bad_write_is_refused_and_leaves_nothing(tmp_path, name):
    (tmp_path / "d.mp4").mkdir()
    for old in ("old.mp4", "old.png"):
        (tmp_path / old).write_bytes(b"precious")
    call, parts = WRITES[name]
    refused(lambda: call(tmp_path), tmp_path, *parts)


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("limit", [0, 2000, 20000])
def test_write_that_really_fails_leaves_nothing(tmp_path, limit, exists):
    """The kernel refuses to let the file grow past `limit` bytes: a true failing write."""
    if exists:
        (tmp_path / "a.mp4").write_bytes(b"precious")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    frames = np.random.default_rng(2).integers(0, 256, (12, 96, 128, 3), dtype=np.uint8)
    before = snapshot(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(InputError) as caught:
            write_video(tmp_path / "a.mp4", frames, 24, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "was not written" in str(caught.value) and "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full_says_so(tmp_path, number):
    def write():
        with atomic(tmp_path / "a.mp4") as temporary:
            temporary.write_bytes(b"half of it")
            raise OSError(number, os.strerror(number))

    refused(write, tmp_path, "disk is full", "a.mp4")


def test_interrupt_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "a.mp4") as temporary:
        temporary.write_bytes(b"half of it")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_file_that_appears_meanwhile_is_kept(tmp_path):
    def write():
        with atomic(tmp_path / "a.mp4") as temporary:
            temporary.write_bytes(b"mine")
            (tmp_path / "a.mp4").write_bytes(b"theirs")

    with pytest.raises(InputError, match="exists"):
        write()
    assert snapshot(tmp_path) == {tmp_path / "a.mp4": b"theirs"}


VALUES = {
    "no path": (lambda: read_clip(None), ["path is None"]),
    "empty path": (lambda: read_clip(""), ["path is ''"]),
    "clip shape": (lambda: Clip(np.zeros((4, 8, 8)), 24), ["(4, 8, 8)", "[T, H, W, 3]"]),
    "clip fps": (lambda: Clip(np.zeros((4, 8, 8, 3)), 0), ["fps is 0"]),
    "rate": (lambda: exact_rate(float("inf")), ["fps is inf"]),
    "size": (lambda: fit_size(0, 10, short_side=64), ["height is 0"]),
    "fraction": (lambda: fit_size(48, 10.5, short_side=64), ["width is 10.5"]),
    "neither": (lambda: fit_size(48, 64), ["short_side or area"]),
    "both": (lambda: fit_size(48, 64, short_side=64, area=99), ["short_side or area"]),
    "squash": (lambda: resize(NOISE, (48, 48)), ["squash", "resize_to_cover_and_crop"]),
    "depth size": (lambda: resize_depth(np.zeros((9, 9)), cover((48, 64), (8, 8))), ["depth is"]),
    "frame size": (lambda: apply_fit(NOISE, cover((9, 9), (8, 8))), ["48x64", "9x9"]),
    "asset": (lambda: asset_path("clip/parrot.mp4"), ["clip/parrot.mp4", "clip/cockatoo.mp4"]),
    "asset outside": (lambda: asset_path("../errors.py"), ["no shipped file"]),
}


@pytest.mark.parametrize("name", VALUES)
def test_bad_value_is_refused(tmp_path, name):
    call, parts = VALUES[name]
    refused(call, tmp_path, *parts)
