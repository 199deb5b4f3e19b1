"""A short video in memory: frames, frame rate, sound and, when they are known, its cameras."""

import dataclasses
import math
import numbers
from fractions import Fraction
from typing import Any

import numpy as np

from recapture_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Audio:
    """Decoded sound whose first sample is heard with the clip's first frame.

    Decoded rather than packets: it can be cut to the sample and goes into any container.

    Attributes:
      samples: [N, channels] float32 in [-1, 1]; one or two channels.
      rate: samples per second.
    """

    samples: np.ndarray
    rate: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / self.rate

    def trimmed(self, seconds: float | Fraction) -> "Audio":
        """The first `seconds` of it (all of it when it is shorter)."""
        return Audio(self.samples[: round(seconds * self.rate)], self.rate)


@dataclasses.dataclass(frozen=True)
class Origin:
    """The file or folder that a clip was taken from.

    Attributes:
      num_frames: in all of it, at its rate.
      size: (height, width) of its frames in pixels, upright.
      focal_35mm: focal length of its lens in 35 mm equivalents, millimetres, if it says.
    """

    num_frames: int
    size: tuple[int, int]
    focal_35mm: float | None = None


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames at a constant rate and what is known about how they were filmed.

    Attributes:
      frames: [T, H, W, 3] float32 in [0, 1].
      fps: frames per second; `rate` is the same as an exact fraction.
      audio: sound over the same time span, or None.
      intrinsics: [3, 3] float32 pixels of `frames`, or None when unknown.
      source_poses: [T, 4, 4] float32 world_from_camera, or None when unknown.
      origin: where it was read from, or None.

    Raises:
      InputError: frames are not [T, H, W, 3], or fps is not a positive number.
    """

    frames: Any
    fps: float
    audio: Audio | None = None
    intrinsics: Any = None
    source_poses: Any = None
    origin: Origin | None = None

    def __post_init__(self):
        shape = tuple(self.frames.shape)
        if len(shape) != 4 or shape[-1] != 3 or 0 in shape:
            raise InputError(f"clip frames have shape {shape}; expected [T, H, W, 3]")
        exact_rate(self.fps)

    @property
    def num_frames(self) -> int:
        return self.frames.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.frames.shape[1], self.frames.shape[2]

    @property
    def rate(self) -> Fraction:
        return exact_rate(self.fps)

    @property
    def duration(self) -> float:
        """Seconds, counting the time the last frame is shown."""
        return float(self.num_frames / self.rate)

    def shown(self, frames: np.ndarray) -> "Clip":
        """The clip with frame `frames[t]` of it as frame t; without sound, which would not fit.

        Args:
          frames: `[N]` indices. All of them once and in order leave the clip as it is.
        """
        if np.array_equal(frames, np.arange(self.num_frames)):
            return self
        per_frame = {name: getattr(self, name) for name in ("frames", "source_poses")}
        if self.intrinsics is not None and np.ndim(self.intrinsics) == 3:
            per_frame["intrinsics"] = self.intrinsics
        taken = {k: np.asarray(v)[frames] for k, v in per_frame.items() if v is not None}
        return dataclasses.replace(self, audio=None, **taken)


def exact_rate(fps: float | Fraction) -> Fraction:
    """The frame rate as a fraction: 29.97002997 becomes 30000/1001.

    Denominators go up to 1001, which holds every broadcast and film rate exactly.

    Raises:
      InputError: fps is not a finite number in (0, 1000].
    """
    number = isinstance(fps, numbers.Real) and not isinstance(fps, bool) and math.isfinite(fps)
    if not number or not 0 < fps <= 1000:
        raise InputError(f"fps is {fps!r}; expected a number above 0 and at most 1000")
    fps = fps if isinstance(fps, Fraction) else float(fps)
    return Fraction(fps).limit_denominator(1001) or Fraction(1, 1001)
