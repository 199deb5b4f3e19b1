"""The whole run on a random tiny model and a synthetic clip: outputs, cache, refusals, exit codes."""

import dataclasses
import errno
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import write_model

from recapture_jax import pipeline
from recapture_jax.config import default_config
from recapture_jax.errors import InputError
from recapture_jax.lora.export import load_lora
from recapture_jax.video.clip import Audio
from recapture_jax.video.read import read_clip
from recapture_jax.video.write import write_video

T, H, W, FPS = 5, 90, 70, 12.5  # portrait, not a multiple of anything


@pytest.fixture(scope="session")
def home(tmp_path_factory, tiny_params):
    return make_home(tmp_path_factory.mktemp("pipeline"), tiny_params)


def make_home(folder, params):
    """A folder with a clip, its depth and the tiny model."""
    y, x = np.mgrid[:H, :W]
    frames = np.stack(
        [
            np.stack([np.sin((x + 2 * t) / 7), np.cos(y / 9), np.sin((x + y) / 11)], -1)
            for t in range(T)
        ]
    )
    sound = np.sin(np.arange(int(48000 * T / FPS)) * 0.05)[:, None].astype(np.float32)
    write_video(
        folder / "clip.mp4", (0.5 + 0.4 * frames).astype(np.float32), FPS, Audio(sound, 48000)
    )
    depth = np.where((x - 35) ** 2 + (y - 45) ** 2 < 300, 2.0, 4.0).astype(np.float32)
    np.save(folder / "depth.npy", np.repeat(depth[None], 3, axis=0))
    write_model(folder / "model", params)
    return folder


def configure(home, root="outputs", moves="orbit right 10", **changes):
    config = default_config("smoke")
    config.video.path = str(home / "clip.mp4")
    config.video.num_frames = 3
    config.video.short_side = 32
    config.video.multiple = 16
    config.depth.estimator = "precomputed"
    config.depth.path = str(home / "depth.npy")
    config.model.path = str(home / "model")
    config.camera.moves = moves
    config.lora.rank = 2
    config.tune.steps = 2
    config.output.root = str(home / root)
    config.output.compilation_cache = False
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="session")
def first(home):
    return pipeline.run(configure(home))


def test_leaves_everything_a_run_promises(home, first):
    names = {p.relative_to(first.folder).as_posix() for p in first.folder.rglob("*") if p.is_file()}
    assert names == {
        *(
            "result.mp4",
            "anchor.mp4",
            "mask.mp4",
            "comparison.mp4",
            "cameras.json",
            "metrics.jsonl",
            "run.json",
        ),
        *("lora/spatial.safetensors", "lora/temporal.safetensors"),
    }
    assert first.stages == dict.fromkeys(
        ("depth", "anchor", "spatial", "temporal", "result"), "computed"
    )
    assert first.folder.name.startswith("clip-orbit-right-10-")


def test_result_keeps_fps_duration_aspect_and_sound(home, first):
    result = read_clip(first.folder / "result.mp4")
    assert result.num_frames == 3 and result.fps == pytest.approx(FPS)
    assert result.size == (48, 32)  # 90:70 at short side 32, multiples of 16; the rest is cropped
    assert result.audio is not None and result.audio.duration == pytest.approx(3 / FPS, abs=0.03)


def test_report_and_files_are_readable(first):
    report = json.loads((first.folder / "run.json").read_text())
    assert report["seed"] == 0 and report["config"]["camera"]["moves"] == "orbit right 10"
    assert (
        len(report["hole_share"]) == 3
        and report["hole_share"][0] == 0.0 < report["hole_share"][-1] < 0.9
    )
    assert {"depth", "anchor", "spatial", "temporal", "result"} <= set(report["seconds"])
    assert np.isfinite(report["tuning"]["temporal"]["last"]["loss_temporal"])
    cameras = json.loads((first.folder / "cameras.json").read_text())
    assert len(cameras["camera_path"]) == 3
    np.testing.assert_allclose(
        np.reshape(cameras["camera_path"][0]["camera_to_world"], (4, 4)),
        np.diag([1, -1, -1, 1]),
        atol=1e-6,
    )
    for kind in ("spatial", "temporal"):
        assert all(
            np.abs(d["b"]).max() > 0
            for d in load_lora(first.folder / f"lora/{kind}.safetensors").values()
        )
    lines = [json.loads(line) for line in (first.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["step"]) for r in lines] == [
        (s, n) for s in ("spatial", "temporal") for n in (1, 2)
    ]


