"""The rows and tables of the Kubric-4D protocol, and its command end to end."""

import json
import types

import numpy as np
import pytest
from kubric4d_miniature import MOVE, SMALL, miniature_sample, write_miniature
from PIL import Image

from experiments.kubric4d import __main__ as command
from experiments.kubric4d import controls, distances, protocol, records, report, rig, rows
from recapture_jax.config import default_config
from recapture_jax.errors import InputError
from recapture_jax.evaluation.images import psnr
from recapture_jax.evaluation.temporal import warp_error
from recapture_jax.scenes import photos


@pytest.fixture(scope="module")
def sample():
    return miniature_sample()


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    return write_miniature(tmp_path_factory.mktemp("kubric"))


def test_the_anchor_knows_what_the_source_sees(sample):
    config = default_config()
    config.anchor.tearing = 0.0
    anchor = rows.anchor_of(sample, config)
    seen, hidden = ~sample.occluded & anchor.raw_mask, sample.occluded & anchor.raw_mask
    assert hidden.sum() < 0.1 * sample.occluded.sum()  # nothing is known of what is hidden
    assert (seen.sum(axis=(1, 2)) > 0.7 * (~sample.occluded).sum(axis=(1, 2))).all()
    t = 6
    visible = psnr(anchor.frames[t], sample.truth[t], seen[t])
    assert visible > 5 + psnr(sample.source[t], sample.truth[t], seen[t])


def test_classical_rows(sample):
    config = default_config()
    config.anchor.tearing = 0.0
    made = {name: make() for name, make in rows.classical(sample, config).items()}
    assert tuple(made) == rows.CLASSICAL
    raw = made["reprojection"] > 0
    np.testing.assert_array_equal(made["filled"][raw], made["reprojection"][raw])
    last = {n: psnr(f[-1], sample.truth[-1]) for n, f in made.items()}
    assert last["filled"] > last["reprojection"] and last["inpainted"] > last["reprojection"]


def test_inpainting_continues_a_ramp():
    ramp = np.broadcast_to(np.linspace(0.2, 0.8, 24)[None, :, None], (1, 16, 24, 3))
    known = np.ones((1, 16, 24), bool)
    known[0, 5:11, 8:15] = False
    frames = np.where(known[..., None], ramp, 0.9)
    np.testing.assert_allclose(rows.inpaint(frames, known), ramp, atol=1e-3)


def test_inputs_at_another_size(sample):
    half = rows.at_size(sample, (32, 48))
    assert half.source.shape == (14, 32, 48, 3) and half.depth.shape == (14, 32, 48)
    np.testing.assert_allclose(half.intrinsics, rig.intrinsics((32, 48)), atol=1e-5)
    assert np.abs(half.source.mean((0, 1, 2)) - sample.source.mean((0, 1, 2))).max() < 1e-2
    assert np.isin(half.depth, sample.depth).all()  # nearest, never a blend


