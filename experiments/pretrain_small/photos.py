"""Training clips of the real world: cameras that pan over photos, and windows of real videos.

The folder holds `images/` and `videos/`. A photo becomes a clip by a homography per frame, eased
in time; blobs cut from another photo move on their own in front of it. Clip `i` depends on the
folder, the seed and `i` only.
"""

import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from experiments.pretrain_small.architecture import HEIGHT, NUM_FRAMES, WIDTH
from experiments.pretrain_small.data import SHARD, write_shards
from recapture_jax.errors import InputError
from recapture_jax.scenes.photos import read as read_photo
from recapture_jax.video import decode
from recapture_jax.video.read import read_clip
from recapture_jax.video.resize import resample

STILL, LOCKED, CUT_OUTS, VIDEO_SHARE = 0.15, 0.25, 0.5, 0.25  # probabilities
_OVERSAMPLE = 3  # 3x3 samples a pixel, averaged
_PATCH = 224  # pixels of a cut-out
_CORNERS = np.array([(u, v, 1.0) for u in (-0.5, 0.5) for v in (-0.3, 0.3)])  # in image widths
_TO_UNIT = np.array([[1 / WIDTH, 0, -0.5], [0, 1 / WIDTH, -0.5 * HEIGHT / WIDTH], [0, 0, 1]])


def write_clips(workdir: pathlib.Path, folder: pathlib.Path, clips: int, seed: int = 0) -> None:
    """Adds the shards of the split `photos` that are not there yet, at least `clips` clips.

    Raises:
      InputError: the folder has no photos, or one of its files cannot be used.
    """
    photos, videos = load_photos(folder), load_videos(folder)

    def make(start: int):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            indices = range(start, start + SHARD)
            made = list(pool.map(lambda i: make_clip(photos, videos, seed, i), indices))
        return np.stack([m[0] for m in made]), np.array([m[1] for m in made], np.float32)

    write_shards(workdir, "photos", clips, make)


def load_photos(folder: pathlib.Path) -> list[Image.Image]:
    """RGB images of `folder/images`, at most 640 pixels long."""
    photos = []
    for path in _files(folder / "images"):
        photo = read_photo(path)
        photo.thumbnail((640, 640), Image.Resampling.LANCZOS)
        photos.append(photo)
    if not photos:
        raise InputError(f"{folder} has no photos; expected image files in {folder / 'images'}")
    return photos


