"""Writes videos and pictures: whole or not at all, and never over a file without being asked."""

import contextlib
import errno
import os
import pathlib
import re
import uuid
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from recapture_jax.errors import InputError
from recapture_jax.video.clip import Audio, exact_rate

_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_PNG_LEVEL = 3  # 6, the default, takes 2.5 times as long for 8 % fewer bytes


def write_video(
    path,
    frames,
    fps: float | Fraction,
    audio: Audio | None = None,
    *,
    overwrite: bool = False,
    quality: int = 16,
) -> pathlib.Path:
    """Writes an H.264 (yuv420p, BT.709) mp4 with AAC sound that every player opens.

    4:2:0 needs even sizes: an odd edge is padded by repeating its last row or column, never
    squashed, and the true size is recorded in the file's comment as `picture=WIDTHxHEIGHT`
    (`picture_size` reads it).

    Args:
      path: target, ending in .mp4 or .mov; its folder must exist.
      frames: [T, H, W, 3] or [T, H, W] (gray, masks): float in [0, 1] (clipped), uint8 or bool.
      fps: frames per second, kept as a fraction (29.97 as 30000/1001), so T / fps is exact.
      audio: sound that starts with the first frame; cut to T / fps seconds.
      overwrite: replace an existing file.
      quality: x264's constant rate factor, 0 (lossless) to 51; 16 is visually clean.

    Returns:
      The path.

    Raises:
      InputError: the target exists or cannot be written, the disk is full, or the frames are not
        finite numbers of that shape. Nothing is left behind.
    """
    rate = exact_rate(fps)
    if not isinstance(quality, int) or not 0 <= quality <= 51:
        raise InputError(f"quality is {quality!r}; expected a whole number from 0 to 51")
    frames = _checked(frames)
    path = pathlib.Path(path)
    if path.suffix.lower() not in (".mp4", ".mov"):
        raise InputError(f"{path}: expected a name that ends in .mp4 or .mov")
    if audio is not None:
        audio = _aac_ready(audio.trimmed(len(frames) / rate))
    with atomic(path, overwrite) as temporary:
        _encode(temporary, frames, rate, audio, quality)
    return path


def write_png(path, image, *, overwrite: bool = False) -> pathlib.Path:
    """Writes [H, W, 3] or [H, W] (float in [0, 1], uint8 or bool) as an 8-bit PNG.

    Raises:
      InputError: as `write_video`.
    """
    from PIL import Image

    path = pathlib.Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: expected a name that ends in .png")
    image = np.asarray(image)
    if image.ndim not in (2, 3):
        raise InputError(f"image has shape {image.shape}; expected [H, W, 3] or [H, W]")
    pixels = _uint8(_checked(image[None])[0])
    with atomic(path, overwrite) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=_PNG_LEVEL)
    return path


def side_by_side(videos: Sequence, separator: int = 4) -> np.ndarray:
    """Joins [T, H, W, 3] videos left to right, with white columns between them.

    Args:
      videos: at least one; the same T and H, any width; float in [0, 1], uint8 or bool.
      separator: width of the white column in pixels.

    Returns:
      [T, H, sum of W + separators, 3] uint8.
    """
    if not videos:
        raise InputError("side_by_side got no videos; expected at least one")
    videos = [_uint8(_checked(video)) for video in videos]
    shapes = sorted({video.shape[:2] for video in videos})
    if len(shapes) > 1:
        raise InputError(f"videos side by side differ in (frames, height): {shapes}")
    parts = [videos[0]]
    for video in videos[1:]:
        parts += [np.full((*shapes[0], separator, 3), 255, np.uint8), video]
    return np.concatenate(parts, axis=2)


def picture_size(path) -> tuple[int, int] | None:
    """The (height, width) before padding that `write_video` recorded, or None if it padded nothing.

    The picture is the top left part of the padded frame.
    """
    import av

    with av.open(f"file:{path}") as container:
        comment = container.metadata.get("comment", "")
    found = re.fullmatch(r"picture=(\d+)x(\d+)", comment)
    return (int(found[2]), int(found[1])) if found else None


