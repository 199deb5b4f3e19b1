"""PyAV decoding behind `read_clip`: timing, orientation, colour and sound of one video file.

Everything that phones and editors hide in a file is undone here: display rotation and flips,
non-square pixels, variable frame rate, more than 8 bits, alpha, HDR transfer curves.
"""

import contextlib
import dataclasses
import logging
import math
import statistics
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

from recapture_jax.errors import InputError
from recapture_jax.video import metadata
from recapture_jax.video.clip import Audio, exact_rate
from recapture_jax.video.resize import as_float, resample

_STANDARD_RATES = [Fraction(n * 1000, 1001) for n in (24, 30, 60, 120)] + [
    Fraction(n) for n in (10, 12, 15, 20, 24, 25, 30, 48, 50, 60, 100, 120)
]
_MATRIX_UNSPECIFIED = 2
_ATTACHED_PICTURE = 0x400  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC
_TRANSFER_PQ, _TRANSFER_HLG, _PRIMARIES_BT2020 = 16, 18, 9


@dataclasses.dataclass(frozen=True)
class Probe:
    """What the packets of a file say, before any frame is decoded.

    Attributes:
      fps: the file's own constant rate, or the typical rate when its frames vary.
      num_frames: frames at `fps` over the file's duration.
      size: (height, width) as displayed: upright and with square pixels.
      focal_35mm: focal length in 35 mm equivalents, millimetres, if its tags say.
    """

    fps: Fraction
    num_frames: int
    size: tuple[int, int]
    focal_35mm: float | None = None


@contextlib.contextmanager
def readable(path):
    """Turns every failure of the demuxer or a decoder into one line about the file."""
    import av

    try:
        yield
    except av.error.FFmpegError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise InputError(
            f"{path} cannot be read as a video ({reason}); expected an intact mp4, mov, webm or "
            "gif: check that it opens in a player, or convert it again"
        ) from None


def probe(path, fps: Fraction | None = None) -> Probe:
    """Reads the packets' timestamps and the first frame; cheap, decodes nothing else.

    Raises:
      InputError: not a video, no frames, truncated, or damaged at the first frame.
    """
    with readable(path), _open(path) as container:
        stream = _video_stream(path, container)
        times, last, end = [], Fraction(0), Fraction(0)
        for packet in container.demux():
            if not packet.size:
                continue
            if packet.is_corrupt:
                raise _truncated(path)
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                time = stamp * packet.time_base
            else:  # a raw stream has no timestamps: its frames follow each other
                time = len(times) / (stream.average_rate or Fraction(25))
            duration = (packet.duration or 0) * packet.time_base
            end = max(end, time + duration)
            if packet.stream_index == stream.index and not packet.is_discard:
                times.append(time)
                last = duration if time >= max(times) else last
        declared, name = container.duration, container.format.name
        average = stream.average_rate
        focal = metadata.from_tags(stream.metadata, container.metadata)
    if not times:
        raise InputError(f"{path} holds no video frames; expected at least 2")
    _check_complete(path, name, declared, end - min(0, *times), average)
    times.sort()
    own = _own_rate(times, average) if fps is None else fps
    ticks = max(1, _round((times[-1] - times[0] + (last or 1 / own)) * own))
    if len(times) == 1:
        ticks = 1  # a still picture with a long delay is still one frame
    with readable(path), _open(path) as container:
        stream = _video_stream(path, container)
        frame = next(container.decode(stream), None)
        if frame is None:
            raise InputError(f"{path} holds no frame that can be decoded; convert it again")
        height, width = frame.height, max(1, round(frame.width * _pixel_aspect(stream)))
        size = (width, height) if _orientation(frame)[0] else (height, width)
    return Probe(own, ticks, size, focal)


def frames_at(
    path,
    fps: Fraction,
    indices: range,
    total: int,
    shrink: Callable[[np.ndarray], np.ndarray] = as_float,
) -> Iterator[np.ndarray]:
    """Yields the frames shown at times index / fps, for increasing indices.

    A frame is shown from its timestamp (rounded to the grid of 1 / fps) until the next one, so
    frames that come too fast are dropped and late ones are held; a constant-rate file gives
    each of its frames once.

    Args:
      shrink: takes an upright [H, W, 3] frame (uint8, or float32 in [0, 1]) at the file's size to
        float32 in [0, 1] at the size to yield; one frame at a time, so 4K never piles up.

    Yields:
      [H, W, 3] float32 in [0, 1]. The iterator ends early when fewer frames can be decoded than
      the packets promised.
    """
    wanted, shown, shown_tick, first = iter(indices), None, 0, None
    index = next(wanted, None)
    with readable(path), _open(path) as container:
        stream = _video_stream(path, container)
        stream.thread_type = "AUTO"
        size = None
        for count, frame in enumerate(_decoded(path, container, stream)):
            time = count / fps if frame.pts is None else frame.pts * frame.time_base
            first = time if first is None else first
            tick = max(shown_tick, _round((time - first) * fps))
            rgb = None
            while index is not None and shown is not None and index < tick:
                rgb = _to_rgb(path, shown, stream, shrink) if rgb is None else rgb
                yield rgb
                index = next(wanted, None)
            if index is None:
                return
            size = size or (frame.height, frame.width)
            if size != (frame.height, frame.width):
                raise InputError(
                    f"{path} changes its frame size from {size[1]}x{size[0]} to "
                    f"{frame.width}x{frame.height} at frame {count}; convert it to one size"
                )
            shown, shown_tick = frame, tick
        if shown is None:
            return
        ends = (time - first + (shown.duration * shown.time_base or 1 / fps)) * fps
        rgb = None
        while index is not None and index < min(total, max(shown_tick + 1, _round(ends))):
            rgb = _to_rgb(path, shown, stream, shrink) if rgb is None else rgb
            yield rgb
            index = next(wanted, None)


