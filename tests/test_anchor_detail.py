"""Frames that a path enlarges are splatted from pictures of more pixels than the model's."""

import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax.camera.moves import build_trajectory
from recapture_jax.camera.pinhole import intrinsics_from_fov
from recapture_jax.config import default_config
from recapture_jax.depth.base import DepthMap
from recapture_jax.errors import InputError
from recapture_jax.first_stage import FirstStage
from recapture_jax.geometry.splat import render_anchor, upsampled
from recapture_jax.stages import anchor as anchor_stage
from recapture_jax.video import resize
from recapture_jax.video.clip import Clip
from recapture_jax.video.read import read_clip
from recapture_jax.video.write import write_video

T, H, W = 3, 32, 48
LENS = intrinsics_from_fov(40, H, W)


def waves(height, width, count=T):
    """Smooth stripes, three to seven pixels of an H x W frame long, `[T, height, width, 3]`."""
    y, x = np.mgrid[:height, :width] + 0.5
    y, x = y * H / height, x * W / width
    frame = np.stack([np.sin(x), np.sin(y / 1.5 + 1), np.sin((x + y) / 2)], -1)
    return np.tile((0.5 + 0.4 * frame).astype(np.float32), (count, 1, 1, 1))


def flat(z=3.0, count=T):
    return np.full((count, H, W), z, np.float32)


def mean_of_four(x):
    return x.reshape(x.shape[0], H, 2, W, 2, 3).mean((2, 4))


def test_magnification_of_a_zoom_a_dolly_and_a_turn():
    zoom = anchor_stage.magnification(flat(), LENS, build_trajectory("zoom in 2", T, LENS, 3.0))
    np.testing.assert_allclose(zoom[[0, -1]], [1, 2], rtol=1e-5)
    path = build_trajectory("dolly in 0.5", T, LENS, 3.0)
    nearer = 3.0 - np.asarray(path.cameras.world_from_camera)[:, 2, 3]
    found = anchor_stage.magnification(flat(), LENS, path)
    np.testing.assert_allclose(found, 3.0 / nearer, rtol=1e-5)
    assert found[-1] > 1.9
    turned = anchor_stage.magnification(
        flat(), LENS, build_trajectory("pan right 10", T, LENS, 3.0)
    )
    np.testing.assert_allclose(turned, 1, atol=0.05)


def test_magnification_counts_what_fills_the_view():
    """A subject at the pivot before a far wall, or before nothing: nearing it, it hides all else."""
    depth = flat(60.0)
    depth[:, 8:-8, 12:-12] = 3.0  # half of each side
    path = build_trajectory("dolly in 0.5", T, LENS, 3.0)
    assert (
        1.5 < anchor_stage.magnification(depth, LENS, path)[-1] < 2
    )  # of its points, three quarters are the wall's
    depth[depth == 60.0] = np.inf
    np.testing.assert_allclose(anchor_stage.magnification(depth, LENS, path)[-1], 2, rtol=1e-5)
    away = build_trajectory("dolly in 0.5; truck right 3", T, LENS, 3.0)  # nothing is left in view
    assert anchor_stage.magnification(depth, LENS, away)[-1] == 0


