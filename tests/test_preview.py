"""The preview: the run's own pixels, numbers with known answers, advice that holds, refusals."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny import write_model

from recapture_jax import advice as advising
from recapture_jax import pictures, pipeline
from recapture_jax import preview as previewing
from recapture_jax.camera.moves import build_trajectory, parse_moves
from recapture_jax.camera.pinhole import intrinsics_from_fov
from recapture_jax.config import default_config
from recapture_jax.errors import InputError
from recapture_jax.video.read import read_clip
from recapture_jax.video.write import write_video

T, H, W = 4, 72, 104


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_params):
    """A clip of a disc before a wall, its depth, and the tiny model."""
    folder = tmp_path_factory.mktemp("preview")
    y, x = np.mgrid[:H, :W]
    pattern = np.stack([np.sin(x / 5), np.cos(y / 7), np.sin((x + y) / 9)], -1)
    frames = np.repeat((0.5 + 0.4 * pattern)[None], T, 0).astype(np.float32)
    write_video(folder / "clip.mp4", frames, 8)
    depth = np.where((x - 52) ** 2 + (y - 36) ** 2 < 400, 2.0, 4.0).astype(np.float32)
    np.save(folder / "depth.npy", np.repeat(depth[None], 3, 0))
    write_model(folder / "model", tiny_params)
    return folder


def configure(home, moves="orbit right 12", root="outputs", **changes):
    config = default_config("smoke")
    config.video.path = str(home / "clip.mp4")
    config.video.num_frames, config.video.short_side, config.video.multiple = 3, 64, 16
    config.depth.estimator, config.depth.path = "precomputed", str(home / "depth.npy")
    config.model.path = str(home / "model")
    config.camera.moves, config.output.root = moves, str(home / root)
    config.output.compilation_cache = False
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def seen(home):
    return previewing.preview(configure(home))


def run_without_model(config, monkeypatch):
    """The pipeline with its model stages left out: the result is the anchor."""
    caught = []
    monkeypatch.setattr(pipeline.Run, "_tune", lambda self, anchor: caught.append(anchor) or {})
    monkeypatch.setattr(pipeline.Run, "_generate", lambda self, anchor, loras: anchor.frames)
    result = pipeline.run(config)
    return result, caught[0]


# --- the run's own pixels -----------------------------------------------------------------------


def test_pixels_are_those_of_the_run(home, seen, monkeypatch):
    """Computed apart, without a common cache, and equal to the bit."""
    result, anchor = run_without_model(configure(home, root="apart"), monkeypatch)
    assert result.stages["anchor"] == "computed"
    for name in ("frames", "mask", "raw_mask"):
        np.testing.assert_array_equal(getattr(seen.anchor, name), getattr(anchor, name))
    written = read_clip(result.folder / "mask.mp4").frames[..., 0] > 0.5
    assert (written == seen.anchor.mask).mean() > 0.999  # the video is compressed
    said = json.loads((result.folder / "run.json").read_text())
    for name in ("hole_share", "lens", "depth"):
        assert said[name] == seen.report[name]
    assert "assumed" in said["lens"] and "40.0 degrees" in said["lens"]
    assert said["depth"]["kind"] == "metric" and said["depth"]["sky"]["share"] == 0


def test_run_takes_depth_and_anchor_from_the_preview(home, seen, monkeypatch):
    result, _ = run_without_model(configure(home), monkeypatch)
    assert result.stages["depth"] == result.stages["anchor"] == "cached"


def test_preview_needs_no_weights(home):
    config = configure(home, root="no-weights")
    config.variant, config.model.path = "svd_xt", str(home / "nothing-there")
    assert previewing.preview(config).report["frames"] == 3


# --- numbers ------------------------------------------------------------------------------------


def test_report(seen):
    report = seen.report
    assert report["frames"] == 3 and report["size"] == [64, 96]
    for name in ("hole_share", "untrusted_share", "longest_hole", "parallax", "tear_risk"):
        assert len(report[name]) == 3 and report[name][0] == 0, name
        assert all(np.isfinite(report[name]))
    assert 0 < report["hole_share"][1] < report["hole_share"][2] < 0.5
    assert report["worst_frame"] == 2
    assert report["magnification"] == pytest.approx([1, 1, 1], abs=0.1)
    assert report["time"] == ["frames 0 to 2: source frames 0 to 2"]
    assert all(u >= h for u, h in zip(report["untrusted_share"], report["hole_share"], strict=True))
    assert 0 < report["tear_risk"][2] < 0.2
    json.dumps(report)


def test_bullet_time_is_seen(home):
    """As many frames as it says, all of one source frame, in its own folder and in words."""
    config = configure(home, root="bullet", **{"camera.time": "freeze 1 for 5"})
    frozen = previewing.preview(config)
    np.testing.assert_array_equal(frozen.source, np.repeat(frozen.source[:1], 5, 0))
    assert frozen.report["source_frames"] == [1] * 5 and len(frozen.anchor.frames) == 5
    text = str(frozen)
    assert "orbit right 12; freeze 1 for 5: 5 frames" in text
    assert "time: frames 0 to 4: time stands still in source frame 1\n" in text
    assert "advice: orbit right 12 leaves" in text
    folder = previewing.target(config)
    assert folder.name == "preview-clip-orbit-right-12-freeze-1-for-5"
    config.camera.moves = "pan right 1; " * 40  # a long sentence is no name that the disk refuses
    assert len(previewing.target(config).name) < 200
    previewing.write(frozen, folder)
    assert json.loads((folder / "report.json").read_text())["time"] == frozen.report["time"]


def test_longest_hole_is_what_has_to_be_bridged():
    known = np.ones((4, 10, 30), bool)
    known[1, :, :4] = False  # a strip along the border: 4 across, 10 long
    known[2, 3:8, 5:25] = False  # 5 x 20
    known[2, 0, 0] = False
    known[3] = False
    assert advising.longest_holes(known) == [0, 4, 5, 10]


def test_parallax_in_closed_form():
    """Sideways by b, depths 2 and 4: they part by f b (1/2 - 1/4); no turn adds to it."""
    height, width = 40, 60
    k = intrinsics_from_fov(50, height, width)
    depth = np.full((2, height, width), 4.0, np.float32)
    depth[:, 10:30, 20:40] = 2.0
    truck = build_trajectory("truck right 0.1", 2, k, 2.0)
    parallax, torn = advising.parallax_and_tears(depth, k, truck, 0.05)
    assert parallax == pytest.approx([0, float(k[0, 0]) * 0.2 / 4], abs=1e-4)
    # The rims of the square, 2 pixels to either side of its outline: 24 x 24 - 16 x 16.
    assert torn == pytest.approx([0, (24 * 24 - 16 * 16) / (height * width)])
    for words in ("pan right 10", "zoom in 2", "roll cw 20"):
        path = build_trajectory(words, 2, k, 2.0)
        parallax, torn = advising.parallax_and_tears(depth, k, path, None)
        assert max(parallax) < 1e-3 and torn == [0, 0]


# --- advice -------------------------------------------------------------------------------------


def holes_of(home, moves):
    return max(previewing.preview(configure(home, moves)).report["hole_share"])


@pytest.mark.parametrize("also", ["", "; zoom in 1.5"])
def test_advice_keeps_the_limit_and_is_not_timid(home, also):
    """What it says holds in a preview of its own, and a fifth more would not."""
    result = previewing.preview(configure(home, f"orbit right 60{also}"), limit=0.2)
    advice = result.report["advice"]
    assert "under 20 %" in advice["text"] and advice["moves"].startswith("orbit right ")
    assert holes_of(home, advice["moves"]) == pytest.approx(advice["hole_share"], abs=1e-4)
    assert advice["hole_share"] <= 0.2
    degrees = parse_moves(advice["moves"])[0].amount
    assert holes_of(home, f"orbit right {1.2 * degrees}{also}") > 0.2


def test_advice_upwards_and_in_words():
    """A made-up clip whose hole share is a known function of the move's amount."""
    k = intrinsics_from_fov(50, 8, 8)

    class Search:
        def quick(self, path):
            angle = np.degrees(np.arcsin(float(path.cameras.world_from_camera[-1, 0, 2])))
            return np.array([0.0, abs(angle) / 100])

        def exact(self, path, frame):
            return float(self.quick(path)[frame])

        def beyond(self, path):
            return False

    def advise(words, limit=0.3):
        def plan(text):
            return build_trajectory(text, 2, k, 1.0)

        holes = Search().quick(plan(words))
        return advising.advise(words, plan, Search(), holes, limit)

    found = advise("pan right 41 ease-in")
    assert (
        found.text
        == (
            "pan right 41 ease-in leaves 41 % unknown at the end; "
            "pan right 29 ease-in keeps it under 30 %"
        )
        or "pan right 30" in found.text
    )
    assert advise("pan right 12").moves in ("pan right 29", "pan right 30")
    assert "up to" in advise("pan right 12").text
    assert "even 4 times" in advise("zoom in 1.5").text and not advise("zoom in 1.5").moves
    assert "within 30 %" in advise("static").text
    assert advise("pan right 12", limit=1e-4).moves == ""


