"""What a run takes instead of words and the shipped depth: camera files, source poses, converted depth networks."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from recapture_jax.camera import path as camera_path
from recapture_jax.camera.formats import nerfstudio_camera_path, write_path
from recapture_jax.config import default_config, validate
from recapture_jax.depth import base, networks
from recapture_jax.depth.fastdepth import FastDepth
from recapture_jax.errors import InputError
from recapture_jax.first_stage import FirstStage, move_name
from recapture_jax.video.write import write_video

T, H, W = 3, 64, 96
MODEL = {"num_frames": T, "vae": {"block_out_channels": [8, 8, 8]}}


@pytest.fixture
def stage(tmp_path):
    """A first stage over a small clip and 3 m of depth, by configuration overrides."""
    noise = np.random.default_rng(0).random((T, H, W, 3)).astype(np.float32)
    write_video(tmp_path / "clip.mp4", noise, 8)
    np.save(tmp_path / "depth.npy", np.full((T, H, W), 3.0, np.float32))

    def make(**changes):
        config = default_config("smoke")
        config.video.path, config.output.root = str(tmp_path / "clip.mp4"), str(tmp_path / "out")
        config.video.num_frames, config.video.short_side = T, H
        config.depth.estimator, config.depth.path = "precomputed", str(tmp_path / "depth.npy")
        config.update_from_flattened_dict(changes)
        validate(config)
        first = FirstStage(config, MODEL)
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

    def load(path):
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
    assert first.inputs["depth"]


def test_names_in_the_table_of_modes_are_those_the_networks_give():
    sources = {source for source, _ in networks.STABILISE}
    assert sources <= set(networks.ARCHITECTURES)
    assert all(kind in base.KINDS for _, kind in networks.STABILISE)
    assert FastDepth.__name__.lower() not in sources


@pytest.mark.parametrize(
    "changes, says",
    [
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