def load_videos(folder: pathlib.Path) -> list[tuple[np.ndarray, float]]:
    """(frames [N, H, W, 3] uint8 of about 320x240 pixels, fps) of each file of `folder/videos`."""
    videos = []
    for path in _files(folder / "videos"):
        found = decode.probe(path)
        stride = max(1, int(found.fps // 24))
        count = min(300, found.num_frames // stride)
        clip = read_clip(path, count, stride=stride, max_pixels=320 * 240, with_audio=False)
        videos.append((np.round(clip.frames * 255).astype(np.uint8), clip.fps))
        if not _strides(*videos[-1]):
            raise InputError(f"{path} is too short; expected 14 frames at 5 to 12 per second")
    return videos


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in files if p.is_file() and not p.name.startswith("."))


def make_clip(photos, videos, seed: int, index: int) -> tuple[np.ndarray, float]:
    """Clip number `index`: frames [14, 96, 160, 3] uint8 and its camera motion in image widths."""
    rng = np.random.default_rng((seed, index))
    if videos and rng.random() < VIDEO_SHARE:
        frames, motion = video_clip(*videos[rng.integers(len(videos))], rng)
    else:
        first = rng.integers(len(photos))
        others = [p for i, p in enumerate(photos) if i != first] or photos
        frames, motion = photo_clip(photos[first], others, rng)
    if rng.random() < 0.5:
        frames = frames[:, :, ::-1]
    return np.ascontiguousarray(frames), motion


def photo_clip(photo, others, rng) -> tuple[np.ndarray, float]:
    """A camera path over `photo`; in half of the moving clips, cut-outs of `others` on it.

    The motion is the renderer's: the mean travel of the photo's points across the image from the
    first to the last frame, in image widths.
    """
    still = rng.random() < STILL
    cut_outs = 0 if still or rng.random() > CUT_OUTS else rng.integers(1, 3)
    locked = still or (cut_outs and rng.random() < LOCKED)
    path = camera_path(rng, 0.0 if locked else rng.uniform(0.05, 1.0))
    seen = np.linalg.inv(path) @ path[0]  # where a point of frame 0 is in frame t
    layers = [
        cut_out(others[rng.integers(len(others))], rng) + (seen @ object_path(rng),)
        for _ in range(cut_outs)
    ]
    place = _place(path, photo.size, rng)
    size = (WIDTH * _OVERSAMPLE, HEIGHT * _OVERSAMPLE)
    frames = []
    for t in range(NUM_FRAMES):
        frame = _warp(photo, place @ path[t], size)
        for patch, mask, moves in layers:
            to_patch = _patch_from_unit() @ np.linalg.inv(moves[t])
            frame.paste(_warp(patch, to_patch, size), (0, 0), _warp(mask, to_patch, size))
        frames.append(np.asarray(frame.reduce(_OVERSAMPLE)))
    return jitter_colours(np.stack(frames), rng), camera_travel(seen[-1])


def camera_path(rng, strength: float) -> np.ndarray:
    """[T, 3, 3] from the image to a plane, both in image widths; strength 1 pans 40 % of it."""
    angle, reach = rng.uniform(0, 2 * np.pi), 0.4 * rng.uniform(0.3, 1.0)
    # pan x, pan y, log size, roll in radians, two perspective terms
    start = rng.uniform(-1, 1, 6) * [0, 0, 0, 0.06, 0.1, 0.1]
    move = rng.uniform(-1, 1, 6) * [0, 0, 0.35, 0.09, 0.12, 0.12] * (rng.random(6) < 0.5)
    move[:2] = reach * np.cos(angle), reach * np.sin(angle)
    return _similarities(start + _progress(rng)[:, None] * strength * move)


def object_path(rng) -> np.ndarray:
    """[T, 3, 3] from a patch (its side is 1) to the first frame, in image widths."""
    start = rng.uniform(-1, 1, 6) * [0.4, 0.25, 0.5, 0.5, 0, 0] - [0, 0, 1.3, 0, 0, 0]
    move = rng.uniform(-1, 1, 6) * [0.5, 0.3, 0.25, 0.35, 0, 0]
    return _similarities(start + _progress(rng)[:, None] * move)


def _progress(rng) -> np.ndarray:
    u, ease = np.linspace(0.0, 1.0, NUM_FRAMES), rng.uniform(0, 1)
    return (1 - ease) * u + ease * (0.5 - 0.5 * np.cos(np.pi * u))


def _similarities(p: np.ndarray) -> np.ndarray:
    """[T, 6] shift, log scale, roll, perspective -> [T, 3, 3]."""
    cos, sin = np.exp(p[:, 2]) * np.cos(p[:, 3]), np.exp(p[:, 2]) * np.sin(p[:, 3])
    out = np.zeros((len(p), 3, 3)) + np.eye(3)
    out[:, 0], out[:, 1] = np.stack([cos, -sin, p[:, 0]], 1), np.stack([sin, cos, p[:, 1]], 1)
    tilt = np.zeros_like(out) + np.eye(3)
    tilt[:, 2, :2] = p[:, 4:]
    return out @ tilt


def _map(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    mapped = points @ np.swapaxes(matrix, -1, -2)
    return mapped[..., :2] / mapped[..., 2:]


def _place(path: np.ndarray, size: tuple[int, int], rng) -> np.ndarray:
    """The plane's scale and position in the photo's pixels; all frames stay inside the photo."""
    corners = _map(path, _CORNERS).reshape(-1, 2)
    low, extent = corners.min(0), np.ptp(corners, axis=0)
    largest = min(size[0], size[1] * WIDTH / HEIGHT)
    window = largest * rng.uniform(max(0.35, min(1.0, WIDTH / largest)), 1.0)
    window = min(window, *(np.array(size) / extent))
    x, y = rng.uniform(0, 1, 2) * np.maximum(size - window * extent, 0) - window * low
    return np.array([[window, 0, x], [0, window, y], [0, 0, 1]])


def _patch_from_unit() -> np.ndarray:
    return np.array([[_PATCH, 0, _PATCH / 2], [0, _PATCH, _PATCH / 2], [0, 0, 1.0]])


def _warp(image: Image.Image, from_unit: np.ndarray, size: tuple[int, int]) -> Image.Image:
    matrix = from_unit @ _TO_UNIT @ np.diag([1 / _OVERSAMPLE, 1 / _OVERSAMPLE, 1.0])
    matrix = (matrix / matrix[2, 2]).reshape(-1)[:8]
    return image.transform(size, Image.Transform.PERSPECTIVE, matrix, Image.Resampling.BILINEAR)


def cut_out(photo: Image.Image, rng) -> tuple[Image.Image, Image.Image]:
    """A square of `photo` and the mask of a blob with a soft edge, both 224x224."""
    side = min(photo.size) * rng.uniform(0.3, 0.8)
    left, top = rng.uniform(0, 1, 2) * (np.array(photo.size) - side)
    box = (left, top, left + side, top + side)
    patch = photo.resize((_PATCH, _PATCH), Image.Resampling.BICUBIC, box=box)
    axis = (np.arange(_PATCH) + 0.5) / _PATCH * 2 - 1
    x, y = np.meshgrid(axis, axis / rng.uniform(0.5, 0.95))
    angle, edge = np.arctan2(y, x), 0.75
    for wave in range(2, 6):
        edge = edge + rng.uniform(0, 0.18 / wave) * np.cos(wave * angle + rng.uniform(0, 6.3))
    alpha = np.clip((edge - np.hypot(x, y)) / rng.uniform(0.02, 0.08) + 0.5, 0, 1)
    return patch, Image.fromarray(np.round(alpha * 255).astype(np.uint8))


def camera_travel(last_from_first: np.ndarray) -> float:
    """Mean length of the way of a grid of points of the image [-0.5, 0.5] x [-0.3, 0.3]."""
    u, v = np.meshgrid(np.linspace(-0.5, 0.5, 9), np.linspace(-0.3, 0.3, 7))
    grid = np.stack([u, v, np.ones_like(u)], -1)
    return float(np.linalg.norm(_map(last_from_first, grid) - grid[..., :2], axis=-1).mean())


def jitter_colours(frames: np.ndarray, rng) -> np.ndarray:
    """One random gain, contrast and hue turn for the whole clip; uint8 to uint8."""
    gain, contrast, turn = rng.uniform(0.85, 1.15), rng.uniform(0.85, 1.15), rng.normal(0, 0.12)
    grey, cross = np.full((3, 3), 1 / 3), (np.ones((3, 3)) - np.eye(3)) / np.sqrt(3)
    cross = cross * [[0, -1, 1], [1, 0, -1], [-1, 1, 0]]
    hue = np.cos(turn) * np.eye(3) + (1 - np.cos(turn)) * grey + np.sin(turn) * cross
    coloured = (frames / 255.0 - 0.5) * contrast + 0.5
    return np.round(np.clip(coloured @ (gain * hue.T), 0, 1) * 255).astype(np.uint8)


def _strides(frames: np.ndarray, fps: float) -> list[int]:
    """Strides that give 5 to 12 frames a second and leave a whole clip."""
    last = (len(frames) - 1) // (NUM_FRAMES - 1)
    return [s for s in range(1, last + 1) if 5 <= fps / s <= 12.5]


def video_clip(frames: np.ndarray, fps: float, rng) -> tuple[np.ndarray, float]:
    """A random window in time and in the image, fixed over the clip; see `estimate_motion`."""
    stride = rng.choice(_strides(frames, fps))
    start = rng.integers(len(frames) - (NUM_FRAMES - 1) * stride)
    frames = frames[start::stride][:NUM_FRAMES]
    height, width = frames.shape[1:3]
    largest = min(width, height * WIDTH / HEIGHT)
    window = largest * rng.uniform(max(0.6, min(1.0, WIDTH / largest)), 1.0)
    size = np.array([window, window * HEIGHT / WIDTH])
    left, top = rng.uniform(0, 1, 2) * np.maximum((width, height) - size, 0)
    clip = resample(frames, (HEIGHT, WIDTH), (left, top, left + size[0], top + size[1]))
    clip = np.round(clip * 255).astype(np.uint8)
    return clip, estimate_motion(clip)


def estimate_motion(frames: np.ndarray) -> float:
    """Travel in image widths, from the frames [T, H, W, 3] alone: mean over the four quarters.

    Lucas and Kanade's least squares for one shift per quarter and pair of frames, blurred so that
    steps of a few pixels stay in its reach; the shifts are summed over time.
    """
    grey = gaussian_filter(frames.mean(-1), (0, 3, 3))
    dy, dx = np.gradient((grey[1:] + grey[:-1]) / 2, axis=(1, 2))
    dt = np.diff(grey, axis=0)

    def total(values):
        t, h, w = values.shape
        return values.reshape(t, 2, h // 2, 2, w // 2).mean((2, 4))

    xx, xy, yy = total(dx * dx) + 0.05, total(dx * dy), total(dy * dy) + 0.05
    xt, yt, det = total(dx * dt), total(dy * dt), xx * yy - xy**2
    shift = np.stack([xy * yt - yy * xt, xy * xt - xx * yt]) / det
    return float(np.linalg.norm(shift.sum(1), axis=0).mean() / frames.shape[2])
