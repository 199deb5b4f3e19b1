"""Clips of photos: same layout as the rendered ones, deterministic, resumable, exact motion."""

import numpy as np
import pytest
from PIL import Image

from experiments.pretrain_small import data, photos
from recapture_jax.errors import InputError

SHAPE = (14, 96, 160, 3)


def textured_photo(seed, size=(320, 200)):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 10, size[0] // 10, 3))
    return Image.fromarray(noise.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


PHOTOS = [textured_photo(0), textured_photo(1, (180, 300))]


class Fixed:
    """Draws in the middle of every range, so that only the given decisions vary."""

    def __init__(self, decision):
        self._decision = decision

    def random(self, size=None):
        return self._decision if size is None else np.full(size, self._decision)

    def uniform(self, low, high, size=None):
        middle = (low + high) / 2
        return middle if size is None else np.full(size, middle)

    def normal(self, mean, deviation):
        return mean


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in" / "images").mkdir(parents=True)
    for i, photo in enumerate(PHOTOS):
        photo.save(tmp_path / "in" / "images" / f"{i}.png")
    return tmp_path / "in"


def test_a_clip_depends_on_its_number_only():
    frames, motion = photos.make_clip(PHOTOS, [], 0, 3)
    again, motion_again = photos.make_clip(PHOTOS, [], 0, 3)
    other, _ = photos.make_clip(PHOTOS, [], 0, 4)
    assert frames.shape == SHAPE and frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, again)
    assert motion == motion_again
    assert np.abs(frames.astype(int) - other).mean() > 5


def test_a_still_clip_repeats_one_frame():
    frames, motion = photos.photo_clip(PHOTOS[0], PHOTOS, Fixed(0.0))
    assert motion == 0
    np.testing.assert_array_equal(frames, np.broadcast_to(frames[:1], SHAPE))


def test_a_camera_that_pans_right_moves_the_picture_left():
    # Fixed(0.9): moving, no cut-outs, no zoom and no roll; the middle angle is pi, to the left
    frames, motion = photos.photo_clip(PHOTOS[0], PHOTOS, Fixed(0.9))
    expected = 0.525 * 0.4 * 0.65
    assert motion == pytest.approx(expected, abs=1e-6)
    pixels = round(expected * 160)
    error = [
        np.abs(frames[0][:, 40:100].astype(int) - frames[-1][:, 40 + s : 100 + s]).mean()
        for s in (-pixels, 0, pixels)
    ]
    assert error[2] < 0.3 * min(error[:2])
    assert photos.estimate_motion(frames) == pytest.approx(expected, rel=0.15)


def test_every_frame_stays_inside_the_photo():
    white = Image.new("RGB", (300, 200), (255, 255, 255))
    for seed in range(6):
        rng = np.random.default_rng(seed)
        path = photos.camera_path(rng, 1.0)
        place = photos._place(path, white.size, rng)
        for matrix in path[[0, 6, 13]]:
            assert np.asarray(photos._warp(white, place @ matrix, (480, 288))).min() == 255


def test_a_video_gives_windows_of_12_to_5_frames_a_second():
    shades = np.arange(60, dtype=np.uint8)[:, None, None, None]
    frames, motion = photos.video_clip(
        np.broadcast_to(shades * 4, (60, 120, 200, 3)), 24.0, np.random.default_rng(0)
    )
    steps = np.diff(frames[:, 50, 80, 0].astype(int))
    assert frames.shape == SHAPE and set(steps) in ({8}, {12}, {16})
    assert motion == pytest.approx(0, abs=1e-6)


def test_shards_load_like_rendered_ones_and_resume(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SHARD", 2)
    monkeypatch.setattr(photos, "SHARD", 2)
    photos.write_clips(tmp_path / "a", folder, 2)
    photos.write_clips(tmp_path / "a", folder, 4)
    photos.write_clips(tmp_path / "b", folder, 4)
    frames, motion = data.load_split(tmp_path / "a", "photos")
    whole, motion_whole = data.load_split(tmp_path / "b", "photos")
    assert frames.shape == (4, *SHAPE) and motion.dtype == np.float32
    np.testing.assert_array_equal(frames, whole)
    np.testing.assert_array_equal(motion, motion_whole)


def test_a_bad_folder_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="has no photos; expected image files in") as caught:
        photos.write_clips(tmp_path / "out", tmp_path / "nothing", 2)
    assert "\n" not in str(caught.value)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_text("no image")
    with pytest.raises(InputError, match="a.jpg cannot be read as an image") as caught:
        photos.write_clips(tmp_path / "out", tmp_path, 2)
    assert "\n" not in str(caught.value)
