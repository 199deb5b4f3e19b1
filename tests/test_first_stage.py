"""What a run takes instead of words and the shipped depth: camera files, source poses, converted depth networks."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax.camera import path as camera_path
from recapture_jax.camera.formats import nerfstudio_camera_path, read_path, write_path
from recapture_jax.camera.trajectory import pivot_depth_from_depth
from recapture_jax.config import default_config, validate
from recapture_jax.depth import base, networks
from recapture_jax.depth.fastdepth import FastDepth
from recapture_jax.errors import InputError
from recapture_jax.first_stage import FirstStage, move_name
from recapture_jax.stages import anchor as anchor_stage
from recapture_jax.video import resize
from recapture_jax.video.clip import Audio
from recapture_jax.video.write import write_png, write_video

T, H, W = 3, 64, 96
MODEL = {"num_frames": T, "vae": {"block_out_channels": [8, 8, 8]}}


@pytest.fixture
def stage(tmp_path):
    """A first stage over a small clip and 3 m of depth, by configuration overrides."""
    noise = np.random.default_rng(0).random((T, H, W, 3)).astype(np.float32)
    write_video(tmp_path / "clip.mp4", noise, 8)
    np.save(tmp_path / "depth.npy", np.full((T, H, W), 3.0, np.float32))

    def make(model=MODEL, **changes):
        config = default_config("smoke")
        config.video.path, config.output.root = str(tmp_path / "clip.mp4"), str(tmp_path / "out")
        config.video.num_frames, config.video.short_side = T, H
        config.depth.estimator, config.depth.path = "precomputed", str(tmp_path / "depth.npy")
        config.update_from_flattened_dict(changes)
        validate(config)
        first = FirstStage(config, model)
        first.read()
        return first

    return make


def planned(first):
    return first.plan(first.config.camera, first.depth()).cameras


def test_camera_file_of_a_run_films_the_same_path_again(stage, tmp_path):
    first = stage(**{"camera.moves": "orbit right 12; zoom in 1.3"})
    said = first.plan(first.config.camera, first.depth())
    file = tmp_path / "cameras.json"
    file.write_text(json.dumps(nerfstudio_camera_path(said, *first.clip.size, 8)))
    again = stage(**{"camera.path": str(file)})
    read = planned(again)
    np.testing.assert_allclose(read.world_from_camera, said.cameras.world_from_camera, atol=1e-5)
    np.testing.assert_allclose(read.intrinsics, said.cameras.intrinsics, rtol=1e-4)
    assert move_name(again.config.camera) == "cameras"
    assert again.inputs["path"]


def test_stabilise_and_absolute_undo_the_source_motion(stage, tmp_path):
    """A static camera on its own tripod, seen from a source that trucks right: it falls behind."""
    poses = np.tile(np.eye(4), (T, 1, 1))
    poses[:, 0, 3] = 0.1 * np.arange(T)
    own = camera_path.PosePath(poses, units="metres", name="source")
    write_path(own, tmp_path / "poses.npz", "npz")
    still = stage(**{"camera.poses": str(tmp_path / "poses.npz"), "camera.mode": "absolute"})
    moved = np.asarray(planned(still).world_from_camera)[:, 0, 3]
    np.testing.assert_allclose(moved, -0.1 * np.arange(T), atol=1e-6)
    relative = stage(**{"camera.poses": str(tmp_path / "poses.npz")})
    np.testing.assert_allclose(
        planned(relative).world_from_camera, np.tile(np.eye(4), (T, 1, 1)), atol=1e-6
    )


def test_converted_network_and_its_way_of_evening_out(stage, tmp_path, monkeypatch):
    """The folder is loaded once, its depth is the run's, and its mode of `align` is the one used."""
    folder = tmp_path / "network"
    folder.mkdir()
    (folder / "source.json").write_text("{}")
    loaded, modes = [], []
    depth = np.full((T, H, W), 2.0, np.float32)

    def load(path, near, far):
        assert (near, far) == (1.0, 20.0)
        loaded.append(pathlib.Path(path))
        return lambda frames: base.DepthMap(depth, "relative", "video_depth_anything")

    monkeypatch.setattr(networks, "load", load)
    from recapture_jax.depth import align

    monkeypatch.setattr(
        align, "stabilise", lambda d, frames, *, mode: modes.append(mode) or dataclasses.replace(d)
    )
    first = stage(**{"depth.estimator": "converted", "depth.path": str(folder)})
    assert float(first.depth().depth.mean()) == pytest.approx(2.0)
    assert loaded == [folder] and modes == ["none"]
    before = first.inputs["depth"]
    (folder / "config.json").write_text('{"max_depth": 20}')
    again = stage(**{"depth.estimator": "converted", "depth.path": str(folder)})
    assert again.inputs["depth"] != before  # another range is another depth


