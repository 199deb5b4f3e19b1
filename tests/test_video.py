"""Videos in and out: what phones, editors and the web produce must come in upright and unsquashed.

Every file is made here with PyAV, and the expected pixels, times and sounds are those that went in.
"""

import hashlib
import math
import re
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from recapture_jax.assets import asset_path
from recapture_jax.video import decode
from recapture_jax.video.clip import Audio, Clip, exact_rate
from recapture_jax.video.read import read_clip
from recapture_jax.video.resize import (
    apply_fit,
    cover,
    fit_size,
    resize,
    resize_depth,
    resize_to_cover_and_crop,
    undo_fit,
)
from recapture_jax.video.write import picture_size, side_by_side, write_png, write_video


def encode(path, frames, codec="libx264", fmt="yuv420p", rate=24, pts=None, src="rgb24", **more):
    """Writes raw arrays with PyAV alone, so that the reader is not tested with our own writer."""
    time_base = more.get("time_base", 1 / Fraction(rate))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate), options=more.get("options", {}))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = fmt
        stream.codec_context.time_base = time_base
        if "rotation" in more:
            stream.set_display_rotation(more["rotation"])
        if "aspect" in more:
            stream.codec_context.sample_aspect_ratio = more["aspect"]
        for name, value in more.get("tags", {}).items():
            setattr(stream.codec_context, name, value)
        for k, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=src)
            frame.pts, frame.time_base = k if pts is None else pts[k], time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def grays(count, height=48, width=64):
    """Frame k is uniformly gray of level 10 k + 5, so a decoded frame tells its own number."""
    return [np.full((height, width, 3), 10 * k + 5, np.uint8) for k in range(count)]


def numbers(clip):
    return np.round((np.asarray(clip.frames).mean((1, 2, 3)) * 255 - 5) / 10).astype(int).tolist()