def test_what_uncovers_nothing_is_still_not_advised_without_end():
    """Of a wall: it is enlarged three times at most, and seen from in front."""
    k = intrinsics_from_fov(50, 96, 96)
    search = advising.HoleSearch(default_config().anchor, np.full((2, 96, 96), 1.0, np.float32), k)

    def plan(text):
        return build_trajectory(text, 2, k, 1.0)

    def advise(words, limit=0.3):
        holes = search.quick(plan(words))
        return advising.advise(words, plan, search, holes, limit)

    assert parse_moves(advise("zoom in 2").moves)[0].amount == pytest.approx(3, abs=0.05)
    nearer = parse_moves(advise("dolly in 0.3").moves)[0].amount
    assert nearer == pytest.approx(2 / 3, abs=0.02)
    both = advise("zoom in 10; truck right 1")  # weaker, but not so that it is enlarged without end
    assert "zoom in 3" in both.moves or "zoom in 2" in both.moves, both
    already = advise("zoom in 4")
    assert already.moves == "" and "within 30 %" in already.text and "times" not in already.text
    turned = parse_moves(advise("orbit right 50", limit=0.99).moves)[0].amount
    assert 80 < turned <= 90
    assert "hardly more" in advise("zoom in 3").text


def test_scaled_moves_are_rounded_towards_none():
    moves = parse_moves("orbit left 30 ease-in; dolly in 0.1234 0-3; zoom in 4; zoom out 2; static")
    half = " ; ".join(map(str, advising.scaled(moves, 0.5)))
    assert half == "orbit left 15 ease-in ; dolly in 0.061 0-3 ; zoom in 2 ; zoom out 1.41 ; static"
    assert advising.scaled(moves, 1.0)[0] == moves[0]