def test_the_lens_beside_a_colmap_file_is_part_of_the_keys(stage, tmp_path):
    lines = [f"{i + 1} 1 0 0 0 {-0.1 * i} 0 0 1 frame_{i}.png\n" for i in range(T)]
    (tmp_path / "images.txt").write_text("\n".join(lines))
    keys = []
    for focal in (80, 120):
        camera = f"1 PINHOLE {W} {H} {focal} {focal} {W / 2} {H / 2}\n"
        (tmp_path / "cameras.txt").write_text(camera)
        poses = {"camera.poses": str(tmp_path / "images.txt"), "camera.mode": "absolute"}
        first = stage(**poses, **{"camera.poses_scale": 1.0})
        assert first.clip.intrinsics[0, 0] == pytest.approx(focal, rel=1e-5)
        first.anchor(first.depth())
        keys.append(first.anchor_key)
    assert len(set(keys)) == 2


def test_an_approach_that_poses_tell_of_stays_in_relative_depth(stage, tmp_path):
    """Evened out to one scale for all frames, depth would no longer be that of the poses."""
    near = np.linspace(3.0, 2.0, T, dtype=np.float32)[:, None, None] * np.ones((H, W), np.float32)
    np.save(tmp_path / "near.npy", near)
    poses = np.tile(np.eye(4), (T, 1, 1))
    poses[:, 2, 3] = np.linspace(0.0, 1.0, T)
    file = tmp_path / "poses.npz"
    write_path(camera_path.PosePath(poses, units="arbitrary"), file, "npz")
    frames = np.full((T, H, W, 3), 0.5, np.float32)
    write_video(tmp_path / "gray.mp4", frames, 8)
    changes = {"video.path": str(tmp_path / "gray.mp4"), "depth.path": str(tmp_path / "near.npy")}
    changes |= {"depth.kind": "relative", "depth.stabilise": True}
    posed = {"camera.poses": str(file), "camera.poses_scale": 1.0, "camera.mode": "absolute"}
    kept, evened = (stage(**changes, **more).depth().depth.mean((1, 2)) for more in (posed, {}))
    np.testing.assert_allclose(kept, near.mean((1, 2)), rtol=0.03)
    assert np.ptp(evened) < 0.1 * np.ptp(near)


@pytest.mark.parametrize("count, said", [(T + 1, f"holds {T + 1} frames"), (T - 1, "give one for")])
def test_poses_are_of_all_frames_of_the_video_or_of_those_used(stage, tmp_path, count, said):
    poses = np.tile(np.eye(4), (count, 1, 1))
    write_path(camera_path.PosePath(poses, units="metres"), tmp_path / "poses.npz", "npz")
    with pytest.raises(InputError, match=said):
        stage(**{"camera.poses": str(tmp_path / "poses.npz"), "camera.mode": "absolute"})


def test_names_in_the_table_of_modes_are_those_the_networks_give():
    sources = {source for source, _ in networks.STABILISE}
    assert sources <= set(networks.ARCHITECTURES)
    assert all(kind in base.KINDS for _, kind in networks.STABILISE)
    assert FastDepth.__name__.lower() not in sources


def rendered(first):
    """Anchor of a first stage, and the same by hand from what its source holds."""
    depth = first.depth()
    anchor = first.anchor(depth)
    untimed = first._source_depth()
    clip = dataclasses.replace(
        first.clip, frames=np.stack([first.plain[i] for i in first.shown]), audio=None
    )
    assert clip.num_frames == len(first.shown) == len(depth.depth)
    by_hand = base.DepthMap(
        np.stack([untimed.depth[i] for i in first.shown]), depth.kind, depth.source
    )
    config = first.config
    again = anchor_stage.render(config.anchor, clip, by_hand, anchor.trajectory)
    return anchor, again