def test_repeated_run_does_nothing(home, first):
    before = sorted(home.rglob("*"))
    again = pipeline.run(configure(home))
    assert again.stages == {"run": "cached"} and again.folder.samefile(first.folder)
    assert sorted(home.rglob("*")) == before


def test_a_run_whose_folder_was_removed_is_made_again_once(home, first):
    again = pipeline.run(configure(home, **{"output.name": "removed", "tune.checkpoint_every": 3}))
    shutil.rmtree(again.folder)
    for made in ("written", "cached"):
        config = configure(home, **{"output.name": "again", "tune.checkpoint_every": 3})
        result = pipeline.run(config)
        assert result.folder.name == "again"
        assert (result.stages == {"run": "cached"}) == (made == "cached")


def test_a_run_takes_what_another_made_while_it_waited(home, first, monkeypatch):
    """As if both had found no LoRA: the second looks again once it is its turn."""
    config = configure(home, **{"generate.fps": 9, "output.name": "waited"})
    found = pipeline.Run.cached_lora
    asked = []

    def cached_lora(self, kind):
        asked.append(kind)
        lora = found(self, kind)
        return None if len(asked) <= 2 else lora

    pipeline.run(configure(home, **{"generate.fps": 9, "output.name": "before"}))
    monkeypatch.setattr(pipeline.Run, "cached_lora", cached_lora)
    config.tune.checkpoint_every = 7  # another run, of the same LoRAs
    assert pipeline.run(config).stages["spatial"] == "cached"


def test_runs_of_one_second_and_other_names_keep_every_result(home, first, monkeypatch):
    class Clock(pipeline.datetime.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 1, 2)

    monkeypatch.setattr(pipeline.datetime, "datetime", Clock)
    configs = [configure(home, **{"tune.checkpoint_every": 40 + i}) for i in range(2)]
    folders = [pipeline.run(config).folder for config in configs]
    assert folders[1].name == f"{folders[0].name}-2"
    assert all((folder / "result.mp4").exists() for folder in folders)
    named = pipeline.run(configure(home, **{"tune.checkpoint_every": 40, "output.name": "mine"}))
    assert named.folder.name == "mine" and named.stages["result"] == "cached"

    def taken(folder, *args):  # while this run was at work
        (named.folder.with_name("late") / "other").mkdir(parents=True)

    monkeypatch.setattr(pipeline.outputs, "fill", taken)
    with pytest.raises(InputError, match="late exists; choose another --config.output.name"):
        pipeline.run(configure(home, **{"tune.checkpoint_every": 42, "output.name": "late"}))


def test_another_move_reuses_depth_and_spatial_lora(home, first):
    other = pipeline.run(configure(home, moves="static"))
    assert other.stages["depth"] == other.stages["spatial"] == "cached"
    assert (
        other.stages["anchor"] == other.stages["temporal"] == other.stages["result"] == "computed"
    )
    source, anchor = (read_clip(home / "clip.mp4", 3), read_clip(other.folder / "anchor.mp4"))
    assert json.loads((other.folder / "run.json").read_text())["hole_share"] == [0.0] * 3
    assert source.num_frames == anchor.num_frames
    mask = read_clip(other.folder / "mask.mp4").frames
    assert mask.min() > 0.98


