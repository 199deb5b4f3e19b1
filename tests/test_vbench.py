"""The VBench bridge: exports, our own dimension, the package's results, a stand-in package."""

import json
import sys
import textwrap

import numpy as np
import pytest

from experiments.vbench import __main__ as command
from experiments.vbench import export, scores
from recapture_jax.errors import InputError
from recapture_jax.evaluation.temporal import temporal_flickering
from recapture_jax.video.read import read_clip
from recapture_jax.video.write import write_video


def ramp(step):
    """A clip whose every frame is `step` bytes brighter than the one before."""
    frames = [np.full((32, 48, 3), 60 + step * t, np.uint8) for t in range(5)]
    return np.stack(frames)


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "clips"
    source.mkdir()
    write_video(source / "dog.mp4", ramp(20), 8)
    write_video(source / "car.mp4", ramp(0), 8)
    prompts = {"dog": {"prompt": "a dog runs", "object": "dog"}, "car": "a parked car", "x": "y"}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    return tmp_path


def test_export_is_what_the_package_takes(folder):
    prompts = export.read_prompts(folder / "prompts.json")
    copies = export.export(export.clips(folder / "clips"), prompts, folder / "out")
    assert sorted(p.name for p in (folder / "out" / "videos").iterdir()) == ["car.mp4", "dog.mp4"]
    assert copies["dog"].read_bytes() == (folder / "clips" / "dog.mp4").read_bytes()
    given = json.loads((folder / "out" / "prompts.json").read_text())
    assert given == {"dog.mp4": "a dog runs", "car.mp4": "a parked car"}
    (info,) = json.loads((folder / "out" / "full_info.json").read_text())
    assert info["auxiliary_info"] == {"object_class": {"object": "dog"}}
    assert info["video_list"] == [str(copies["dog"].absolute())]


def test_runs_are_clips_by_their_folder(tmp_path):
    run = tmp_path / "cockatoo-orbit"
    run.mkdir()
    write_video(run / "result.mp4", ramp(1), 8)
    assert export.clips(tmp_path) == {"cockatoo-orbit": run / "result.mp4"}


def test_our_own_dimension_is_that_of_the_file(folder):
    found = scores.own(export.clips(folder / "clips"))["temporal_flickering"]
    assert found["car"] == 1.0
    assert found["dog"] == pytest.approx((255 - 20) / 255, abs=1.5 / 255)  # but for the codec
    frames = read_clip(folder / "clips" / "dog.mp4").frames
    assert found["dog"] == temporal_flickering(frames)


def test_command_without_the_package(folder, capsys):
    options = [f"--row=ours={folder / 'clips'}", f"--prompts={folder / 'prompts.json'}"]
    text = command.run(command.parse([*options, f"--dst={folder / 'out'}"]))
    head, _, row = text.splitlines()
    assert head == "| row | clips | Flicker |" and row.startswith("| ours | 2 | 96.")
    assert (folder / "out" / "table.md").read_text() == text + "\n"
    with pytest.raises(InputError, match="LABEL=FOLDER"):
        command.run(command.parse(["--row=ours", *options[1:]]))
    with pytest.raises(InputError, match="'beauty' is not one of"):
        command.run(command.parse([*options, "--dimensions=beauty"]))


STAND_IN = """
    import json, os, pathlib

    class VBench:
        def __init__(self, device, full_info, output):
            self.device, self.output = device, pathlib.Path(output)
            self.output.mkdir(exist_ok=True)

        def evaluate(self, videos_path, name, prompt_list, dimension_list, mode, local):
            assert local and mode == "custom_input" and self.device == "cpu"
            assert "object_class" not in dimension_list
            results = {}
            for dimension in dimension_list:
                # As the package (0.1.5): imaging quality is divided by 100 after the mean alone.
                one = 100 if dimension == "imaging_quality" else 1
                clips = [
                    {"video_path": os.path.join(videos_path, f), "video_results": one * len(p) / 100}
                    for f, p in prompt_list.items()
                ]
                results[dimension] = [0.5, clips]
            (self.output / (name + "_eval_results.json")).write_text(json.dumps(results))
"""
OBJECTS = """
    import json

    def compute_object_class(full_info, device, parts):
        info = json.load(open(full_info))
        clips = [{"video_path": v, "video_results": 0.75} for i in info for v in i["video_list"]]
        return 0.75, clips
"""


def test_command_with_a_package_in_another_environment(folder, monkeypatch):
    package = folder / "environment" / "vbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(textwrap.dedent(STAND_IN))
    (package / "object_class.py").write_text(textwrap.dedent(OBJECTS))
    (package / "utils.py").write_text(
        "def init_submodules(names):\n    return {n: {} for n in names}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    options = [f"--row=ours={folder / 'clips'}", f"--prompts={folder / 'prompts.json'}"]
    options += [f"--dst={folder / 'out'}", f"--python={sys.executable}", "--device=cpu", "--local"]
    options.append("--dimensions=subject_consistency,imaging_quality,object_class")
    text = command.run(command.parse(options))
    head, _, row = text.splitlines()
    assert head == "| row | clips | Subject | Flicker | Imaging | Object |"
    # prompts of 10 and 12 letters; our own flicker; one clip has an object
    cells = [c.strip() for c in row.split("|")[1:-1]]
    assert cells[:3] == ["ours", "2", "11.00"] and cells[4:] == ["11.00", "75.00"]

    (folder / "prompts.json").write_text(json.dumps({"dog": "a dog runs", "car": "a parked car"}))
    text = command.run(command.parse(options))  # Object Class of no object would divide by zero
    assert text.splitlines()[0] == "| row | clips | Subject | Flicker | Imaging |"


def test_failures_of_the_package_are_one_line(folder, monkeypatch):
    copies = export.export(
        export.clips(folder / "clips"), export.read_prompts(folder / "prompts.json"), folder / "o"
    )
    assert copies
    monkeypatch.setenv("PYTHONPATH", str(folder))
    (folder / "vbench.py").write_text("raise RuntimeError('no weights here')\n")
    with pytest.raises(InputError, match="no weights here.*VBENCH_CACHE_DIR"):
        scores.run(sys.executable, folder / "o", ("aesthetic_quality",), "cpu")
    with pytest.raises(InputError, match="cannot be run"):
        scores.run(str(folder / "nothing"), folder / "o", ("aesthetic_quality",), "cpu")
    with pytest.raises(InputError, match="eval_results"):
        scores.read(folder / "clips")
    (folder / "o" / "bad_eval_results.json").write_text('{"aesthetic_quality": 1}')
    with pytest.raises(InputError, match="no result of VBench"):
        scores.read(folder / "o")


def test_bad_exports_are_refused(folder):
    with pytest.raises(InputError, match="expected .mp4 or .gif"):
        export.clips(folder / "environment")
    with pytest.raises(InputError, match="no prompt for the clip 'car'"):
        export.export(export.clips(folder / "clips"), {"dog": {"prompt": "", "object": ""}}, folder)
    (folder / "prompts.json").write_text('["dog"]')
    with pytest.raises(InputError, match="expected JSON"):
        export.read_prompts(folder / "prompts.json")
