"""How far the cameras of a clip are from those that were asked for.

Both paths are taken relative to their own frame 0; what is left free by a reconstruction, its scale,
is fitted. `total` follows CameraCtrl (He et al. 2024): sums over the frames, RotErr in radians.
"""

from dataclasses import dataclass

import numpy as np

from recapture_jax.errors import InputError

SCALES = ("fit", "unit", "none")


@dataclass(frozen=True)
class CameraError:
    """Errors per frame.

    Attributes:
        rotation: `[T]` radians, angle between the two rotations.
        translation: `[T]` distance of the two positions, in the units of the wanted path.
    """

    rotation: np.ndarray
    translation: np.ndarray

    @property
    def total(self) -> tuple[float, float]:
        """(RotErr in radians, TransErr), sums over the frames."""
        return float(self.rotation.sum()), float(self.translation.sum())

    @property
    def mean(self) -> tuple[float, float]:
        """(rotation in degrees, translation), means over the frames after the first."""
        return float(np.degrees(self.rotation[1:]).mean()), float(self.translation[1:].mean())


def camera_error(found: np.ndarray, wanted: np.ndarray, scale: str = "fit") -> CameraError:
    """Compares two camera paths.

    Args:
        found: `[T, 4, 4]` world_from_camera, recovered from the clip, any world, any scale.
        wanted: `[T, 4, 4]` world_from_camera that was asked for.
        scale: 'fit' (least squares onto the wanted positions), 'unit' (each path divided by its
            largest distance from frame 0) or 'none' (already the same units).

    Raises:
        InputError: other shapes, fewer than two frames, not finite, or an unknown scale.
    """
    found, wanted = (np.asarray(p, np.float64) for p in (found, wanted))
    if scale not in SCALES:
        raise InputError(f"scale {scale!r}: expected one of {', '.join(SCALES)}")
    if found.shape != wanted.shape or found.shape[1:] != (4, 4) or len(found) < 2:
        raise InputError(
            f"camera paths have shapes {found.shape} and {wanted.shape}: expected [T, 4, 4] twice, "
            "two frames or more"
        )
    if not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        raise InputError("a camera path contains NaN or infinity; drop the frames without a pose")
    turned, offset = _relative(found)
    wanted_turned, target = _relative(wanted)
    # The chord keeps small angles exact, where the arc cosine of the trace loses half the digits.
    chord = np.linalg.norm(turned - wanted_turned, axis=(1, 2))
    rotation = 2.0 * np.arcsin(np.clip(chord / np.sqrt(8.0), 0.0, 1.0))
    if scale == "fit":
        power = np.square(offset).sum()
        offset = offset * (max((offset * target).sum() / power, 0.0) if power > 0 else 0.0)
    elif scale == "unit":
        offset, target = _unit(offset), _unit(target)
    return CameraError(rotation, np.linalg.norm(offset - target, axis=-1))


def _relative(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations `[T, 3, 3]` and positions `[T, 3]` in the frame of camera 0."""
    back = poses[0, :3, :3].T
    return back @ poses[:, :3, :3], (poses[:, :3, 3] - poses[0, :3, 3]) @ back.T


def _unit(positions: np.ndarray) -> np.ndarray:
    reach = np.linalg.norm(positions, axis=-1).max()
    return positions / reach if reach > 0 else positions
