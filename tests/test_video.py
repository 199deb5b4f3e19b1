"""Videos in: what phones, editors and the web produce must come in upright and unsquashed.

Every file is made here with PyAV, and the expected pixels and times are those that went in.
"""

import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from video_files import corners, encode, grays, numbers, quadrants

from recapture_jax.video import decode
from recapture_jax.video.read import read_clip
from recapture_jax.video.resize import (
    fit_size,
    resize_to_cover_and_crop,
    undo_fit,
)


@pytest.mark.parametrize(
    "name, codec, fmt, rate",
    [
        ("a.mp4", "libx264", "yuv420p", Fraction(30000, 1001)),
        ("a.mov", "libx264", "yuv420p", Fraction(24000, 1001)),
        ("a.webm", "libvpx-vp9", "yuv420p", Fraction(30000, 1001)),
        ("a.avi", "mpeg4", "yuv420p", 25),
        ("a.gif", "gif", "gray", 10),
    ],
)
def test_containers_give_every_frame_once_at_the_exact_rate(tmp_path, name, codec, fmt, rate):
    frames = grays(12)
    if name == "a.gif":
        frames, src = [f[..., 0] for f in frames], "gray"
    else:
        src = "rgb24"
    path = encode(tmp_path / name, frames, codec, fmt, rate, src=src)
    clip = read_clip(path)
    assert numbers(clip) == list(range(12))
    assert clip.rate == rate and clip.duration == float(12 / Fraction(rate))
    assert clip.frames.dtype == np.float32 and clip.frames.shape == (12, 48, 64, 3)
    assert clip.audio is None


def test_start_stride_and_count_choose_frames_and_keep_real_time(tmp_path):
    path = encode(tmp_path / "a.mp4", grays(20), rate=24)
    clip = read_clip(path, num_frames=5, start=3, stride=2)
    assert numbers(clip) == [3, 5, 7, 9, 11]
    assert clip.fps == 12  # every second frame at half the rate: the same speed as filmed
    assert numbers(read_clip(path, start=16)) == [16, 17, 18, 19]


def test_variable_frame_rate_becomes_constant_by_timestamps(tmp_path):
    """30 fps with frames dropped by a phone: the gaps are filled by holding, duration stays."""
    ticks = [0, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 17]
    base = Fraction(1, 90000)
    pts = [t * 3000 + (37 * k) % 100 for k, t in enumerate(ticks)]  # with capture jitter
    path = encode(tmp_path / "v.mp4", grays(12), rate=30, pts=pts, time_base=base)
    clip = read_clip(path)
    expected = [max(k for k, t in enumerate(ticks) if t <= tick) for tick in range(18)]
    assert clip.rate == 30
    assert numbers(clip) == expected
    assert clip.duration == pytest.approx(18 / 30, abs=1e-9)


def test_gif_with_its_own_delay_per_frame(tmp_path):
    pictures = [Image.fromarray(f[..., 0]) for f in grays(4)]
    path = tmp_path / "a.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 300, 100, 500])
    clip = read_clip(path)
    assert numbers(clip) == [0, 1, 1, 1, 2, 3, 3, 3, 3, 3]
    assert clip.fps == 10 and clip.duration == 1.0


