"""Paths of poses: units, resampling, and the way into a trajectory or the source's poses."""

import dataclasses

import numpy as np
import pytest
from test_formats import K, wander

from recapture_jax.camera import path as paths
from recapture_jax.camera.formats import read_path, write_path
from recapture_jax.camera.path import PosePath
from recapture_jax.errors import InputError


def test_resampling_keeps_ends_and_speed():
    path = wander(5)
    more = paths.resample(path, 9)
    np.testing.assert_array_equal(more.world_from_camera[::2], path.world_from_camera)
    halves = (path.world_from_camera[1:, :3, 3] + path.world_from_camera[:-1, :3, 3]) / 2
    np.testing.assert_allclose(more.world_from_camera[1::2, :3, 3], halves, atol=1e-6)
    f = path.intrinsics[:, 0, 0]
    np.testing.assert_allclose(more.intrinsics[1::2, 0, 0], np.sqrt(f[1:] * f[:-1]), rtol=1e-6)
    rotation = more.world_from_camera[:, :3, :3]
    np.testing.assert_allclose(
        rotation @ rotation.swapaxes(1, 2), np.tile(np.eye(3), (9, 1, 1)), atol=1e-6
    )
    assert paths.resample(path, 1).num_frames == 1
    assert more.notes == ("resampled from 5 poses to 9 frames",)
    # Uneven times: even in time, not in poses.
    timed = dataclasses.replace(path, times=np.array([0.0, 1, 2, 3, 8]))
    even = paths.resample(timed, 9)
    np.testing.assert_allclose(even.world_from_camera[3], path.world_from_camera[3])


def test_far_from_the_origin_nothing_is_lost():
    path = wander(5)
    path.world_from_camera[:, :3, 3] += 1e6
    near = paths.relative_to_first(paths.resample(path, 9)).world_from_camera
    here = paths.relative_to_first(paths.resample(wander(5), 9)).world_from_camera
    np.testing.assert_allclose(near, here, atol=1e-6)


def test_units_decide_the_scale():
    """Named for the most frequent question: in which unit is my trajectory?"""
    metres, pivot, unknown = (wander(3, units=u) for u in ("metres", "pivot", "arbitrary"))
    assert paths.depth_scale(metres, 4.0, "metric") == 1
    assert paths.depth_scale(pivot, 4.0) == 4
    assert paths.depth_scale(unknown, 4.0, scale=0.3) == 0.3
    for path in (metres, unknown):
        with pytest.raises(InputError, match="expected config.camera.path_scale") as error:
            paths.depth_scale(path, 4.0, "relative")
        hinted = float(str(error.value).partition(" would take")[0].split()[-1])
        far = paths.to_trajectory(path, 3, np.eye(3), 4.0, scale=hinted).cameras.world_from_camera
        reach = np.linalg.norm(np.asarray(far)[:, :3, 3], axis=-1).max()
        assert reach == pytest.approx(0.2 * 4.0, rel=0.01)  # what the refusal promises
    with pytest.raises(InputError, match="above 0"):
        paths.depth_scale(pivot, 4.0, scale=-1)
    still = dataclasses.replace(unknown, world_from_camera=unknown.world_from_camera.copy())
    still.world_from_camera[:, :3, 3] = 7  # turns on the spot: no unit needed
    assert paths.depth_scale(still, 4.0) == 1


def test_to_trajectory_starts_at_the_source_and_keeps_the_clips_lens():
    path = wander(7)
    film = paths.to_trajectory(path, 13, K, 3.0, depth_kind="metric")
    assert film.num_frames == 13
    np.testing.assert_array_equal(film.cameras.world_from_camera[0], np.eye(4))
    np.testing.assert_allclose(film.cameras.intrinsics[0], K)
    assert film.cameras.intrinsics[-1, 0, 0] == pytest.approx(1.2 * K[0, 0], rel=1e-6)
    np.testing.assert_allclose(film.cameras.intrinsics[-1, :2, 2], K[:2, 2])
    expected = np.linalg.inv(path.world_from_camera[0]) @ path.world_from_camera[-1]
    np.testing.assert_allclose(film.cameras.world_from_camera[-1], expected, atol=1e-6)


def test_an_anchored_path_may_start_away_from_the_source():
    path = dataclasses.replace(wander(3, units="pivot"), anchored=True)
    film = paths.to_trajectory(path, 3, K, 2.0)
    np.testing.assert_allclose(film.cameras.world_from_camera[0, :3, 3], [4, 0, -2], atol=1e-6)


def test_source_poses_are_seen_from_the_first_frame_used():
    path = wander(9)
    poses = paths.source_poses(path, 3, start=2, stride=3, depth_kind="metric")
    expected = np.linalg.inv(path.world_from_camera[2]) @ path.world_from_camera[[2, 5, 8]]
    np.testing.assert_allclose(poses, expected, atol=1e-6)
    with pytest.raises(InputError, match="frames 0 to 8"):
        paths.source_poses(path, 4, start=2, stride=3, depth_kind="metric")
    with pytest.raises(InputError, match="pivot depths"):
        paths.source_poses(wander(3, units="pivot"), 3)


def test_scale_of_a_path_in_an_unknown_unit():
    """Named for a peer complaint: external poses need alignment to the clip's own scale."""
    reference = wander(8)
    turned = np.eye(4)
    turned[:3, :3] = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned[:3, :3] *= np.linalg.det(turned[:3, :3])
    turned[:3, 3] = (3, 1, 4)
    other = turned @ reference.world_from_camera
    other[:, :3, 3] *= 0.25
    path = PosePath(other, "arbitrary")
    assert paths.align_scale(path, reference) == pytest.approx(4, rel=1e-6)
    with pytest.raises(InputError, match="as many"):
        paths.align_scale(wander(3), reference)
    with pytest.raises(InputError, match="stands still"):
        paths.align_scale(PosePath(np.tile(np.eye(4), (8, 1, 1)), "metres"), reference)


def test_two_files_of_one_world():
    source, target = wander(5), wander(5)
    target.world_from_camera[:, 1, 3] += 0.5
    path = paths.relative_to(target, source)
    expected = np.linalg.inv(source.world_from_camera[0]) @ target.world_from_camera
    np.testing.assert_allclose(path.world_from_camera, expected, atol=1e-12)
    assert path.anchored
    with pytest.raises(InputError, match="one unit"):
        paths.relative_to(target, wander(5, units="arbitrary"))


def test_shares_of_the_frame_become_pixels(tmp_path):
    """RealEstate10K says shares of width and height, COLMAP wants pixels."""
    shares = dataclasses.replace(wander(), size=(1, 1))
    shares.intrinsics[:] /= np.array([[80.0], [60.0], [1.0]])
    with pytest.raises(InputError, match="pixels of a known size"):
        write_path(shares, tmp_path / "model", "colmap")
    pixels = paths.in_pixels(shares, (120, 160))
    np.testing.assert_allclose(pixels.intrinsics[0], K * [[2], [2], [1]])
    write_path(pixels, tmp_path / "model", "colmap")
    assert read_path(tmp_path / "model").size == (120, 160)
    with pytest.raises(InputError, match="has no intrinsics"):
        paths.in_pixels(wander(lens=False), (4, 4))
    with pytest.raises(InputError, match="no known frame size"):
        paths.in_pixels(dataclasses.replace(wander(), size=None), (4, 4))
