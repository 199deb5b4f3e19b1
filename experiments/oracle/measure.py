"""How right a warped frame is: colour where it says known, lies among those, and holes."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from experiments.oracle import baselines
from experiments.oracle.views import Source
from recapture_jax.camera.trajectory import Trajectory
from recapture_jax.config import default_config
from recapture_jax.depth.base import DepthMap
from recapture_jax.stages import anchor as anchor_stage
from recapture_jax.video.clip import Clip

FALSE = 0.15
"""A known pixel is false when a channel is off by more than this share of the full range."""

METHODS = (
    *("nearest z-buffer", "bilinear z-weighted", "bilinear, mask eroded"),
    *("ours", "ours, trusted", "ours, all points"),
)
DETAILS = ("as they are", "resampled", "with twice the pixels")
ERODED = 2  # pixels taken off a mask at holes, by the public warper's option and by our default


@dataclasses.dataclass(frozen=True)
class Score:
    """Of one view and method.

    Attributes:
        psnr: dB over the known pixels; nan without any.
        false_known: share of the known pixels that are false.
        holes: share of the frame that is unknown.
    """

    psnr: float
    false_known: float
    holes: float


def score(colors: np.ndarray, known: np.ndarray, truth: np.ndarray, false: float = FALSE) -> Score:
    """Of a frame `[H, W, 3]` in [0, 1] with its mask `[H, W]` against the true view."""
    if not known.any():
        return Score(float("nan"), float("nan"), 1.0)
    error = np.abs(np.asarray(colors, np.float64) - truth)[known]
    squared = max(float((error**2).mean()), 1e-10)
    return Score(
        psnr=-10 * float(np.log10(squared)),
        false_known=float((error.max(-1) > false).mean()),
        holes=float(1 - known.mean()),
    )


def warps(source: Source, path: Trajectory) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Colours and mask of every method of `METHODS`."""
    views = (
        source.colors,
        source.depth,
        source.intrinsics,
        np.asarray(path.cameras.intrinsics[0]),
        np.asarray(path.cameras.world_from_camera[0]),
    )
    bilinear, known = baselines.bilinear_z_weighted(*views)
    anchor, untorn = ours(source, path), ours(source, path, tearing=0.0)
    found = (
        baselines.nearest_z_buffer(*views),
        (bilinear, known),
        (bilinear, baselines.eroded(known, ERODED)),
        (anchor.frames[0], anchor.raw_mask[0]),
        (anchor.frames[0], anchor.mask[0]),
        (untorn.frames[0], untorn.raw_mask[0]),
    )
    return dict(zip(METHODS, found, strict=True))


def detailed(source: Source, path: Trajectory) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Colours and mask of a path that enlarges, by the pictures it is splatted from (`DETAILS`); else nothing."""
    lens = jnp.asarray(source.intrinsics)
    if anchor_stage.magnification(source.depth[None], lens, path)[0] <= anchor_stage.ENLARGED:
        return {}
    finer = source.finer(anchor_stage.DETAIL)[None]
    plain = source.colors[None]
    found = (ours(source, path, f) for f in (lambda frames: plain, None, lambda frames: finer))
    return {n: (a.frames[0], a.raw_mask[0]) for n, a in zip(DETAILS, found, strict=True)}


def ours(
    source: Source, path: Trajectory, finer: Callable | None = None, **changes
) -> anchor_stage.Anchor:
    """The anchor stage of a run, with its default settings but for the changes; finer: as `render` has it."""
    clip = Clip(source.colors[None], 8.0, intrinsics=source.intrinsics)
    depth = DepthMap(source.depth[None], "metric", "rendered")
    config = default_config().anchor
    config.update(changes)
    return anchor_stage.render(config, clip, depth, path, finer)
