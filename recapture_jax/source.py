"""What belongs to the source clip besides its pictures: its lens, its own poses and its depth."""

import dataclasses
from typing import Any

import numpy as np

from recapture_jax import config as configuration
from recapture_jax.camera import lens as lenses
from recapture_jax.camera import path as camera_path
from recapture_jax.camera.formats import arrays, read_as, read_path
from recapture_jax.depth import align, base, files, folders, networks, precomputed, sky
from recapture_jax.depth.base import DepthMap
from recapture_jax.depth.folders import DepthFolder
from recapture_jax.errors import InputError
from recapture_jax.video import resize
from recapture_jax.video.clip import Clip


@dataclasses.dataclass(frozen=True)
class SourceCamera:
    """The camera that filmed the clip.

    Attributes:
      intrinsics: `[3, 3]` float32 pixels of the clip's frames.
      said: the lens in one line, and where it is from.
      poses: `[N, 4, 4]` float32 world_from_source of its N frames in the unit of the depth, where
        they came with the depth; else None.
      frames: of `camera.poses`, those of the clip's N frames.
    """

    intrinsics: np.ndarray
    said: str
    poses: np.ndarray | None
    frames: range = range(0)


def frames(video, clip: Clip) -> files.Frames:
    """Which frames of its file the clip is; `video` is the group of the configuration."""
    return files.Frames(clip.num_frames, video.start, video.stride, clip.origin.num_frames)


def depth_folder(config) -> DepthFolder | None:
    """What `depth.path` holds if it is a folder of GEN3C or ViPE.

    Raises:
      InputError: as `folders.find_folder`.
    """
    if config.depth.estimator != "precomputed":
        return None
    return folders.find_folder(configuration.resolve_path(config.depth.path), clip_name(config))


def clip_name(config) -> str:
    """Of the video, without folder and suffix."""
    return configuration.resolve_path(config.video.path).stem


def camera(config, clip: Clip) -> SourceCamera:
    """Lens and poses of a clip that was read by the `video` group of the configuration.

    Raises:
      InputError: for bad files or values, or a camera mode that needs poses where there are none.
    """
    group, used, size = config.camera, frames(config.video, clip), clip.origin.size
    paths, picked = [], range(0)
    if group.poses:
        path = read_as(group.poses, group.poses_format)[1]
        # A path that is not numbered says by its length which frames it is of.
        count = used.total if path.numbered else path.num_frames
        picked = used.of(count, f"config.camera.poses={group.poses}")
        paths.append((path, picked))
    own, folder = None, depth_folder(config)
    if folder is not None:
        path = _folder_path(folder)
        if path is not None:
            last = int(path.times[-1]) + 1 if path.numbered else path.num_frames
            chosen = used.of(last, str(folder.poses or folder.intrinsics))
            paths.append((path, chosen))
            if folder.poses is not None:
                wanted = (used.count, chosen.start, chosen.step)
                own = camera_path.source_poses(path, *wanted, scale=config.depth.scale)
    if group.mode != "relative" and own is None and not group.poses:
        raise InputError(
            f"config.camera.poses is empty: --config.camera.mode={group.mode} needs a file of the "
            "source camera's poses"
        )
    lens = lenses.choose(
        size,
        given=group.intrinsics,
        paths=paths,
        focal_35mm=clip.origin.focal_35mm,
        vertical_fov=group.vertical_fov,
    )
    intrinsics = resize.cover(size, clip.size).intrinsics(lens.intrinsics)
    return SourceCamera(intrinsics, lenses.describe(lens, size), own, picked)


def _folder_path(folder: DepthFolder) -> camera_path.PosePath | None:
    """Poses and intrinsics of the folder; poses are identities where it has none."""
    path = None
    if folder.poses is not None:
        path = read_path(folder.poses, "npz")
    if folder.intrinsics is not None:
        intrinsics = arrays.read_intrinsics(folder.intrinsics)
        if path is None:
            still = np.tile(np.eye(4), (len(intrinsics), 1, 1))
            path = camera_path.PosePath(still, "metres", name=folder.intrinsics.stem)
        elif len(intrinsics) != path.num_frames:
            raise InputError(
                f"{folder.intrinsics} has {len(intrinsics)} entries, {folder.poses} has "
                f"{path.num_frames}: expected one of each per frame"
            )
        path = dataclasses.replace(path, intrinsics=intrinsics)
    if path is None:
        return None
    name = f"the {folder.tool} folder"
    return dataclasses.replace(path, size=files.picture_size(folder.depth), name=name)


def depth(config, clip: Clip, posed: bool = False) -> DepthMap:
    """Depth of a clip: estimated or read, its sky marked, evened out over time.

    Args:
      config: of the run.
      clip: as it was read.
      posed: whether poses came with the depth: then its scale is theirs and is not touched. Where
        `camera.poses` gives them, only the flicker of that scale is, not what an approach changes.

    Raises:
      InputError: an unreadable file, or one of another clip.
    """
    group, used = config.depth, frames(config.video, clip)
    height, width = clip.size
    path = configuration.resolve_path(group.path)
    mask = None
    if group.sky_mask:
        mask_path = configuration.resolve_path(group.sky_mask)
        mask = precomputed.load_mask(mask_path, used, height, width)
    near, far = (group.near, group.far) if group.far else (None, None)
    if group.estimator == "precomputed":
        found = precomputed.load_depth(
            path,
            group.kind,
            group.scale,
            frames=used,
            height=height,
            width=width,
            encoding=group.encoding,
            channel=group.channel,
            near=near,
            far=far,
            sky_mask=mask,
            name=clip_name(config),
        )
    elif group.estimator == "converted":
        found = networks.load(path, near, far)(clip.frames)
    else:
        found = base.get_estimator(group.estimator)(clip.frames)
    found = sky.mark(found, mask, group.sky_beyond, group.sky_depth)
    if group.stabilise:
        usual = "smooth" if config.camera.poses else "auto"
        mode = networks.STABILISE.get((found.source, found.kind), usual)
        found = align.stabilise(found, clip.frames, mode="none" if posed else mode)
    return found


def depth_report(config, found: DepthMap) -> dict[str, Any]:
    """The depth of a run as JSON-able data: kind, origin, near and far of disparity, sky."""
    group = config.depth
    disparity = (
        group.kind == "disparity" if group.estimator == "precomputed" else found.kind == "relative"
    )
    ranged = disparity and group.estimator != "fastdepth" and group.far
    return {
        "kind": found.kind,
        "source": found.source,
        "near": group.near if ranged else None,
        "far": group.far if ranged else None,
        "sky": sky.report(found),
    }