@pytest.fixture
def uneven(stage, tmp_path):
    """A stage whose depth changes from frame to frame, with the frames of its source as `plain`."""
    rng = np.random.default_rng(1)
    depth = 2 + rng.random((T, 8, 12)).repeat(8, 1).repeat(8, 2)
    np.save(tmp_path / "uneven.npy", depth.astype(np.float32))
    changes = {"depth.path": str(tmp_path / "uneven.npy"), "depth.stabilise": False}
    plain = stage(**changes).clip.frames

    def make(moves, time, **more):
        first = stage(**changes, **{"camera.moves": moves, "camera.time": time}, **more)
        first.plain = plain
        return first

    return make


TIMES = {
    "": [0, 1, 2],
    "play": [0, 1, 2],
    "freeze 1": [1, 1, 1],
    "freeze end for 5": [2, 2, 2, 2, 2],
    "play 0-1; freeze 1 for 2; play 2-end": [0, 1, 1, 1, 2],
    "play 2-0": [2, 1, 0],
    "play for 6": [0, 0, 1, 1, 2, 2],
}


@pytest.mark.parametrize("time", TIMES)
def test_frames_depth_and_cameras_follow_the_time(uneven, time):
    """Bit for bit what the frames and the depth of the shown source frames give."""
    first = uneven("orbit right 12", time)
    assert first.shown.tolist() == TIMES[time]
    anchor, by_hand = rendered(first)
    assert (
        len(anchor.frames) == len(anchor.mask) == anchor.trajectory.num_frames == len(first.shown)
    )
    for name in ("frames", "mask", "raw_mask"):
        np.testing.assert_array_equal(getattr(anchor, name), getattr(by_hand, name))
    assert anchor.raw_mask[0].all() and not anchor.raw_mask[-1].all()
    stored = first.anchor(first.depth())
    assert first.stages["anchor"] == "cached"
    np.testing.assert_array_equal(stored.frames, anchor.frames)


def test_frozen_time_and_a_static_camera_give_one_picture(uneven):
    first = uneven("static", "freeze 1 for 4")
    anchor = first.anchor(first.depth())
    for name in ("frames", "mask", "raw_mask"):
        values = getattr(anchor, name)
        np.testing.assert_array_equal(values, np.broadcast_to(values[0], values.shape))
    # The source frame itself, up to the splat's rounding; which frame that is shows in the others.
    np.testing.assert_allclose(anchor.frames[0], first.plain[1], atol=1e-5)
    assert np.abs(anchor.frames[0] - first.plain[0]).max() > 0.3
    assert anchor.raw_mask.all()


def test_frozen_time_changes_by_the_camera_alone(uneven):
    """Frame t of bullet time is what a one-frame clip shows from camera t."""
    jax.clear_caches()  # an earlier run may have compiled one of the two programs with fast_compile
    first = uneven("orbit right 12", "freeze 1")
    depth = first.depth()
    anchor = first.anchor(depth)
    assert np.abs(np.diff(anchor.frames, axis=0)).max() > 0.3
    cameras = anchor.trajectory.cameras
    for t in range(T):
        camera = dataclasses.replace(
            cameras,
            world_from_camera=cameras.world_from_camera[t : t + 1],
            intrinsics=cameras.intrinsics[t : t + 1],
        )
        single = dataclasses.replace(anchor.trajectory, cameras=camera)
        clip = dataclasses.replace(first.clip, frames=first.plain[1:2])
        still = base.DepthMap(first._source_depth().depth[1:2], depth.kind, depth.source)
        seen = anchor_stage.render(first.config.anchor, clip, still, single)
        np.testing.assert_allclose(seen.frames[0], anchor.frames[t], atol=1e-6)
        np.testing.assert_array_equal(seen.raw_mask[0], anchor.raw_mask[t])


def test_pivot_is_that_of_the_first_frame_shown(uneven):
    depths = uneven("static", "")._source_depth().depth
    for time, frame in (("", 0), ("freeze 2", 2), ("play 1-0", 1)):
        first = uneven("dolly in 0.2", time)
        pivot = first.plan(first.config.camera, first.depth()).pivot_depth
        assert pivot == pytest.approx(pivot_depth_from_depth(jnp.asarray(depths[frame])))


def test_time_has_its_own_anchor_and_shares_the_depth(uneven):
    keys = {}
    for time in ("", "freeze 1", "freeze 2"):
        first = uneven("orbit right 12", time)
        first.anchor(first.depth())
        keys[first.anchor_key] = time
        assert first.stages == {"depth": "computed" if not time else "cached", "anchor": "computed"}
    assert len(keys) == 3