# --- pictures and files -------------------------------------------------------------------------


def test_files(home, seen, tmp_path):
    folder = tmp_path / "preview-x"
    previewing.write(seen, folder)
    assert {p.name for p in folder.iterdir()} == {"sheet.png", "cameras.png", "report.json"}
    assert json.loads((folder / "report.json").read_text()) == seen.report
    sheet = np.asarray(Image.open(folder / "sheet.png"))
    assert sheet.shape[0] > 4 * 64 and sheet.shape[1] > 3 * 96
    # The mask of the last frame is in the sheet, pixel for pixel: third column, third row.
    top, left = 16 + 2 * (64 + 16 + 6) + 16, 6 + 2 * (96 + 6)
    cut = sheet[top : top + 64, left : left + 96]
    np.testing.assert_array_equal(cut[..., 0] > 127, seen.anchor.mask[2])
    with pytest.raises(InputError, match="--overwrite"):
        previewing.write(seen, folder)
    (folder / "report.json").write_text("old")
    previewing.write(seen, folder, overwrite=True)
    assert json.loads((folder / "report.json").read_text()) == seen.report
    assert [p.name for p in tmp_path.iterdir()] == ["preview-x"]


def test_failed_write_leaves_what_was_there(seen, tmp_path, monkeypatch):
    folder = tmp_path / "preview-x"
    previewing.write(seen, folder)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures, "camera_plot", full)
    with pytest.raises(OSError):
        previewing.write(seen, folder, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["preview-x"]
    assert json.loads((folder / "report.json").read_text()) == seen.report


def test_camera_plot_shows_the_path_where_it_goes():
    """A camera that trucks right is drawn to the right of where it was, and so on."""
    k = intrinsics_from_fov(50, 40, 60)
    panels = {"above": np.s_[:480], "side": np.s_[486:]}

    def travel(words, panel):
        """(down, right) in pixels from the first camera to the last."""
        plot = pictures.camera_plot(build_trajectory(words, 9, k, 2.0), (40, 60)).astype(int)
        r, g, b = np.moveaxis(plot[:, panels[panel]], -1, 0)
        last, first = (r > 200) & (g < 90) & (b < 60), (b > 200) & (r < 60)
        return np.argwhere(last).mean(0) - np.argwhere(first).mean(0)

    assert travel("truck right 0.5", "above")[1] > 20
    assert travel("pedestal up 0.5", "side")[0] < -20
    assert travel("dolly in 0.5", "above")[0] < -20 and travel("dolly in 0.5", "side")[1] > 20


def test_plain_words(seen):
    text = str(seen)
    for part in ("orbit right 12: 3 frames of 64x96", "unknown in each frame: 0 ", "largest hole"):
        assert part in text
    assert "parallax" in text and "tear risk" in text and "advice: orbit right 12 leaves" in text


# --- refusals -----------------------------------------------------------------------------------

BAD = [
    ({"video.path": "missing.mp4"}, "missing.mp4"),
    ({"camera.moves": "wobble 3"}, "wobble"),
    ({"camera.moves": "pan right 170"}, "smaller move"),
    ({"depth.path": "no_depth.npy"}, "no_depth.npy"),
    ({"model.path": "no_such_model"}, "converters.svd"),
    ({"anchor.taps": 9}, "anchor.taps"),
    ({"video.num_frames": 50}, "frames"),
]


@pytest.mark.parametrize("changes, says", BAD, ids=[f"{[*c][0]}-{s}" for c, s in BAD])
def test_bad_input_is_refused_in_one_line(home, changes, says):
    with pytest.raises(InputError) as error:
        previewing.preview(configure(home, root="refused", **changes))
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("limit", [0.0, 1.0, -1.0, float("nan")])
def test_bad_limit(home, limit):
    with pytest.raises(InputError, match="limit"):
        previewing.preview(configure(home), limit)


def call(*arguments):
    command = [sys.executable, "-m", "recapture_jax.preview", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_command(home):
    given = {
        "video.path": home / "clip.mp4",
        "video.num_frames": 3,
        "video.short_side": 64,
        "video.multiple": 16,
        "depth.estimator": "precomputed",
        "depth.path": home / "depth.npy",
        "model.path": home / "model",
        "output.root": home / "command",
        "output.compilation_cache": "false",
    }
    arguments = ["--config=configs/orbit.py", *(f"--config.{k}={v}" for k, v in given.items())]
    done = call(*arguments)
    folder = home / "command" / "preview-clip-orbit-right-12-ease-in-out"
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(folder) and "advice:" in done.stdout
    assert (folder / "sheet.png").exists()
    again = call(*arguments)
    assert (
        again.returncode == 2 and "--overwrite" in again.stderr and "Traceback" not in again.stderr
    )
    assert call(*arguments, "--overwrite", "--limit=0.1").returncode == 0
    assert json.loads((folder / "report.json").read_text())["limit"] == 0.1


@pytest.mark.parametrize(
    "arguments, says",
    [
        ((), "--config is missing"),
        (("--config=configs/nothing.py",), "nothing.py"),
        (("--config=configs/orbit.py", "--config.video.path=nowhere.mp4"), "nowhere.mp4"),
        (("--config=configs/orbit.py", "--limit=much"), "limit"),
    ],
    ids=["no-config", "no-file", "no-clip", "limit"],
)
def test_command_refuses_with_exit_code_2(tmp_path, arguments, says):
    if len(arguments) == 2:
        arguments = (*arguments, f"--config.output.root={tmp_path}")
    done = call(*arguments)
    assert done.returncode == 2, done.stderr
    message = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(message) == 1 and says in message[0] and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("preview*"))
