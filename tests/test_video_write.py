"""Videos out, and sound in both directions."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from video_files import gray_wave, grays, lag, tone

from recapture_jax.video.clip import exact_rate
from recapture_jax.video.read import read_clip
from recapture_jax.video.write import picture_size, side_by_side, write_png, write_video


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
