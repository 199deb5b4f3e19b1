"""What a depth map is, what a depth network has to be, and which networks there are by name."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

from recapture_jax.errors import InputError

KINDS = ("metric", "relative")


@dataclasses.dataclass(frozen=True)
class DepthMap:
    """Depth of every pixel of a clip.

    Attributes:
        depth: [T, H, W] float32, finite and > 0: distance along the optical axis (plane z), not
            along the ray.
        kind: 'metric' (metres) or 'relative' (metres up to one unknown factor for the clip).
        source: where it came from, for the record of a run.
        intrinsics: [3, 3] float32 pixels at this size, if the estimator knows the lens; else None.
        sky: [T, H, W] bool, what is infinitely far and stands on a far plane instead (`depth.sky`);
            None if nothing is.

    Raises:
        InputError: anything else; the message names the first frame that is wrong.
    """

    depth: np.ndarray
    kind: str
    source: str
    intrinsics: np.ndarray | None = None
    sky: np.ndarray | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise InputError(f"depth kind is {self.kind!r}, expected one of {', '.join(KINDS)}")
        shape, dtype = tuple(self.depth.shape), self.depth.dtype
        if len(shape) != 3 or 0 in shape:
            raise InputError(f"depth of {self.source} has shape {shape}, expected [T, H, W]")
        if dtype != np.float32:
            raise InputError(f"depth of {self.source} is {dtype}, expected float32; convert it")
        for t, frame in enumerate(self.depth):
            low, high = float(frame.min()), float(frame.max())
            if not (0 < low and high < np.inf):  # false for NaN too
                raise InputError(
                    f"depth of {self.source}, frame {t} lies in [{low:g}, {high:g}], expected "
                    "finite values above 0; fill or clamp the bad pixels"
                )
        if self.intrinsics is not None and tuple(self.intrinsics.shape) != (3, 3):
            raise InputError(
                f"intrinsics of {self.source} have shape {tuple(self.intrinsics.shape)}, "
                "expected [3, 3]"
            )
        if self.sky is not None and (self.sky.shape != shape or self.sky.dtype != bool):
            raise InputError(
                f"sky of {self.source} is {self.sky.dtype} of shape {tuple(self.sky.shape)}, "
                f"expected bool of {shape}"
            )

    @property
    def surfaces(self) -> np.ndarray:
        """[T, H, W] bool: where there is something, everything but the sky."""
        return np.ones(self.depth.shape, bool) if self.sky is None else ~self.sky

    @property
    def num_frames(self) -> int:
        return self.depth.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.depth.shape[1], self.depth.shape[2]


class DepthEstimator(Protocol):
    """A depth network with its own preprocessing and weights inside.

    It is given the whole clip at once, so that networks that look across frames fit; one that does
    not goes through it in batches. It says itself whether its depth is metric, converts disparity
    to depth, and reports the intrinsics if it estimates them.
    """

    def __call__(self, frames: np.ndarray) -> DepthMap:
        """frames [T, H, W, 3] float32 in [0, 1] -> depth [T, H, W] at the same size.

        Raises:
            InputError: frames of another shape or type (see `check_frames`).
        """
        ...


def check_frames(frames: np.ndarray) -> None:
    """Refuses what is not a clip, for estimators to call first.

    Raises:
        InputError: not [T, H, W, 3], empty, or not floating point.
    """
    shape = tuple(frames.shape)
    if len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise InputError(f"frames have shape {shape}, expected [T, H, W, 3]; add the frame axis")
    if not np.issubdtype(frames.dtype, np.floating):
        raise InputError(
            f"frames are {frames.dtype}, expected floats in [0, 1]; divide bytes by 255"
        )


def _fastdepth() -> DepthEstimator:
    from recapture_jax.depth.fastdepth import FastDepth

    return FastDepth()


# A function per name: weights are read when a network is asked for, not on import.
ESTIMATORS: dict[str, Callable[[], DepthEstimator]] = {"fastdepth": _fastdepth}


def get_estimator(name: str) -> DepthEstimator:
    """The estimator called `name`, with its weights loaded.

    Raises:
        InputError: no such estimator; the message lists those there are.
    """
    if name not in ESTIMATORS:
        raise InputError(
            f"depth estimator {name!r} is not known, expected one of "
            f"{', '.join(sorted(ESTIMATORS))}; or give precomputed depth"
        )
    return ESTIMATORS[name]()