def test_points_beside_the_camera_do_not_outweigh_the_view():
    depth = flat(3.0)
    depth[:, H // 2, W // 2] = 1.501  # comes to a thousandth of a unit before the lens
    path = build_trajectory("dolly in 0.5", T, LENS, 3.0)
    assert anchor_stage.magnification(depth, LENS, path)[-1] == pytest.approx(2, abs=0.3)


def test_planes_are_upsampled_exactly_and_edges_are_kept():
    y, x = np.mgrid[:16, :24] + 0.5
    plane = lambda u, v: 1 / (0.3 + 0.002 * u + 0.004 * v)  # noqa: E731
    fine_y, fine_x = (np.mgrid[:32, :48] + 0.5) / 2
    depth = plane(x, y).astype(np.float32)
    found = upsampled(jnp.asarray(depth), jnp.ones(depth.shape, bool), 2)
    np.testing.assert_allclose(found, plane(fine_x, fine_y), rtol=1e-5)
    stepped = np.where(x < 10, depth, 3 * depth)
    valid = np.ones(depth.shape, bool)
    stepped[5, 5], valid[5, 5] = np.nan, False
    found = np.asarray(upsampled(jnp.asarray(stepped), jnp.asarray(valid), 2))
    repeated = stepped.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(
        found[:, 19:21], repeated[:, 19:21]
    )  # no depth between the surfaces
    np.testing.assert_array_equal(
        found[9:13, 9:13], repeated[9:13, 9:13]
    )  # nor around what has none
    np.testing.assert_allclose(found[1:8, 1:18], plane(fine_x, fine_y)[1:8, 1:18], rtol=1e-5)


def test_a_zoom_by_two_shows_the_pixels_of_frames_twice_as_large():
    frames = np.random.default_rng(0).random((T, 2 * H, 2 * W, 3)).astype(np.float32)
    path = build_trajectory("zoom in 2", T, LENS, 3.0)
    seen, known = render_anchor(jnp.asarray(frames), jnp.asarray(flat()), LENS, path)
    middle = frames[-1, H // 2 : -H // 2, W // 2 : -W // 2]
    assert seen.shape == (T, H, W, 3) and known.all()
    np.testing.assert_allclose(seen[-1], middle, atol=1e-4)


def test_frames_of_another_shape_than_a_multiple_are_refused():
    path = build_trajectory("zoom in 2", T, LENS, 3.0)
    for size in ((2 * H, W), (2 * H + 1, 2 * W), (H // 2, W // 2)):
        with pytest.raises(InputError, match="depth has shape"):
            render_anchor(jnp.zeros((T, *size, 3)), jnp.asarray(flat()), LENS, path)


def test_only_enlarged_frames_are_asked_for_and_the_others_stay_as_they_were():
    fine = waves(2 * H, 2 * W)
    clip = Clip(mean_of_four(fine), 8.0, intrinsics=np.asarray(LENS))
    path = build_trajectory("zoom in 1.3", T, LENS, 3.0)
    asked = []

    def finer(frames):
        asked.append(frames.tolist())
        return fine[frames]

    args = default_config().anchor, clip, DepthMap(flat(), "metric", "known"), path
    detailed = anchor_stage.render(*args, finer)
    coarse = anchor_stage.render(*args, clip.frames.__getitem__)
    assert asked == [[2]]
    np.testing.assert_array_equal(detailed.frames[:2], coarse.frames[:2])
    np.testing.assert_array_equal(detailed.frames[0], clip.frames[0])
    assert np.abs(detailed.frames[2] - coarse.frames[2]).max() > 0.01


def test_detail_is_nearer_to_the_truth_and_so_is_resampling_without_any():
    fine = waves(4 * H, 4 * W, 2)
    pictures = fine.reshape(2, 2 * H, 2, 2 * W, 2, 3).mean((2, 4))
    clip = Clip(mean_of_four(pictures), 8.0, intrinsics=np.asarray(LENS))
    path = build_trajectory("zoom in 1.6", 2, LENS, 3.0)
    args = default_config().anchor, clip, DepthMap(flat(count=2), "metric", "known"), path
    y, x = np.mgrid[:H, :W] + 0.5
    y, x = (y - H / 2) / 1.6 + H / 2, (x - W / 2) / 1.6 + W / 2
    truth = 0.5 + 0.4 * np.stack([np.sin(x), np.sin(y / 1.5 + 1), np.sin((x + y) / 2)], -1)
    finders = {"coarse": clip.frames.__getitem__, "resampled": None}
    finders["finer"] = pictures.__getitem__
    error = {
        name: float(np.square(anchor_stage.render(*args, finer).frames[-1] - truth).mean() ** 0.5)
        for name, finer in finders.items()
    }
    assert error["finer"] < 0.8 * error["resampled"] and error["resampled"] < 0.8 * error["coarse"]


@pytest.mark.parametrize("time, shown", [("", 2), ("play 2-0", 0)])
def test_a_run_takes_them_from_its_file(tmp_path, monkeypatch, capsys, time, shown):
    pictures = waves(128, 192)
    pictures[1], pictures[2] = pictures[1][::-1], pictures[2][:, ::-1]
    write_video(tmp_path / "clip.mp4", pictures, 8)
    np.save(tmp_path / "depth.npy", flat())
    config = default_config("smoke")
    config.video.path, config.output.root = str(tmp_path / "clip.mp4"), str(tmp_path / "out")
    config.video.num_frames, config.video.short_side = T, 64
    config.depth.estimator, config.depth.path = "precomputed", str(tmp_path / "depth.npy")
    config.camera.moves, config.camera.time = "zoom in 2", time
    first = FirstStage(config, {"num_frames": T, "vae": {"block_out_channels": [8, 8, 8]}})
    first.read()
    assert first.clip.size == (64, 96)
    depth = first.depth()
    file = read_clip(tmp_path / "clip.mp4").frames
    own = first.anchor(depth)
    assert first.stages["anchor"] == "computed"
    np.testing.assert_allclose(own.frames[-1], file[shown, 32:96, 48:144], atol=2e-3)
    np.testing.assert_allclose(own.frames[0], first.clip.frames[0], atol=1e-5)
    monkeypatch.setattr("recapture_jax.first_stage._FINER_PIXELS", 1)
    less = list(first._finer(np.arange(T)))  # too much to read: made of what was read
    assert "too many to read" in capsys.readouterr().err
    np.testing.assert_array_equal(less[0], resize.resample(first.clip.frames[0], (128, 192)))