def test_bullet_time(home, first, monkeypatch):
    """One source frame on the path; LoRAs of its own, of which the spatial one serves any camera."""
    taught = []
    prepare = pipeline.tune_stage.source_data

    def source_data(model, frames, *args):
        taught.append(frames)
        return prepare(model, frames, *args)

    monkeypatch.setattr(pipeline.tune_stage, "source_data", source_data)
    frozen = pipeline.run(configure(home, **{"camera.time": "freeze 1 for 4"}))
    assert frozen.stages.pop("depth") == "cached"
    assert set(frozen.stages.values()) == {"computed"}
    report = json.loads((frozen.folder / "run.json").read_text())
    assert report["source_frames"] == [1, 1, 1, 1]
    assert report["config"]["camera"]["time"] == "freeze 1 for 4"
    assert frozen.folder.name.startswith("clip-orbit-right-10-freeze-1-for-4-")
    assert json.loads((first.folder / "run.json").read_text())["source_frames"] == [0, 1, 2]
    assert len(taught) == 1 and len(taught[0]) == 1  # the frozen frame, once
    for name in ("result", "anchor", "mask", "comparison"):
        assert read_clip(frozen.folder / f"{name}.mp4").num_frames == 4
    assert read_clip(frozen.folder / "result.mp4").audio is None
    compared = read_clip(frozen.folder / "comparison.mp4").frames[:, :, : 48 // 2]
    np.testing.assert_allclose(compared[0], compared[3], atol=0.1)  # the source stands still
    other = pipeline.run(configure(home, moves="static", **{"camera.time": "freeze 1 for 4"}))
    assert other.stages["spatial"] == "cached" and other.stages["temporal"] == "computed"


def test_same_seed_gives_the_same_bits_without_the_cache(home, first):
    again = pipeline.run(configure(home, root="elsewhere"))
    a, b = ((p.folder / "result.mp4").read_bytes() for p in (first, again))
    assert a == b


def test_weights_in_main_memory_give_the_same_bits(home, first):
    models = {}
    config = configure(home, root="offloaded", **{"model.offload": "always"})
    result = pipeline.run(config, models)
    assert set(result.stages.values()) == {"computed"}
    kept = [leaf for m in models.values() for x in m.values() for leaf in jax.tree.leaves(x.params)]
    assert kept and all(isinstance(leaf, np.ndarray) for leaf in kept)
    assert json.loads((result.folder / "run.json").read_text())["memory"]["offload"] is True
    a, b = (p.folder / "result.mp4" for p in (first, result))
    assert a.read_bytes() == b.read_bytes()
    for kind in ("spatial", "temporal"):
        a, b = (load_lora(p.folder / "lora" / f"{kind}.safetensors") for p in (first, result))
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_another_sampling_setting_reuses_all_but_the_result(home, first):
    config = configure(home)
    config.generate.sdedit_sigma = 0.0
    result = pipeline.run(config)
    assert result.stages.pop("result") == "computed"
    assert set(result.stages.values()) == {"cached"}  # sampling settings do not touch the LoRAs


def test_a_run_in_shorter_windows_is_another_run(home, monkeypatch, capsys):
    """What a device with little memory made is found there again, and by no device with more."""
    settled, root, plan = {}, "windows", pipeline.preflight.plan

    def small(*args):
        return dataclasses.replace(plan(*args), **settled)

    monkeypatch.setattr(pipeline.preflight, "plan", small)
    runs = {}
    for name, windows in (("short", {"window": 2, "window_overlap": 1}), ("whole", {})):
        settled.clear()
        settled.update(windows)
        result = pipeline.run(configure(home, root=root, **{"output.name": name}))
        for stage in ("temporal", "result"):
            assert result.stages[stage] == "computed"
        assert result.stages["spatial"] == ("computed" if windows else "cached")  # of single frames
        again = pipeline.run(configure(home, root=root, **{"output.name": name}))
        assert again.stages == {"run": "cached"} and again.folder.samefile(result.folder)
        runs[name] = json.loads((result.folder / "run.json").read_text())
    assert runs["short"]["config"]["model"]["window"] == runs["short"]["memory"]["window"] == 2
    assert runs["short"]["config"]["model"]["window_overlap"] == 1
    assert runs["whole"]["config"]["model"]["window"] == 0
    asked = configure(home, root=root, **{"model.window": 2, "model.window_overlap": 1})
    assert pipeline.run(asked).stages == {"run": "cached"}  # the same run by another way


BAD_RUNS = [
    ({"video.path": "missing.mp4"}, "missing.mp4"),
    ({"video.num_frames": 50}, "5 frames"),
    ({"video.start": 4}, "lower num_frames, start or stride"),
    ({"video.multiple": 12}, "multiple of 8"),
    ({"model.path": "no_such_model"}, "converters.svd"),
    ({"depth.path": "no_depth.npy"}, "no_depth.npy"),
    ({"camera.moves": "pan right 170"}, "smaller move"),
    ({"camera.time": "freeze 3"}, "expected at most 2, the last of 3 frames"),
    ({"mesh.data": 4096}, "devices"),
    ({"model.attention": "flash"}, "runs on a TPU"),
    ({"model.attention": "cudnn"}, "runs on a GPU"),
    ({"output.name": "taken"}, "exists"),
]


@pytest.mark.parametrize(
    "changes, says", BAD_RUNS, ids=[next(iter(c)) + f"-{i}" for i, (c, _) in enumerate(BAD_RUNS)]
)
def test_bad_run_is_refused_and_leaves_nothing(home, tmp_path, changes, says):
    (home / "refused" / "taken").mkdir(parents=True, exist_ok=True)
    before = {p for p in (home / "refused").rglob("*") if "cache" not in p.parts}
    with pytest.raises(InputError) as error:
        pipeline.run(configure(home, root="refused", **changes))
    assert says in str(error.value) and "\n" not in str(error.value)
    assert {p for p in (home / "refused").rglob("*") if "cache" not in p.parts} == before


def test_full_disk_leaves_no_half_written_output(home, first, monkeypatch):
    """The stages are cached already; writing the outputs fails at the last file."""
    config = configure(home)
    config.output.name = "no-room"
    config.output.root, config.output.cache = str(home / "full"), str(home / "outputs" / "cache")
    config.tune.checkpoint_every = 1  # another run key, so that it is not simply found done

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "run.json")

    monkeypatch.setattr(pipeline.outputs, "nerfstudio_camera_path", full)
    with pytest.raises(OSError, match="No space left"):
        pipeline.run(config)
    assert not list((home / "full").glob("*"))


def test_a_full_device_is_told_with_the_stage_and_what_to_lower(home, first, monkeypatch):
    def full(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    monkeypatch.setattr(pipeline.generate_stage, "generate", full)
    with pytest.raises(InputError, match="out of memory at stage result; .*decode_chunk"):
        pipeline.run(configure(home, **{"generate.sdedit_sigma": 0.3}))


def call(*arguments):
    command = [sys.executable, "-m", "recapture_jax.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "arguments, says",
    [
        ((), "--config is missing"),
        (("--config=configs/orbit.py:huge",), "small, smoke, svd, svd_xt"),
        (("--config=configs/orbit.py", "--config.tune.stepps=3"), "steps"),
        (("--config=configs/nothing.py",), "nothing.py"),
        (("--config=configs/orbit.py", "--config.video.path=nowhere.mp4"), "nowhere.mp4"),
    ],
    ids=["no-config", "variant", "typo", "no-file", "no-video"],
)
def test_command_line_refuses_with_exit_code_2(arguments, says):
    done = call(*arguments)
    assert done.returncode == 2, done.stderr
    message = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(message) == 1 and says in message[0]
    assert "Traceback" not in done.stderr