@contextlib.contextmanager
def atomic(path, overwrite: bool = False) -> Iterator[pathlib.Path]:
    """Gives a temporary name beside `path`; on success it becomes `path`, on failure it goes.

    Raises:
      InputError: `path` exists and overwrite is False, its folder is missing, or writing failed.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a file name")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; create it first")
    _refuse_existing(path, overwrite)
    temporary = path.with_name(f".{path.stem[:64]}-{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temporary
        _refuse_existing(path, overwrite)  # another run may have finished meanwhile
        os.replace(temporary, path)
    except OSError as error:  # PyAV's own errors are OSErrors too
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"{path} was not written: the disk is full; free some space and run again"
            ) from None
        reason = (error.strerror or str(error)).lower()
        raise InputError(
            f"{path} was not written ({reason}); check the folder's permissions and free space"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_existing(path: pathlib.Path, overwrite: bool) -> None:
    if not overwrite and os.path.lexists(path):
        raise InputError(f"{path} exists already; choose another name or ask for overwrite")


def _checked(frames) -> np.ndarray:
    """[T, H, W] or [T, H, W, 3] of any accepted type -> [T, H, W, 3], same type."""
    frames = np.asarray(frames)
    if frames.ndim == 3:
        frames = np.broadcast_to(frames[..., None], (*frames.shape, 3))
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise InputError(f"frames have shape {frames.shape}; expected [T, H, W, 3] or [T, H, W]")
    if np.issubdtype(frames.dtype, np.floating) or frames.dtype.name == "bfloat16":
        if not all(np.isfinite(frame.astype(np.float32)).all() for frame in frames):
            raise InputError("frames contain NaN or infinity; nothing was written")
    elif frames.dtype not in (np.uint8, np.bool_):
        raise InputError(f"frames are {frames.dtype}; expected floats in [0, 1], uint8 or bool")
    return frames


def _uint8(frames: np.ndarray) -> np.ndarray:
    if frames.dtype == np.uint8:
        return np.ascontiguousarray(frames)
    if frames.dtype == np.bool_:
        return frames * np.uint8(255)
    return (np.clip(frames.astype(np.float32), 0, 1) * 255 + 0.5).astype(np.uint8)


def _aac_ready(audio: Audio) -> Audio | None:
    """The same sound at a rate and layout AAC has; None when nothing is left of it."""
    samples = np.asarray(audio.samples, np.float32)
    if samples.ndim != 2 or samples.shape[1] not in (1, 2):
        raise InputError(f"audio samples have shape {samples.shape}; expected [N, 1] or [N, 2]")
    if not np.isfinite(samples).all():
        raise InputError("audio contains NaN or infinity; nothing was written")
    if not len(samples):
        return None
    if audio.rate in _AAC_RATES:
        return Audio(samples, audio.rate)
    import av

    layout = ("mono", "stereo")[samples.shape[1] - 1]
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=48000)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), "fltp", layout)
    frame.sample_rate = audio.rate
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    length = round(audio.duration * 48000)
    return Audio(np.concatenate([p.to_ndarray().T for p in parts])[:length], 48000)


def _encode(path, frames: np.ndarray, rate: Fraction, audio: Audio | None, quality: int) -> None:
    import av
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    height, width = frames.shape[1:3]
    pad = [(0, height % 2), (0, width % 2), (0, 0)]
    flags = Interpolation.BICUBIC | Interpolation.ACCURATE_RND
    with av.open(f"file:{path}", "w", options={"movflags": "+faststart"}) as container:
        if height % 2 or width % 2:
            container.metadata["comment"] = f"picture={width}x{height}"
        video = container.add_stream("libx264", rate=rate, options={"crf": str(quality)})
        video.width, video.height = width + width % 2, height + height % 2
        video.pix_fmt = "yuv420p"
        context = video.codec_context
        context.time_base = 1 / rate
        # say what the numbers mean, so that no player has to guess the colours
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = ColorRange.MPEG
        sound = _SoundEncoder(container, audio) if audio is not None else None
        for index, frame in enumerate(frames):
            pixels = np.pad(_uint8(frame), pad, mode="edge")
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=flags,
            )
            picture.pts, picture.time_base = index, 1 / rate
            container.mux(video.encode(picture))
            if sound is not None:
                sound.advance((index + 1) / rate)
        container.mux(video.encode(None))
        if sound is not None:
            sound.finish()


class _SoundEncoder:
    """Feeds the sound in step with the picture, so that the muxer need not hold it back."""

    def __init__(self, container, audio: Audio):
        self.container, self.audio, self.done = container, audio, 0
        self.layout = ("mono", "stereo")[audio.samples.shape[1] - 1]
        self.stream = container.add_stream("aac", rate=audio.rate, layout=self.layout)
        self.stream.codec_context.bit_rate = 192_000

    def advance(self, seconds: Fraction) -> None:
        import av

        until = min(round(seconds * self.audio.rate), len(self.audio.samples))
        if until <= self.done:
            return
        part = np.ascontiguousarray(self.audio.samples[self.done : until].T)
        frame = av.AudioFrame.from_ndarray(part, "fltp", self.layout)
        frame.sample_rate = self.audio.rate
        frame.pts, frame.time_base = self.done, Fraction(1, self.audio.rate)
        self.container.mux(self.stream.encode(frame))
        self.done = until

    def finish(self) -> None:
        self.container.mux(self.stream.encode(None))