@pytest.mark.parametrize("height, width", [(540, 960), (540, 1260), (1200, 540), (541, 967)])
def test_frames_are_resampled_once(stage, tmp_path, height, width):
    """Read so that the model's size is cut out of their middle: twice softens them by a tenth and more."""
    rng = np.random.default_rng(0)
    frames = resize.resample(rng.random((1, height // 2, width // 2, 3)), (height, width))
    (tmp_path / "frames").mkdir()
    for i in range(2):
        write_png(tmp_path / "frames" / f"{i}.png", frames[0])
    changes = {
        "video.path": str(tmp_path / "frames"),
        "video.short_side": 256,
        "video.multiple": 64,
    }
    first = stage(**changes, **{"video.num_frames": 2})
    assert min(first.clip.size) == 256 and first.fit.scale == 1
    once, _ = resize.resize_to_cover_and_crop(frames, first.clip.size)
    sharpness = [np.abs(np.diff(f[0], axis=1)).mean() for f in (first.clip.frames, once)]
    assert sharpness[0] > 0.98 * sharpness[1]


def test_the_length_that_nobody_gave_is_that_of_the_model_or_of_the_clip(stage, capsys):
    first = stage(MODEL | {"num_frames": 9}, **{"video.num_frames": 0})
    assert first.clip.num_frames == T and "frames are used" not in capsys.readouterr().err
    first = stage(MODEL | {"num_frames": 2}, **{"video.num_frames": 0})
    said = capsys.readouterr().err
    assert first.clip.num_frames == 2 and f"2 of the clip's {T} frames are used, 0.25 sec" in said
    assert said.splitlines()[0].endswith(
        f"--config.video.num_frames={T}"
    )  # every second is too many
    stage(MODEL | {"num_frames": 2}, **{"video.num_frames": 2})  # somebody gave it
    assert "frames are used" not in capsys.readouterr().err


def test_a_crop_is_told(stage, capsys):
    stage(**{"video.multiple": 64})
    assert "25% of the picture is cropped" in capsys.readouterr().err
    stage()
    assert "cropped" not in capsys.readouterr().err


def test_folders_that_cannot_be_written_are_refused(stage, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="config.output.root=.*file/out cannot be written"):
        stage(**{"output.root": str(tmp_path / "file" / "out")})


def test_models_of_other_lengths_share_a_cache_and_no_anchor(stage):
    """A number of frames that is left to the model is part of what depth and anchor are known by."""
    for length in (T, 2, T):
        first = stage(MODEL | {"num_frames": length}, **{"video.num_frames": 0})
        depth = first.depth()
        assert len(depth.depth) == len(first.anchor(depth).frames) == length
    assert first.stages == {"depth": "cached", "anchor": "cached"}


def test_source_poses_follow_the_time(stage, tmp_path):
    """The source trucks right; locked off while it plays, then it and time stand still."""
    poses = np.tile(np.eye(4), (T, 1, 1))
    poses[:, 0, 3] = 0.1 * np.arange(T)
    own = camera_path.PosePath(poses, units="metres", name="source")
    write_path(own, tmp_path / "poses.npz", "npz")
    changes = {
        "camera.poses": str(tmp_path / "poses.npz"),
        "camera.time": "play 1-2; freeze 2 for 3",
    }
    offsets = {"absolute": [0, -0.1, -0.1, -0.1, -0.1], "relative": [0.0] * 5}
    for mode, expected in offsets.items():
        first = stage(**changes, **{"camera.mode": mode})
        moved = np.asarray(planned(first).world_from_camera)[:, 0, 3]
        np.testing.assert_allclose(moved, expected, atol=1e-6)


@pytest.mark.parametrize("time, base", [("", 0), ("freeze 1", 1)])
def test_a_path_in_the_world_of_the_poses(stage, tmp_path, time, base):
    """Two COLMAP-like files of one world: the new camera is where that world has it."""
    rng, c, s = np.random.default_rng(3), np.cos(0.4), np.sin(0.4)
    turn = np.array([[c, 0, s, 5.0], [0, 1, 0, -2.0], [-s, 0, c, 7.0], [0, 0, 0, 1]])
    own, new = np.tile(turn, (T, 1, 1)), np.tile(turn, (T, 1, 1))
    own[:, :3, 3] += rng.normal(size=(T, 3))
    new[:, :3, 3] += rng.normal(size=(T, 3))
    for name, poses in (("poses", own), ("path", new)):
        path = camera_path.PosePath(poses, "arbitrary", name=name)
        write_path(path, tmp_path / f"{name}.npz", "npz")
    files = {f"camera.{name}": str(tmp_path / f"{name}.npz") for name in ("poses", "path")}
    shared = {"camera.mode": "absolute", "camera.poses_scale": 0.5, "camera.path_world": "poses"}
    first = stage(**files, **shared, **{"camera.time": time})
    film = np.asarray(planned(first).world_from_camera)
    shown = own[first.shown]
    expected = np.linalg.inv(shown) @ new
    expected[:, :3, 3] *= 0.5
    np.testing.assert_allclose(film, expected, atol=1e-5)
    alone = stage(**files, **{"camera.path_scale": 0.5, "camera.poses_scale": 0.5})
    assert np.allclose(planned(alone).world_from_camera[0], np.eye(4), atol=1e-6)


def test_options_of_a_format_reach_the_file(stage, tmp_path):
    text = "[1 0 0 0] [0 1 0 0] [0 0 1 0] [{} 0 0 1]"
    frames = {
        f"frame{t}": {"cam01": text.format(0), "cam02": text.format(40 * t)} for t in range(T)
    }
    (tmp_path / "cameras.json").write_text(json.dumps(frames))
    changes = {"camera.path": str(tmp_path / "cameras.json")}
    first = stage(**changes, **{"camera.path_format": "recammaster camera=cam02"})
    forward = np.asarray(planned(first).world_from_camera)[:, 2, 3]
    np.testing.assert_allclose(forward, [0, 0.4, 0.8], atol=1e-6)
    with pytest.raises(InputError, match="'recammaster camera=cam01'"):
        planned(stage(**changes))


def test_three_lines_are_spread_over_the_frames_of_the_result(stage, tmp_path):
    """As the tool does it, not its own clip resampled."""
    (tmp_path / "t.txt").write_text("0 30 5 20 0\n0 0\n0 0\n")
    changes = {"camera.path": str(tmp_path / "t.txt"), "camera.path_format": "trajectorycrafter"}
    film = planned(stage(**changes, **{"camera.time": "freeze 0 for 7"})).world_from_camera
    expected = read_path(tmp_path / "t.txt", "trajectorycrafter", num_frames=7).world_from_camera
    np.testing.assert_allclose(film[:, :3, :3], expected[:, :3, :3], atol=1e-6)


def test_sound_goes_where_time_is_changed(uneven):
    first = uneven("static", "")
    sound = Audio(np.zeros((8000, 1), np.float32), 8000)
    clip = dataclasses.replace(first.clip, audio=sound)
    assert clip.shown(np.arange(T)) is clip
    assert clip.shown(np.array([1, 1])).audio is None


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"camera.time": "freeze 3"}, "frame 3 is after the end: expected at most 2"),
        ({"camera.time": "stop 1"}, "cannot read the time 'stop 1'"),
        ({"camera.path_format": "recamaster"}, "did you mean 'recammaster'"),
        ({"camera.poses_format": "npz way=c2w"}, "cannot read 'way=c2w'"),
        ({"camera.path_world": "poses"}, "expected camera.path and camera.poses"),
        ({"camera.path_world": "mine"}, "expected one of source, poses"),
        ({"camera.path_scale": 2.0}, "path_scale is given without config.camera.path"),
        ({"camera.path": "no/such.json"}, "config.camera.path=no/such.json: no such file"),
        ({"camera.poses": "no/such.txt"}, "config.camera.poses=no/such.txt: no such file"),
        ({"camera.mode": "absolute"}, "config.camera.poses is empty"),
        ({"camera.mode": "upside"}, "expected one of relative, absolute, stabilise"),
        ({"depth.estimator": "converted", "depth.path": ""}, "config.depth.path is empty"),
        ({"depth.estimator": "converted", "depth.path": "no/net"}, "config.depth.path=no/net"),
    ],
)
def test_refused_before_any_work(stage, changes, says):
    with pytest.raises(InputError) as error:
        stage(**changes)
    assert says in str(error.value) and "\n" not in str(error.value)