def read_audio(path, start: Fraction, seconds: Fraction) -> Audio | None:
    """The sound from `start` seconds after the first video frame, `seconds` long.

    Returns:
      Mono or stereo Audio, silence where the track has none; None when the file has no sound or
      a track that cannot be decoded (the picture is still good, so that only logs a warning).
    """
    import av

    with _open(path) as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        rate = stream.rate
        video = _video_stream(path, container)
        begin = (video.start_time or 0) * video.time_base + start
        layout = "mono" if stream.channels == 1 else "stereo"
        resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        length = round(seconds * rate)
        samples = np.zeros((length, 1 if layout == "mono" else 2), np.float32)
        expected, heard = None, False
        try:
            for frame in container.decode(stream):
                stamp = frame.pts
                for part in resampler.resample(frame):
                    data = part.to_ndarray().T
                    at = expected
                    if stamp is not None:
                        at = round((stamp * frame.time_base - begin) * rate)
                        # containers round timestamps to ms: only a real gap moves the sound
                        if expected is not None and abs(at - expected) < rate // 20:
                            at = expected
                    at = 0 if at is None else at
                    expected = at + len(data)
                    a, b = max(at, 0), min(expected, length)
                    if a < b:
                        samples[a:b] = data[a - at : b - at]
                        heard = True
                if expected is not None and expected >= length:
                    break
        except av.error.FFmpegError as error:
            logging.getLogger(__name__).warning("%s: sound left out: %s", path, error)
            return None
    return Audio(np.clip(samples, -1, 1), rate) if heard else None


def _open(path):
    import av

    name = f"file:{path}"  # else a colon in it would be taken for a network protocol's
    try:
        return av.open(name, mode="r", metadata_errors="replace")
    except TypeError:  # PyAV 19 has no such choice
        return av.open(name, mode="r")


def _video_stream(path, container):
    streams = container.streams.video
    if not streams:
        what = "only sound" if container.streams.audio else "no video"
        raise InputError(f"{path} holds {what}; expected a file with a video track")
    # cover art is a video stream to the demuxer; prefer one that is none, and one that moves

    def rank(stream) -> tuple:
        art = int(getattr(stream, "disposition", 0)) & _ATTACHED_PICTURE
        return not art, stream.frames != 1, stream.width * stream.height

    stream = max(streams, key=rank)
    if stream.codec_context is None:
        raise InputError(f"{path} uses a codec that this PyAV cannot decode; convert it to H.264")
    return stream


def _decoded(path, container, stream):
    import av

    count = 0
    try:
        for frame in container.decode(stream):
            yield frame
            count += 1
    except av.error.FFmpegError:
        raise InputError(
            f"{path} is damaged: only {count} frames can be decoded; copy or convert it again"
        ) from None


def _truncated(path):
    return InputError(f"{path} is truncated or damaged: its data ends early; copy it again")


def _check_complete(path, name: str, declared, end: Fraction, average) -> None:
    if name == "gif":
        with open(path, "rb") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\x3b":
                raise _truncated(path)
    if declared and ("mov" in name or "matroska" in name):
        declared = Fraction(declared, 1_000_000)
        if declared - end > max(declared / 20, Fraction(1, 4), 2 / (average or Fraction(8))):
            raise InputError(
                f"{path} is truncated: its header says {float(declared):.2f} s but the data ends "
                f"after {float(end):.2f} s; copy it again"
            )


def _own_rate(times: list[Fraction], average: Fraction | None) -> Fraction:
    """The header's rate when the timestamps sit on its grid, else the typical interval's."""
    if len(times) < 2:
        return exact_rate(average or Fraction(25))
    span = times[-1] - times[0]
    for rate in filter(None, (average, Fraction(len(times) - 1) / span if span else None)):
        if all(abs((t - times[0]) * rate - k) < Fraction(1, 4) for k, t in enumerate(times)):
            return exact_rate(min(rate, Fraction(1000)))
    steps = [b - a for a, b in zip(times, times[1:], strict=False) if b > a]
    if not steps:
        return Fraction(25)
    typical = 1 / statistics.median(steps)
    typical = sum(_round(step * typical) for step in steps) / span  # averages the jitter out
    nearest = min(_STANDARD_RATES, key=lambda r: abs(r - typical))
    if abs(nearest - typical) < typical / 50:
        typical = nearest
    return exact_rate(min(typical, Fraction(1000)))