def test_model_rows_add_one_component_each(sample, monkeypatch):
    """What each row fits and samples with, held to the anchor and free; shared LoRAs are fitted once."""
    fits, samples, clock = [], [], [0.0]
    monkeypatch.setattr(rows, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(rows.tune_stage, "source_data", lambda *_: "clip")
    monkeypatch.setattr(rows.tune_stage, "anchor_data", lambda m, anchor, *_: anchor.mask.mean())

    def fit(self, trained, data, frozen, **_):
        fits.append((trained, data, dict(frozen)))
        clock[0] += len(fits)  # the n-th takes n seconds
        return {trained[0]: f"lora {len(fits)}"}, {}

    def generate(model, anchor, loras, group, config, seed):
        held = (config.known_weight, config.keep_pixels)
        samples.append((loras, config.sdedit_sigma, *held))
        return np.full((*anchor.frames.shape[:3], 3), 0.5, np.float32)

    monkeypatch.setattr(rows.tune_stage.Tuner, "fit", fit)
    monkeypatch.setattr(rows.generate_stage, "generate", generate)
    config = default_config("smoke")
    config.generate.sdedit_sigma, config.generate.known_weight = 0.7, 0.5
    model_rows = rows.ModelRows(None, config, sample, SMALL)
    before = {}
    for row in rows.MODEL:
        frames, before[row] = model_rows.frames(row)
        assert frames.shape == (14, *SMALL, 3)
    assert [before[row] for row in rows.LADDER] == [0, 0, 0, 0, 3 + 4]  # fitted for the row before
    assert [before[row] for row in rows.FREE] == [0, 1, 2, 3 + 4, 3 + 4]
    mask = model_rows.anchor().mask.mean()
    assert mask < 1
    assert fits == [
        (("temporal",), {"anchor": 1.0}, {}),
        (("temporal",), {"anchor": mask}, {}),
        (("spatial",), {"source": "clip"}, {}),
        (("temporal",), {"anchor": mask}, {"spatial": "lora 3"}),
    ]
    both = {"spatial": "lora 3", "temporal": "lora 4"}
    ladder = [
        ({}, 0.0),
        ({"temporal": "lora 1"}, 0.0),
        ({"temporal": "lora 2"}, 0.0),
        (both, 0.0),
        (both, 0.7),
    ]
    held, free = (0.5, True), (0.0, False)
    assert samples == [(*step, *how) for how in (held, free) for step in ladder]
    assert config.generate.sdedit_sigma == 0.7  # the configuration itself is left alone


def test_records_survive_a_kill_and_refuse_other_settings(tmp_path):
    found = records.Records(tmp_path, {"size": [1, 2]})
    entry = {"scene": "a", "sample": "s", "row": "source", "scores": {"x": [float("nan"), 1.0]}}
    found.add(entry)
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"scene": "a", "sam')  # killed here
    again = records.Records(tmp_path, {"size": [1, 2]})
    assert again.has("a", "s", "source") and not again.has("a", "s", "full")
    again.add(entry | {"row": "full"})
    lines = records.Records(tmp_path, {"size": [1, 2]}).lines
    assert [r["row"] for r in lines] == ["source", "full"]
    assert lines[0]["scores"] == {"x": [None, 1.0]}
    with pytest.raises(InputError, match="another size: choose another --out"):
        records.Records(tmp_path, {"size": [1, 3]})


def entries(row, values, occ=None):
    return [
        {
            "scene": f"scn{i}",
            "sample": "sample_00",
            "row": row,
            "scores": {"psnr_all": [90.0, v, v + 1], "psnr_occ": [None, occ, occ]},
            "flicker": 0.9,
            "warp": 0.001 * i,
            "seconds": 1.0,
        }
        for i, v in enumerate(values)
    ]


def test_tables_show_means_intervals_and_paired_differences():
    lines = entries("vanilla", [10.0, 20.0, 30.0], 8.0)
    lines += entries("temporal_unmasked", [11.0, 21.1, 30.9])
    text = report.table(lines, "1-13")
    assert text.splitlines()[0] == "| row | PSNR all | PSNR occ | flicker | warp | seconds |"
    cells = text.splitlines()[2].split(" | ")
    assert cells[1] == "20.50 ± 24.84" and cells[2] == "8.00 ± 0.00"
    assert cells[4] == "1.00 ± 2.48"  # thousandths
    assert text.splitlines()[3].split(" | ")[2] == "-"
    assert "| 21.00 ± 24.84 |" in report.table(lines, "last")
    difference = report.differences(lines, "1-13").splitlines()[2]
    assert "| **1.00 ± 0.25** | - |" in difference
    assert report.differences(entries("source", [1.0]), "last") == ""


def test_the_command_prints_writes_and_resumes(tmp_path, monkeypatch):
    out = tmp_path / "out"
    options = ["--scenes=1", "--size=tiny", "--lpips=none", "--rows=source,filled"]
    flags = command.parse([*options, f"--out={out}"])
    text = command.run(flags)
    assert text == (out / "table.md").read_text()
    assert "source copied" in text and "## last frame" in text and "protocol-equivalent" in text
    assert len((out / "records.jsonl").read_text().splitlines()) == 2
    assert (out / "pictures" / "scn00000_sample_00" / "sheet.png").exists()
    monkeypatch.setattr(protocol, "rendered_sample", None)  # nothing is made a second time
    assert command.run(flags) == text
    monkeypatch.setitem(distances._NETWORKS, "fvd", lambda: len)
    with pytest.raises(InputError, match="scn00000 was measured without features of fvd"):
        command.run(command.parse([*options, "--frechet=fvd", f"--out={out}"]))
    with pytest.raises(InputError, match="'fancy' is not known"):
        command.run(command.parse(["--rows=fancy"]))
    with pytest.raises(InputError, match="--lpips=resnet"):
        command.run(command.parse(["--lpips=resnet"]))
    with pytest.raises(InputError, match="--frechet=kid"):
        command.run(command.parse(["--frechet=kid"]))
    with pytest.raises(InputError, match="scenes"):
        command.parse(["--scenes=0"])
    with pytest.raises(InputError, match="leave one of the two out"):
        command.parse(["--data=there", "--textures=photos"])


def test_photographs_go_on_surfaces_and_a_bad_folder_leaves_nothing(tmp_path):
    (tmp_path / "photographs").mkdir()
    checked = np.kron(np.indices((16, 16)).sum(0) % 2, np.ones((2, 2)))
    Image.fromarray((255 * checked).astype(np.uint8)).save(tmp_path / "photographs" / "a.png")
    options = ["--scenes=1", "--size=tiny", "--lpips=none", "--rows=source"]
    out, more = tmp_path / "out", [f"--textures={tmp_path / 'photographs'}"]
    command.run(command.parse([*options, *more, f"--out={out}"]))
    told = json.loads((out / "settings.json").read_text())
    assert "photographs " in told["data"]
    control = controls.draw("scn00000", 0)
    plain = protocol.rendered_sample(0, control, SMALL)
    textured = photos.load(tmp_path / "photographs")
    pasted = protocol.rendered_sample(0, control, SMALL, textures=textured)
    np.testing.assert_array_equal(plain.depth, pasted.depth)
    assert np.abs(plain.truth - pasted.truth).max() > 0.1
    with pytest.raises(InputError, match="has no photographs"):
        command.run(command.parse([*options, "--textures=nowhere", f"--out={tmp_path / 'none'}"]))
    assert not (tmp_path / "none").exists()


def test_distances_are_of_the_clips_that_row_and_truth_share(tmp_path):
    def network(values):
        return values.reshape(len(values), -1)[:, :5]

    rng = np.random.default_rng(0)
    clips = rng.random((4, 3, 2, 2, 3))
    networks = {"fvd": lambda: network, "fid": lambda: network}
    store = distances.FeatureStore(tmp_path, ("fvd", "fid"), networks)
    for i, clip in enumerate(clips):
        store.add(distances.TRUTH, f"scn{i}", clip)
        store.add("source", f"scn{i}", clip)
        if i < 3:
            store.add("filled", f"scn{i}", clip + 0.1)
    store.add("vanilla", "scn0", clips[0])
    found = store.distances(("source", "filled", "vanilla"))
    assert found["source"]["fvd"] == pytest.approx(0.0, abs=1e-6)
    assert found["filled"]["fvd"] == pytest.approx(5 * 0.1**2, rel=1e-4)  # a shift of five features
    assert found["filled"]["fid"] == pytest.approx(5 * 0.1**2, rel=1e-4)
    assert "vanilla" not in found or "fvd" not in found["vanilla"]  # one clip has no covariance
    again = distances.FeatureStore(tmp_path, ("fvd",), {"fvd": lambda: None})  # read, not computed
    again.add("source", "scn0", clips[0])
    assert again.distances(("source",))["source"]["fvd"] == found["source"]["fvd"]
    text = report.distance_table(found)
    assert text.splitlines()[0] == "| row | FID | FVD |"
    assert "| source copied | 0.0 | 0.0 |" in text


def test_warp_error_of_the_truth_is_that_of_the_renderers_edges(sample):
    assert sample.seen.mean() > 0.5
    exact = warp_error(sample.truth, sample.flow, sample.seen)
    unmoved = warp_error(sample.truth, np.zeros_like(sample.flow), sample.seen)
    assert exact < 0.5 * unmoved


def test_the_command_reads_the_real_layout(tmp_path, miniature, monkeypatch):
    controls.write({"scn00003": {"sample_00": MOVE}}, tmp_path / "controls.json")
    options = ["--scenes=1", "--size=tiny", "--lpips=none", "--rows=source", "--views=5"]
    options += [f"--data={miniature}", f"--controls={tmp_path / 'controls.json'}"]
    text = command.run(command.parse([*options, f"--out={tmp_path / 'out'}"]))
    assert "points splatted as GCD does" in text and "our own" not in text
    (line,) = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["scene"] == "scn00003" and record["truth"] == "splat"
    assert record["scores"]["psnr_all"][0] > 50  # the source is a splat, too
    short = command.parse([*options, "--scenes=2", f"--out={tmp_path / 'more'}"])
    with pytest.raises(InputError, match="holds 1 scenes"):
        command.run(short)


def test_fields_of_the_configuration_are_set_from_the_command_line():
    parsed = command.parse(
        ["--set=lora.rank=4", "--set=tune.loss=eps", "--set=tune.learning_rate=2e-3"]
        + ["--set=generate.keep_pixels=true"]
    )
    config = command.configured(parsed)
    assert config.lora.rank == 4 and config.tune.loss == "eps"
    assert config.tune.learning_rate == 2e-3 and config.generate.keep_pixels is True
    for bad, said in (
        ("lora.rnk=4", "no field 'lora.rnk'"),
        ("rank=4", "no field 'rank'"),
        ("seed.x=4", "no field 'seed.x'"),
        ("lora.rank=four", "expected a int"),
        ("generate.keep_pixels=maybe", "expected a bool"),
        ("tune.loss=huber", "expected one of v, eps"),
    ):
        with pytest.raises(InputError, match=said):
            command.configured(command.parse([f"--set={bad}"]))