def quadrants(height=64, width=96):
    """Red, green / blue, gray-dark: every rotation and flip looks different."""
    image = np.zeros((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    image[:h, :w], image[:h, w:] = (220, 30, 30), (30, 220, 30)
    image[h:, :w], image[h:, w:] = (30, 30, 220), (60, 60, 60)
    return image


def corners(frame):
    """Centres of the four quadrants, [2, 2, 3] in 0..255."""
    h, w = frame.shape[:2]
    return frame[h // 4 :: h // 2, w // 4 :: w // 2][:2, :2] * 255


def gray_wave(time, height=64, width=96):
    y, x = np.mgrid[:height, :width]
    gray = 128 + 60 * np.sin(x / 9 + time / 3) * np.cos(y / 11)
    return np.repeat(gray[..., None], 3, -1).round().astype(np.uint8)


def psnr(a, b):
    return -10 * math.log10(np.mean((np.asarray(a, np.float64) - b) ** 2))


# --- reading ---------------------------------------------------------------------------------


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


# --- sound -----------------------------------------------------------------------------------


def tone(seconds, rate=48000, hz=440.0, channels=1):
    t = np.arange(round(seconds * rate)) / rate
    chirp = 0.5 * np.sin(2 * np.pi * (hz * t + 200 * t * t))  # a chirp pins down the lag
    return Audio(np.repeat(chirp[:, None], channels, 1).astype(np.float32), rate)


def lag(heard, sent):
    """Samples by which `heard` is late, from the peak of the cross-correlation."""
    n = 1 << (len(heard) + len(sent)).bit_length()
    spectrum = np.fft.rfft(heard, n) * np.conj(np.fft.rfft(sent, n))
    k = int(np.argmax(np.fft.irfft(spectrum, n)))
    return k if k < n // 2 else k - n


@pytest.mark.parametrize("rate, channels", [(48000, 1), (44100, 2), (37800, 1)])
def test_sound_survives_in_time_and_is_cut_to_the_picture(tmp_path, rate, channels):
    frames = np.stack(grays(24))
    sent = tone(3.0, rate, channels=channels)
    path = write_video(tmp_path / "a.mp4", frames, 24, sent)
    heard = read_clip(path).audio
    assert heard.duration == pytest.approx(1.0, abs=1e-3)
    assert heard.samples.shape[1] == channels
    out_rate = 48000 if rate == 37800 else rate
    assert heard.rate == out_rate
    reference = tone(1.0, out_rate).samples[:, 0]
    assert abs(lag(heard.samples[:, 0], reference)) <= 1
    assert np.abs(heard.samples[2000:-2000, 0] - reference[2000:-2000]).max() < 0.05
    with av.open(str(path)) as container:
        assert container.duration == 1_000_000  # microseconds: not a frame longer


def test_sound_follows_start_and_stride(tmp_path):
    sent = tone(2.0)
    path = write_video(tmp_path / "a.mp4", np.stack(grays(24)), 12, sent)
    heard = read_clip(path, num_frames=4, start=6, stride=2).audio
    assert heard.duration == pytest.approx(8 / 12, abs=1e-3)
    a = 48000 // 2
    assert abs(lag(heard.samples[:, 0], sent.samples[a : a + 32000, 0])) <= 1
    assert read_clip(path, with_audio=False).audio is None


def test_sound_that_starts_late_stays_late(tmp_path):
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=24)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for k, pixels in enumerate(grays(24)):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 24)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        data = np.full((1, 4000), 16384, np.int16)
        frame = av.AudioFrame.from_ndarray(data, "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 8000, Fraction(1, 16000)
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    samples = read_clip(path).audio.samples[:, 0]
    assert len(samples) == 16000
    assert np.all(samples[:7900] == 0) and np.all(samples[12100:] == 0)
    np.testing.assert_allclose(samples[8100:11900], 0.5, atol=1e-4)


# --- writing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24000, 1001), 25, 12.5, 60])
def test_written_rate_and_duration_are_exact(tmp_path, rate):
    path = write_video(tmp_path / "a.mp4", np.stack(grays(7)), float(rate))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(rate) == exact_rate(float(rate))
        assert stream.frames == 7
        assert stream.duration * stream.time_base == 7 / Fraction(rate)
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # starts playing before it is all there


def test_round_trip_keeps_pixels_and_colours(tmp_path):
    rng = np.random.default_rng(0)
    patches = rng.uniform(0, 1, (4, 6, 3)).repeat(16, 0).repeat(16, 1).astype(np.float32)
    back = read_clip(write_video(tmp_path / "c.mp4", np.stack([patches] * 3), 24, quality=4))
    inner = np.zeros((64, 96), bool)
    for i in range(4):
        for j in range(6):
            inner[16 * i + 4 : 16 * i + 12, 16 * j + 4 : 16 * j + 12] = True
    difference = (back.frames[1] - patches)[inner]
    assert np.abs(difference).max() < 4 / 255
    assert np.abs(difference.mean(0)).max() < 0.5 / 255  # no tint


def test_odd_sizes_are_padded_by_the_edge_and_recorded(tmp_path):
    frames = np.stack([gray_wave(k, 51, 77) for k in range(3)])
    path = write_video(tmp_path / "odd.mp4", frames, 24, quality=4)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (52, 78)
        raw = next(container.decode(stream)).to_ndarray(format="rgb24")
    assert picture_size(path) == (51, 77)
    assert np.abs(raw[:51, :77].astype(int) - frames[0]).max() < 8  # top left, not rescaled
    assert np.abs(raw[51, :77].astype(int) - frames[0][50]).max() < 8
    assert picture_size(write_video(tmp_path / "even.mp4", frames[:, :50, :76], 24)) is None


def test_writer_accepts_masks_gray_uint8_and_floats(tmp_path):
    mask = np.zeros((3, 32, 48), bool)
    mask[:, 8:24] = True
    back = read_clip(write_video(tmp_path / "mask.mp4", mask, 10)).frames
    np.testing.assert_allclose(back[:, 12:20], 1, atol=0.02)
    np.testing.assert_allclose(back[:, :4], 0, atol=0.02)
    wide = np.full((2, 32, 48, 3), 1.7, np.float32)  # a sampler's overshoot is clipped
    assert read_clip(write_video(tmp_path / "w.mp4", wide, 10)).frames.min() > 0.99


def test_pictures_and_side_by_side(tmp_path):
    image = gray_wave(0)
    assert np.array_equal(np.asarray(Image.open(write_png(tmp_path / "a.png", image))), image)
    a, b = np.zeros((2, 8, 10, 3), np.uint8), np.full((2, 8, 6, 3), 0.5, np.float32)
    joined = side_by_side([a, b], separator=2)
    assert joined.shape == (2, 8, 18, 3)
    assert joined[..., :10, :].max() == 0 and joined[..., 10:12, :].min() == 255
    assert np.all(joined[..., 12:, :] == 128)
    assert side_by_side([a]).shape == a.shape


def test_overwrite_replaces_whole_files_only_when_asked(tmp_path):
    path = write_video(tmp_path / "a.mp4", np.stack(grays(4)), 24)
    write_video(path, np.stack(grays(6)), 24, overwrite=True)
    assert read_clip(path).num_frames == 6
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


# --- sizes -----------------------------------------------------------------------------------


def loop_best(height, width, short_side, multiple):
    """Slow oracle: of all long edges, the one whose crop keeps the largest share."""
    short = max(multiple, math.floor(short_side / multiple + 0.5) * multiple)
    best = None
    for long in range(multiple, 4096, multiple):
        h, w = (short, long) if height <= width else (long, short)
        scale = max(h / height, w / width)
        kept = (h / scale) * (w / scale) / (height * width)
        if best is None or kept > best[0] + 1e-9:
            best = (kept, (h, w))
    return best[1]


@pytest.mark.parametrize("multiple", [8, 64])
@pytest.mark.parametrize(
    "size", [(1080, 1920), (1920, 1080), (480, 640), (1000, 1000), (817, 1936), (2160, 3840)]
)
def test_fit_size_crops_least(size, multiple):
    for short_side in (256, 320, 576):
        assert fit_size(*size, short_side=short_side, multiple=multiple) == loop_best(
            *size, short_side, multiple
        )


@pytest.mark.parametrize("size", [(1080, 1920), (1920, 1080), (480, 640), (999, 1001)])
def test_fit_size_by_area(size):
    height, width = fit_size(*size, area=576 * 1024, multiple=64)
    assert height % 64 == 0 and width % 64 == 0
    assert 0.75 <= height * width / (576 * 1024) <= 1.34
    assert cover(size, (height, width)).kept > 0.93
    assert (height > width) == (size[0] > size[1]) or height == width
    assert fit_size(1080, 1920, area=576 * 1024, multiple=64) == (576, 1024)


def test_cover_reprojects_with_its_intrinsics():
    """A dot drawn where the source camera sees a point is found where the new camera sees it."""
    source = np.array([[310.0, 0, 163.0], [0, 310.0, 88.0], [0, 0, 1]])
    point = np.array([0.21, -0.09, 1.4])
    u, v, _ = source @ point / point[2]
    y, x = np.mgrid[:181, :321] + 0.5
    blob = np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 5.0**2))
    image = np.repeat(blob[None, ..., None], 3, -1).astype(np.float32)
    for size in ((96, 128), (256, 256), (90, 160)):
        out, fit = resize_to_cover_and_crop(image, size)
        k = fit.intrinsics(source)
        expected = (k @ point / point[2])[:2]
        weight = out[0, ..., 0]
        yy, xx = np.mgrid[: size[0], : size[1]] + 0.5
        found = np.array([(weight * xx).sum(), (weight * yy).sum()]) / weight.sum()
        np.testing.assert_allclose(found, expected, atol=0.02)
        assert k[0, 0] == pytest.approx(k[1, 1])  # one factor: never squashed


