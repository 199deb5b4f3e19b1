"""Clips as phones, editors and the web write them, made with PyAV alone."""

import math
from fractions import Fraction

import av
import numpy as np

from recapture_jax.video.clip import Audio


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