def test_asked_rate_resamples_and_keeps_the_duration(tmp_path):
    path = encode(tmp_path / "a.mp4", grays(20), rate=20)
    slow, fast = read_clip(path, fps=10), read_clip(path, fps=40)
    assert numbers(fast) == [k // 2 for k in range(40)]
    assert len(slow.frames) == 10 and np.all(np.diff(numbers(slow)) == 2)
    assert slow.duration == fast.duration == 1.0


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_phone_rotation_is_applied(tmp_path, degrees):
    """set_display_rotation turns counter-clockwise; numpy's rot90 is the oracle."""
    image = quadrants()
    path = encode(tmp_path / "p.mp4", [image] * 3, rotation=degrees)
    clip = read_clip(path)
    upright = np.rot90(image, degrees // 90 % 4)
    assert clip.frames.shape[1:3] == upright.shape[:2]
    np.testing.assert_allclose(corners(clip.frames[1]), corners(upright / 255.0), atol=6)


def test_mirrored_selfie_is_unmirrored_as_the_file_says(tmp_path):
    path = encode(tmp_path / "m.mp4", [quadrants()] * 3)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44  # 3x3 matrix of the track header; entry a
    assert data[at : at + 4] == (1 << 16).to_bytes(4, "big")
    data[at : at + 4] = (-(1 << 16)).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    clip = read_clip(path)
    expected = corners(quadrants()[:, ::-1] / 255.0)
    np.testing.assert_allclose(corners(clip.frames[0]), expected, atol=6)


def test_portrait_clip_a_circle_stays_a_circle(tmp_path):
    """Filmed upright on a phone (stored sideways), odd target: both radii must agree."""
    height, width, radius = 480, 270, 80.0
    y, x = np.mgrid[:height, :width] + 0.5
    disc = (np.hypot(x - width / 2, y - height / 2) < radius) * np.uint8(255)
    stored = np.rot90(np.repeat(disc[..., None], 3, -1), -1)
    path = encode(tmp_path / "portrait.mp4", [stored] * 2, rotation=90)
    clip = read_clip(path)
    assert clip.size == (height, width)
    size = fit_size(*clip.size, short_side=256, multiple=64)
    frames, fit = resize_to_cover_and_crop(clip.frames, size)
    assert size == (448, 256) and frames.shape == (2, 448, 256, 3)
    for image, scale in ((frames[0], fit.scale), (undo_fit(frames, fit)[0], 1.0)):
        tall, wide = image[:, image.shape[1] // 2, 0].sum(), image[image.shape[0] // 2, :, 0].sum()
        assert tall == pytest.approx(2 * radius * scale, abs=0.6)
        assert wide == pytest.approx(2 * radius * scale, abs=0.6)


def test_non_square_pixels_become_square(tmp_path):
    path = encode(tmp_path / "dv.mp4", [quadrants()] * 2, aspect=Fraction(4, 3))
    clip = read_clip(path)
    assert clip.size == (64, 128)
    np.testing.assert_allclose(corners(clip.frames[0]), corners(quadrants() / 255.0), atol=6)


@pytest.mark.parametrize("codec, fmt", [("libx264", "yuv420p10le"), ("prores_ks", "yuv422p10le")])
def test_ten_bit_keeps_more_than_eight_bits(tmp_path, codec, fmt):
    """A shallow ramp spans 20 levels of 8 bits; ten bits must resolve about four times as many."""
    ramp = np.linspace(0.40, 0.48, 256)
    rgb = np.broadcast_to(ramp[None, :, None], (64, 256, 3))
    frames = [np.round(rgb * 65535).astype(np.uint16)] * 2
    path = encode(tmp_path / "t.mov", frames, codec, fmt, src="rgb48le", options={"crf": "0"})
    row = read_clip(path).frames[0, 32].mean(-1)
    assert np.abs(row - ramp).max() < 0.004
    assert len(np.unique(row)) > 50


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("fmt, bits", [("yuv420p", 8), ("yuv420p10le", 10)])
def test_black_gray_white_come_out_exact(tmp_path, fmt, bits, full):
    """Limited and full range, from raw planes: level y = 16 + 219 v, or 255 v, in 8 bits."""
    levels = [0.0, 0.25, 0.5, 1.0]
    path = tmp_path / "g.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, fmt
        stream.codec_context.color_range = 2 if full else 1
        for k, v in enumerate(levels):
            frame = av.VideoFrame(64, 48, fmt)
            frame.pts, frame.time_base = k, Fraction(1, 24)
            frame.color_range = 2 if full else 1
            y = v * (2**bits - 1) if full else (16 + 219 * v) * 2 ** (bits - 8)
            kind = np.uint8 if bits == 8 else np.uint16
            for plane, value in zip(
                frame.planes, (y, 2 ** (bits - 1), 2 ** (bits - 1)), strict=True
            ):
                count = plane.buffer_size // kind().itemsize
                plane.update(np.full(count, round(value), kind).tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = read_clip(path)
    expected = np.float32(levels)[:, None, None, None]
    # half a code value from the encoder's rounding, half from ours
    np.testing.assert_allclose(
        clip.frames, np.broadcast_to(expected, clip.frames.shape), atol=0.004
    )


@pytest.mark.parametrize("tag, kr, kb", [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (2, 0.299, 0.114)])
def test_colour_matrix_follows_the_tag(tmp_path, tag, kr, kb):
    """Untagged (2) small video is BT.601; planes are computed here from the definition."""
    rgb = np.array([0.8, 0.3, 0.2])
    luma = kr * rgb[0] + (1 - kr - kb) * rgb[1] + kb * rgb[2]
    planes = (
        16 + 219 * luma,
        128 + 112 * (rgb[2] - luma) / (1 - kb),
        128 + 112 * (rgb[0] - luma) / (1 - kr),
    )
    path = tmp_path / "c.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.codec_context.colorspace = tag
        for k in range(2):
            frame = av.VideoFrame(64, 48, "yuv444p")
            frame.pts, frame.time_base, frame.colorspace = k, Fraction(1, 24), tag
            for plane, value in zip(frame.planes, planes, strict=True):
                plane.update(np.full(plane.buffer_size, round(value), np.uint8).tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    pixel = read_clip(path).frames[0, 20, 30]
    np.testing.assert_allclose(pixel, rgb, atol=2.0 / 255)


@pytest.mark.parametrize(
    "codec, fmt, name", [("png", "rgba", "a.mov"), ("ffv1", "yuva444p", "a.mkv")]
)
def test_alpha_is_composited_on_white(tmp_path, codec, fmt, name):
    rgba = np.zeros((48, 64, 4), np.uint8)
    rgba[..., 0], rgba[:, :32, 3], rgba[:, 32:, 3] = 200, 255, 51  # opaque red, then 20 % red
    path = encode(tmp_path / name, [rgba] * 2, codec, fmt, src="rgba")
    frame = read_clip(path).frames[0]
    np.testing.assert_allclose(frame[24, 8], [200 / 255, 0, 0], atol=0.012)
    expected = np.array([200 / 255, 0, 0]) * 0.2 + 0.8
    np.testing.assert_allclose(frame[24, 56], expected, atol=0.012)


def test_grayscale_and_odd_sizes(tmp_path):
    ramp = np.tile(np.linspace(20, 230, 77).round().astype(np.uint8), (51, 1))
    path = encode(tmp_path / "g.mkv", [ramp] * 3, "ffv1", "gray", src="gray")
    clip = read_clip(path)
    assert clip.size == (51, 77)
    np.testing.assert_allclose(clip.frames[0] * 255, np.repeat(ramp[..., None], 3, -1), atol=1)


def test_hdr_tone_mapping_places_white_gray_and_highlights():
    """BT.2408: HLG 75 % and PQ 58 % are both diffuse white at 203 cd/m2 and must agree."""
    gray = lambda v: np.full((1, 1, 3), v, np.float32)  # noqa: E731
    hlg, pq = decode.tone_map(gray(0.75), True, 9), decode.tone_map(gray(0.5807), False, 9)
    np.testing.assert_allclose(hlg, pq, atol=0.004)
    linear_white = ((hlg[0, 0, 0] + 0.055) / 1.055) ** 2.4
    assert linear_white == pytest.approx(0.8 + 0.2 * 0.1 / 0.3, abs=0.003)
    ramp = decode.tone_map(np.repeat(np.linspace(0, 1, 64)[:, None], 3, 1)[None], True, 9)[0]
    assert np.all(np.diff(ramp[:, 0]) > 0) and ramp[0, 0] == 0 and ramp[-1, 0] <= 1
    np.testing.assert_allclose(ramp, np.repeat(ramp[:, :1], 3, 1), atol=2e-4)  # gray stays gray


def test_hdr_file_is_tone_mapped(tmp_path):
    rgb = np.full((48, 64, 3), round(0.75 * 65535), np.uint16)
    tags = dict(color_trc=18, color_primaries=9, colorspace=9)
    path = encode(tmp_path / "h.mov", [rgb] * 2, "libx264", "yuv420p10le", src="rgb48le", tags=tags)
    expected = decode.tone_map(np.full((1, 1, 3), 0.75), True, 9)[0, 0]
    np.testing.assert_allclose(read_clip(path).frames[0, 24, 32], expected, atol=0.01)


def test_big_frames_are_shrunk_while_decoding(tmp_path):
    """3 frames of 4K are 300 MB as floats; reading them small must stay far below that."""
    frames = [np.full((2160, 3840, 3), 10 * k + 5, np.uint8) for k in range(3)]
    path = encode(tmp_path / "4k.mp4", frames, options={"preset": "ultrafast"})
    del frames
    tracemalloc.start()
    clip = read_clip(path, max_pixels=640 * 360)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert clip.size == (360, 640) and numbers(clip) == list(range(3))
    assert peak < 120e6, f"peak {peak / 1e6:.0f} MB"


@pytest.mark.parametrize("size", [(32, 32), (480, 640)])
def test_cover_art_is_not_the_video(tmp_path, size):
    """An attached picture, also one that is larger than the video; the sound begins with the video."""
    path = tmp_path / "c.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        art = container.add_stream("mjpeg", rate=25)
        art.height, art.width, art.pix_fmt = *size, "yuvj420p"
        art.disposition = av.stream.Disposition.attached_pic
        for stream, frames in ((art, [np.full((*size, 3), 200, np.uint8)]), (video, grays(4))):
            for k, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame = frame.reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = k, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    clip = read_clip(path)
    assert clip.size == (48, 64) and numbers(clip) == list(range(4))


def test_shrinking_is_antialiased(tmp_path):
    """One-pixel stripes shrunk by 4 must become gray, not moire."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    path = encode(tmp_path / "s.mkv", [stripes] * 2, "ffv1", "bgr0")
    frame = read_clip(path, size=(64, 64)).frames[0]
    assert np.abs(frame[8:-8, 8:-8] - 0.5).max() < 0.02


def test_folder_of_images_in_natural_order_with_exif_alpha_and_gray(tmp_path):
    for k in (10, 2, 1):  # alphabetical order would put 10 before 2
        Image.fromarray(np.full((20, 30, 3), k, np.uint8)).save(tmp_path / f"frame{k}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    clip = read_clip(tmp_path)
    assert (clip.frames[:, 0, 0, 0] * 255).round().tolist() == [1, 2, 10] and clip.fps == 24
    assert read_clip(tmp_path, fps=10, num_frames=2).duration == 0.2

    other = tmp_path / "other"
    other.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90 degrees clockwise to show"
    Image.fromarray(quadrants()).save(other / "1.jpg", exif=exif, quality=95)
    rgba = np.zeros((96, 64, 4), np.uint8)
    Image.fromarray(rgba).save(other / "2.png")  # fully transparent
    Image.fromarray(np.full((96, 64), 128, np.uint8)).save(other / "3.png")
    Image.fromarray(np.full((96, 64), 32768, np.uint16)).save(other / "4.png")
    frames = read_clip(other).frames
    np.testing.assert_allclose(
        corners(frames[0]), corners(np.rot90(quadrants(), -1) / 255.0), atol=8
    )
    assert np.all(frames[1] == 1)
    np.testing.assert_allclose(frames[2:], 0.502, atol=0.002)
