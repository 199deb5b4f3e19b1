"""Changes of the configuration beside the default, on the miniature sample and from the command line."""

import numpy as np
import pytest
from kubric4d_miniature import SMALL, miniature_sample

from experiments.kubric4d import ablations, generated, rows
from recapture_jax.errors import InputError


@pytest.fixture
def fits(monkeypatch):
    """What was fitted and sampled, without a model."""
    done = {"fits": [], "samples": [], "models": []}
    monkeypatch.setattr(rows.tune_stage, "source_data", lambda *_: "clip")
    monkeypatch.setattr(rows.tune_stage, "anchor_data", lambda m, a, config: config.tune.known)

    def fit(self, trained, data, frozen, **_):
        done["fits"].append((trained[0], self.config.tune.loss, *data.values()))
        return {trained[0]: f"lora {len(done['fits'])}"}, {}

    def generate(model, anchor, loras, group, config, seed):
        done["models"].append(model)
        done["samples"].append((dict(loras), config.max_guidance, config.known_weight))
        return np.full((*anchor.frames.shape[:3], 3), 0.5, np.float32)

    monkeypatch.setattr(rows.tune_stage.Tuner, "fit", fit)
    monkeypatch.setattr(rows.generate_stage, "generate", generate)
    return done


def test_changes_that_tune_alike_share_their_loras(fits):
    made = ablations.Fits(lambda path: path, rows.configured("small"), miniature_sample(), SMALL)
    made.frames("full", ablations.DEFAULT)
    assert fits["fits"] == [("spatial", "v", "clip"), ("temporal", "v", "all")]
    both = {"spatial": "lora 1", "temporal": "lora 2"}
    made.frames("free_full", "generate.max_guidance=2")
    assert fits["samples"] == [(both, 1.0, 1.0), (both, 2.0, 0.0)]
    made.frames("full", "tune.known=share")  # the spatial LoRA knows nothing of it
    assert fits["fits"][2:] == [("temporal", "v", "share")]
    assert fits["samples"][-1][0] == {"spatial": "lora 1", "temporal": "lora 3"}
    made.frames("full", "tune.loss=eps")
    assert fits["fits"][3:] == [("spatial", "eps", "clip"), ("temporal", "eps", "all")]
    default = rows.configured("small").model.path
    assert fits["models"] == [default] * 4
    made.frames("full", "model.path=another")  # nothing of the default model serves another
    assert fits["models"][4:] == ["another"] and len(fits["fits"]) == 7


def test_what_only_binds_the_sampler_is_not_sampled_freely():
    assert (
        ablations.modes(ablations.DEFAULT)
        == ablations.modes("lora.rank=4")
        == ("full", "free_full")
    )
    assert ablations.modes("generate.keep_pixels=false,generate.known_weight=0") == ("full",)
    assert ablations.modes("generate.keep_pixels=false,lora.rank=4") == ("full", "free_full")


def test_every_question_is_a_change_of_the_configuration():
    config = rows.configured("small")
    for question, changes in ablations.QUESTIONS.values():
        assert "Default" in question
        for change in changes:
            made = ablations.changed(config, change)
            names = ablations.fields(change)
            assert names and all(
                made[g][n] != config[g][n] for g, n in (x.split(".") for x in names)
            )


def record(scene, row, value):
    return {
        "scene": scene,
        "row": row,
        "scores": {"psnr_all": [99.0, value, value], "lpips_vgg_all": [0.0, 0.2, 0.2]},
        "flicker": 1.0,
        "seconds": 1.0,
    }


def test_the_page_pairs_changes_with_the_default_by_scene():
    lines = [record(f"scn{i}", "full", 10.0 * i) for i in range(4)]
    lines += [record(f"scn{i}", "full lora.rank=4", 10.0 * i + 1 + 0.02 * i) for i in range(4)]
    page = ablations.document(lines, {"rank": ("Which?", ("lora.rank=4",))}, "rendered")
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert table[0] == "| | sampled | PSNR all | LPIPS-vgg all |"
    assert table[2].startswith("| default | as configured | 15.00 ± 20.54 | 0.2000 ± 0.0000 |")
    assert table[3] == "| default | free | - | - |"
    assert table[4:6] == table[:2]
    row = "| `lora.rank=4` | as configured | **1.03 ± 0.04** | 0.0000 ± 0.0000 |"
    assert table[6] == row
    assert "4 scenes, rendered" in page and "## Which?" in page


def test_the_command_measures_once_and_refuses_nonsense(fits, tmp_path, monkeypatch):
    monkeypatch.setattr(generated.weights, "load_model", lambda path: None)
    options = ["--scenes=1", "--size=tiny", "--lpips=none", f"--out={tmp_path / 'out'}"]
    page = ablations.run(ablations.parse([*options, "--questions=known"]))
    assert page == (tmp_path / "out" / "ablations.md").read_text()
    assert page.count("generate.known_weight=0.5") == 1 and "validation split" in page
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    assert len(lines) == 2 + len(ablations.QUESTIONS["known"][1])
    assert len(fits["fits"]) == 2  # the sampler alone was changed
    more = ablations.parse([*options, "--questions=", "--change=lora.rank=4,tune.loss=eps"])
    assert "`lora.rank=4,tune.loss=eps`" in ablations.run(more)
    assert len(fits["fits"]) == 4  # and the default was read
    for bad, said in (
        (["--questions=size"], "--questions=size: expected some of"),
        (["--change=lora.rnk=4"], "no field 'lora.rnk'"),
        (["--change=tune.loss=huber"], "expected one of v, eps"),
    ):
        with pytest.raises(InputError, match=said):
            ablations.run(ablations.parse([*options, *bad]))
    with pytest.raises(InputError, match="--split=test"):
        ablations.parse(["--split=test"])