def _round(value) -> int:
    return math.floor(value + Fraction(1, 2))


def _pixel_aspect(stream) -> Fraction:
    aspect = stream.sample_aspect_ratio
    return Fraction(aspect) if aspect and Fraction(1, 8) < aspect < 8 else Fraction(1)


def _orientation(frame) -> tuple[bool, bool, bool]:
    """(transpose, flip rows, flip columns) that make the coded picture upright.

    The display matrix maps coded (x, y) to shown (a x + c y, b x + d y), y down.
    """
    matrix = next((d for d in frame.side_data if d.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def _displayed(pixels: np.ndarray, frame) -> np.ndarray:
    transpose, flip_rows, flip_columns = _orientation(frame)
    if transpose:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _to_rgb(path, frame, stream, shrink) -> np.ndarray:
    """Coded frame -> [H, W, 3] upright, square-pixel, shrunk sRGB, float32 in [0, 1]."""
    from av.video.reformatter import ColorRange, Interpolation

    if frame.is_corrupt:
        raise InputError(f"{path} is damaged (a frame is corrupt); copy or convert it again")
    components, is_rgb = frame.format.components, frame.format.is_rgb
    bits = max(c.bits for c in components)
    alpha = any(c.is_alpha for c in components) or frame.format.has_palette
    name = {(0, 0): "rgb24", (0, 1): "rgba", (1, 0): "rgb48le", (1, 1): "rgba64le"}[bits > 8, alpha]
    matrix = None
    if frame.colorspace == _MATRIX_UNSPECIFIED and not is_rgb:
        # untagged YUV: BT.709 for HD and up, BT.601 below, as players assume
        matrix = "ITU709" if min(frame.height, frame.width) >= 720 else "ITU601"
    # without these flags FFmpeg takes a fast path that darkens every pixel by one or two levels
    exact = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    rgb = frame.reformat(format=name, src_colorspace=matrix, interpolation=exact).to_ndarray()
    if bits > 8:
        white = np.full(rgb.shape[-1], 65535, np.float32)
        if not is_rgb and len(components) >= 3:
            # FFmpeg's 16-bit RGB is its 8-bit one shifted up, so white depends on the source
            full = frame.color_range == ColorRange.JPEG
            white[:3] = 65536 - 65536 / 2**bits if full else 255 * 256
        rgb = np.minimum(rgb.astype(np.float32) / white, 1)
    elif alpha:
        rgb = as_float(rgb)
    if alpha:
        rgb = over_white(rgb)
    aspect = _pixel_aspect(stream)
    if aspect != 1:
        rgb = resample(rgb, (rgb.shape[0], max(1, round(rgb.shape[1] * aspect))))
    rgb = shrink(_displayed(rgb, frame))
    if frame.color_trc in (_TRANSFER_PQ, _TRANSFER_HLG):  # last, because it is slow on large frames
        rgb = tone_map(rgb, frame.color_trc == _TRANSFER_HLG, frame.color_primaries)
    return rgb


def over_white(rgba: np.ndarray) -> np.ndarray:
    """[..., 4] straight alpha in [0, 1] -> [..., 3] composited on white, as web pages show it."""
    return rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:])


def tone_map(signal: np.ndarray, hlg: bool, primaries: int) -> np.ndarray:
    """HDR signal [..., 3] in [0, 1] (ITU-R BT.2100 HLG or PQ) -> display-ready sRGB.

    Diffuse white, 203 cd/m2 (ITU-R BT.2408), becomes 0.87 of linear white and brighter light is
    rolled off below 1, so that highlights keep some detail. The roll-off scales all channels by
    what the brightest one needs and so keeps the hue.
    """
    x = np.clip(signal.astype(np.float32), 0, 1)
    if hlg:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(x <= 0.5, x * x / 3, (np.exp((x - c) / a) + b) / 12)
        luminance = scene @ np.float32([0.2627, 0.6780, 0.0593])
        nits = 1000 * scene * np.maximum(luminance, 1e-6)[..., None] ** 0.2
    else:
        m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
        power = x ** np.float32(1 / m2)
        nits = 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** np.float32(1 / m1)
    linear = nits / 203
    if primaries == _PRIMARIES_BT2020:
        bt709_from_bt2020 = [
            [1.660491, -0.587641, -0.072850],
            [-0.124550, 1.132900, -0.008349],
            [-0.018151, -0.100579, 1.118730],
        ]
        linear = np.maximum(linear @ np.float32(bt709_from_bt2020).T, 0)
    linear = 0.9 * linear
    peak = np.maximum(linear.max(-1, keepdims=True), 1e-6)
    knee = 0.8
    over = np.maximum(peak - knee, 0)
    rolled = np.where(peak > knee, knee + (1 - knee) * over / (over + (1 - knee)), peak)
    linear = linear * rolled / peak
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.clip(srgb, 0, 1).astype(np.float32)
