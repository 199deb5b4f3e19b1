"""A moving source: locked off, stabilised, on top of its motion; and time that stands still."""

import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax.camera import pose
from recapture_jax.camera.moves import build_trajectory
from recapture_jax.camera.pinhole import intrinsics_from_fov
from recapture_jax.camera.timing import describe_time, source_frames
from recapture_jax.camera.trajectory import MODES, absolute, relative_poses, smooth_poses
from recapture_jax.errors import InputError

K = intrinsics_from_fov(40, 48, 64)
T = 25


def walk(shake=0.0):
    """A camera that walks forward and pans evenly, with a shake on top."""
    s, rng = np.linspace(0, 1, T), np.random.default_rng(0)
    noise = rng.normal(size=(5, T)) * shake
    position = np.stack([noise[0], noise[1], 2 * s + noise[2]], -1)
    return pose.compose(
        pose.translation(jnp.asarray(position, jnp.float32)),
        pose.rotation_y(jnp.asarray(0.6 * s + noise[3], jnp.float32)),
        pose.rotation_x(jnp.asarray(noise[4], jnp.float32)),
    )


def world(moves, mode, source, **options):
    """`world_from_target` of a move in one of the modes."""
    film = build_trajectory(moves, T, K, 2.0)
    return np.asarray(pose.compose(source, relative_poses(film, mode, source, **options)))


def unevenness(poses):
    """Sum of squared second differences of the positions and view directions."""
    return sum((np.diff(poses[:, :3, c], n=2, axis=0) ** 2).sum() for c in (2, 3))


def test_locked_off_stands_still_whatever_the_source_does():
    """Named for a peer request: no static option; a static preset that keeps the source's shake."""
    source = walk(0.05)
    for words in ("static", "locked-off"):
        poses = world(words, "absolute", source)
        np.testing.assert_allclose(poses, np.tile(source[0], (T, 1, 1)), atol=2e-6)
    np.testing.assert_allclose(world("static", "relative", source), source, atol=1e-6)


def test_stabilised_keeps_the_walk_and_loses_the_shake():
    source, smooth = walk(0.02), walk(0.0)
    steady = world("static", "stabilise", source, sigma=4.0)
    assert unevenness(steady) < 0.02 * unevenness(np.asarray(source))
    np.testing.assert_allclose(steady[0], source[0], atol=2e-6)  # the ends stay
    np.testing.assert_allclose(steady[-1], source[-1], atol=2e-6)
    off = np.abs(steady - np.asarray(smooth))[5:-5].max()
    assert off < np.abs(np.asarray(source) - np.asarray(smooth)).max()
    moved = world("dolly in 0.2", "stabilise", source, sigma=4.0)
    expected = steady @ np.asarray(
        build_trajectory("dolly in 0.2", T, K, 2.0).cameras.world_from_camera
    )
    np.testing.assert_allclose(moved, expected, atol=3e-6)


def test_an_even_motion_is_left_alone():
    source = walk(0.0)
    np.testing.assert_allclose(smooth_poses(source, 3.0), source, atol=1e-5)
    np.testing.assert_array_equal(smooth_poses(source, 0.0), source)
    np.testing.assert_array_equal(smooth_poses(source[:1], 3.0), source[:1])
    # More than a half turn in all: quaternions change sign on the way.
    spin = pose.rotation_y(jnp.linspace(0.0, 2.5 * np.pi, T))
    np.testing.assert_allclose(smooth_poses(spin, 2.0), spin, atol=1e-5)


def test_modes_that_need_poses_say_so():
    film = build_trajectory("static", T, K, 2.0)
    for mode in ("absolute", "stabilise"):
        with pytest.raises(InputError, match="give a pose file"):
            relative_poses(film, mode, None)
        with pytest.raises(InputError, match="shape"):
            relative_poses(film, mode, walk()[:3])
    with pytest.raises(InputError, match="expected one of relative, absolute, stabilise"):
        relative_poses(film, "world", None)
    with pytest.raises(InputError, match="expected 0 or more"):
        smooth_poses(walk(), -1.0)
    assert relative_poses(film, MODES[0], None).shape == (T, 4, 4)


def test_bullet_time_shows_one_frame_while_the_camera_moves():
    """Named for a peer whose bullet time freezes the last frame only."""
    np.testing.assert_array_equal(source_frames("freeze 12", 25), np.full(25, 12))
    frames = source_frames("play 0-12; freeze 12 for 5; play 13-end", 16)
    np.testing.assert_array_equal(frames, [*range(13), *[12] * 5, 13, 14, 15])
    np.testing.assert_array_equal(source_frames("play", 4), [0, 1, 2, 3])
    np.testing.assert_array_equal(
        source_frames("play 3-0, freeze end for 2", 4), [3, 2, 1, 0, 3, 3]
    )
    # The source's poses follow the frames, so a frozen source is a still one.
    source = walk(0.05)[source_frames("freeze 12", T)]
    film = build_trajectory("orbit right 20", T, K, 2.0)
    np.testing.assert_allclose(absolute(film, source), film.cameras.world_from_camera, atol=3e-6)


def test_slow_motion_and_time_lapse_repeat_and_leave_out_frames():
    np.testing.assert_array_equal(source_frames("play 0-2 for 6", 9), [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(source_frames("play 4-2 for 5", 9), [4, 4, 3, 3, 2])
    np.testing.assert_array_equal(source_frames("play for 3", 9), [0, 4, 8])
    np.testing.assert_array_equal(source_frames("play 3-9 for 1; freeze end", 10), [3, *[9] * 10])


def test_time_in_words():
    spec = "play 0-3; freeze 3 for 6; play 3-0 for 8; play 4-end for 2; freeze end for 1"
    assert describe_time(spec, 9) == [
        "frames 0 to 3: source frames 0 to 3",
        "frames 4 to 9: time stands still in source frame 3",
        "frames 10 to 17: source frames 3 to 0, backwards, 2 times slower (frames repeat)",
        "frames 18 to 19: source frames 4 to 8, 2.5 times faster",
        "frame 20: time stands still in source frame 8",
    ]


@pytest.mark.parametrize("mode", MODES)
def test_a_still_camera_stands_still_with_time(mode):
    """Whatever the mode: while time is frozen, no motion of the source or of its smoothing is left."""
    shown = source_frames("play 0-9; freeze 9 for 8; play 10-end", T)
    film = build_trajectory("static", len(shown), K, 2.0)
    poses = relative_poses(film, mode, walk(0.05), 4.0, shown)
    frozen = np.asarray(poses)[9:18]
    np.testing.assert_array_equal(frozen, np.broadcast_to(frozen[0], frozen.shape))
    playing = build_trajectory("static", T, K, 2.0)
    usual = np.asarray(relative_poses(playing, mode, walk(0.05), 4.0))
    np.testing.assert_allclose(poses, usual[shown], atol=1e-6)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("", "no time given"),
        ("freeze", "cannot read the time 'freeze'"),
        ("freeze 25", "frame 25 is after the end: expected at most 24"),
        ("play 0-30", "frame 30 is after the end"),
        ("freeze 3 for 0", "lasts 0 frames"),
        ("rewind 3-0", "expected play, play 3-12, freeze 12"),
        ("play 3", "cannot read"),
        ("play 3-9 for 0", "lasts 0 frames"),
        ("play 3-9 for", "cannot read"),
        ("freeze 3 for 9999999", "lasts 9999999 frames: expected at most 10000"),
    ],
)
def test_bad_times_are_refused_in_one_line(spec, message):
    with pytest.raises(InputError, match=message) as error:
        source_frames(spec, 25)
    assert "\n" not in str(error.value)