def test_depth_follows_the_frames_without_blending():
    depth = np.where(np.mgrid[:90, :160][1] < 80, 1.0, 9.0).astype(np.float32)[None]
    fit = cover((90, 160), (64, 64))
    small = resize_depth(depth, fit)
    assert small.shape == (1, 64, 64) and set(np.unique(small)) == {1.0, 9.0}
    frames = apply_fit(np.repeat(depth[..., None] / 9, 3, -1), fit)
    assert np.array_equal(small > 5, frames[..., 0] > 5 / 9)  # the edge is on the same column
    identity = cover((90, 160), (90, 160))
    assert np.array_equal(resize_depth(depth, identity), depth)
    assert resize_depth(depth > 5, fit).dtype == bool


@pytest.mark.parametrize("source, size", [((90, 160), (64, 128)), ((121, 67), (256, 128))])
def test_undo_fit_returns_to_the_source_pixels(source, size):
    y, x = (np.mgrid[: source[0], : source[1]] + 0.5) / 160
    image = (0.5 + 0.3 * np.sin(9 * x + 1) * np.cos(7 * y)).astype(np.float32)
    image = np.repeat(image[None, ..., None], 3, -1)
    fit = cover(source, size)
    back = undo_fit(apply_fit(image, fit), fit)
    assert back.shape == image.shape
    left, top, right, bottom = fit.box
    inside = np.s_[:, math.ceil(top) + 2 : int(bottom) - 2, math.ceil(left) + 2 : int(right) - 2]
    assert np.abs(back[inside] - image[inside]).max() < 0.003
    assert psnr(back, image) > 25  # the cropped strips repeat the edge


def test_resize_is_exact_where_it_can_be():
    ramp = np.repeat(np.linspace(0.1, 0.9, 64)[None, :, None], 3, -1).astype(np.float32)
    image = np.repeat(ramp, 32, 0)
    half = resize(image, (16, 32))
    expected = image.reshape(16, 2, 32, 2, 3).mean((1, 3))  # a ramp's bicubic is its mean
    np.testing.assert_allclose(half[:, 4:-4], expected[:, 4:-4], atol=1e-5)
    assert resize(image, (32, 64)) is not None and np.array_equal(resize(image, (32, 64)), image)


# --- the types and the shipped clip ------------------------------------------------------------


def test_exact_rate_recovers_broadcast_rates():
    for rate in (Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120)):
        assert exact_rate(float(rate)) == rate
    clip = Clip(np.zeros((30, 4, 4, 3), np.float32), 30000 / 1001)
    assert clip.rate == Fraction(30000, 1001) and clip.duration == pytest.approx(1.001)


def test_shipped_clip_is_the_documented_file():
    path = asset_path("clip/cockatoo.mp4")
    data = path.read_bytes()
    readme = asset_path("clip/README.md").read_text()
    assert re.search(r"\| sha256 \| `(\w+)`", readme)[1] == hashlib.sha256(data).hexdigest()
    assert len(data) < 400_000
    clip = read_clip(path)
    assert clip.frames.shape == (25, 360, 640, 3) and clip.rate == 20
    moved = np.abs(np.diff(clip.frames, axis=0)).mean((1, 2, 3))
    assert moved.min() > 0.002, "no frozen frames"
