"""Folders in which other tools leave depth, poses and intrinsics of one video together.

    GEN3C   depth.npz (depth), camera.npz (w2c, intrinsics), and, if there is one, mask.npz (mask,
            0 where there is no depth: areas of it are sky)
    ViPE    depth/NAME.zip (00000.exr, ...: half floats, channel Z), pose/NAME.npz (inds, data),
            intrinsics/NAME.npz (inds, data: fx fy cx cy) and NAME_camera.txt, for one or more NAMEs

Poses are OpenCV, GEN3C's camera_from_world and ViPE's world_from_camera, in the unit of the depth;
ViPE's is metres. Intrinsics are pixels of the depth. ViPE's mask/ marks what moves and is not read.
"""

import dataclasses
from pathlib import Path

from recapture_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class DepthFolder:
    """Where things are.

    Attributes:
        tool: 'GEN3C' or 'ViPE'.
        depth: file for `files.read_depth`.
        valid: file for `files.read_mask`, or None.
        poses: file of poses, or None.
        intrinsics: file of ViPE's intrinsics; None if they are with the poses, or missing.
    """

    tool: str
    depth: Path
    valid: Path | None = None
    poses: Path | None = None
    intrinsics: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them that there are."""
        return tuple(filter(None, (self.depth, self.valid, self.poses, self.intrinsics)))


def find_folder(path: Path, name: str = "") -> DepthFolder | None:
    """What a folder of one of the tools holds; None if it is of neither.

    Args:
        path: anything.
        name: of the video, which picks one of several in a folder of ViPE.

    Raises:
        InputError: several videos and none of that name, or a camera that is not a pinhole.
    """
    if (path / "depth.npz").is_file():
        valid, cameras = _existing(path / "mask.npz"), _existing(path / "camera.npz")
        return DepthFolder("GEN3C", path / "depth.npz", valid, cameras)
    found = sorted((path / "depth").glob("*.zip")) if (path / "depth").is_dir() else []
    if not found:
        return None
    named = [file for file in found if file.stem == name] or found
    if len(named) > 1:
        listed = ", ".join(file.stem for file in named[:6])
        raise InputError(
            f"{path} is ViPE's of {len(named)} videos ({listed}), none called {name!r}; rename "
            "the video or give a folder of its own"
        )
    stem = named[0].stem
    _check_pinhole(path / "intrinsics" / f"{stem}_camera.txt")
    poses, lens = (_existing(path / part / f"{stem}.npz") for part in ("pose", "intrinsics"))
    return DepthFolder("ViPE", named[0], None, poses, lens)


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _check_pinhole(path: Path) -> None:
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if line.strip() and line.rpartition(":")[2].strip().upper() != "PINHOLE":
            raise InputError(
                f"{path}, line {number}: {line.strip()[:40]!r}, expected PINHOLE; run ViPE with its "
                "pinhole camera"
            )
