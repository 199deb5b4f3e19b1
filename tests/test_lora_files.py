"""LoRAs in files: ours, diffusers', PEFT's, and what is refused."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from lora_toy import full_size, kernels, random_lora, toy  # noqa: F401  fixtures among them

from recapture_jax.errors import InputError
from recapture_jax.lora import export, tree


def test_names_are_a_bijection_on_all_linear_layers_of_the_model(full_size):  # noqa: F811
    names = full_size[0]
    assert len(names) == 16 * (8 + 8 + 6 + 2 + 2) + 22 * 2 + 4
    paths = [export.module_path(name) for name in names]
    assert len(set(paths)) == len(names)
    assert [export.torch_name(path) for path in paths] == names
    assert paths == [path for path in paths if path in kernels(full_size[1])]
    examples = {
        "time_embedding.linear_1": "time_embedding/linear_1",
        "mid_block.attentions.0.time_pos_embed.linear_2": (
            "mid_block/attentions_0/time_pos_embed/linear_2"
        ),
        "up_blocks.3.attentions.2.temporal_transformer_blocks.0.ff_in.net.0.proj": (
            "up_blocks_3/attentions_2/temporal_transformer_blocks_0/ff_in/net_0/proj"
        ),
        "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0": (
            "down_blocks_0/attentions_1/transformer_blocks_0/attn1/to_out_0"
        ),
    }
    for name, path in examples.items():
        assert export.module_path(name) == path and export.torch_name(path) == name


@pytest.mark.parametrize("prefix", ["", "unet"])
def test_round_trip(toy, tmp_path, prefix):  # noqa: F811
    lora = random_lora(toy[0], ".*")
    file = export.save_lora(
        tmp_path / "a.safetensors",
        lora,
        rank=3,
        targets=["spatial", "temporal"],
        base_model="toy",
        prefix=prefix,
        notes={"steps": 400},
    )
    back = export.load_lora(file)
    assert list(back) == sorted(lora)
    for path, delta in lora.items():
        for name in "ab":
            np.testing.assert_array_equal(back[path][name], delta[name])
    notes = {"targets": ["spatial", "temporal"], "base_model": "toy", "steps": 400}
    assert export.read_notes(file) == notes
    start = "unet." if prefix else ""
    tensors = safetensors.numpy.load_file(file)
    name = f"{start}transformer_blocks.0.attn1.to_out.0"
    assert tensors[f"{name}.lora_A.weight"].shape == (3, 8)
    np.testing.assert_array_equal(
        tensors[f"{start}linear_1.lora_B.weight"], lora["linear_1"]["b"].T
    )
    assert not any("alpha" in key for key in tensors)
    with safetensors.safe_open(file, framework="numpy") as opened:
        metadata = opened.metadata()
    assert metadata["format"] == "pt"
    config = json.loads(metadata["lora_adapter_metadata"])
    assert config[f"{start}r"] == config[f"{start}lora_alpha"] == 3
    assert "transformer_blocks.0.attn1.to_out.0" in config[f"{start}target_modules"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]  # no temporary left


def test_scale_is_folded_and_ranks_may_differ(toy, tmp_path):  # noqa: F811
    spatial, temporal = random_lora(toy[0], "spatial", 3), random_lora(toy[0], "temporal", 5)
    lora = tree.combine(spatial, temporal)
    back = export.load_lora(export.save_lora(tmp_path / "a.safetensors", lora, scale=0.25))
    for path, delta in lora.items():
        np.testing.assert_array_equal(back[path]["a"], delta["a"])
        np.testing.assert_array_equal(back[path]["b"], 0.25 * delta["b"])
    with pytest.raises(InputError, match="rank 5, expected 3"):
        export.save_lora(tmp_path / "b.safetensors", lora, rank=3)


def test_saving_refuses_and_replaces(toy, tmp_path, monkeypatch):  # noqa: F811
    lora = random_lora(toy[0], "spatial")
    file = export.save_lora(tmp_path / "a.safetensors", lora)
    before = file.read_bytes()
    with pytest.raises(InputError, match="exists"):
        export.save_lora(file, tree.scale(lora, 2.0))
    with pytest.raises(InputError, match="no folder"):
        export.save_lora(tmp_path / "none" / "a.safetensors", lora)
    with pytest.raises(InputError, match="prefix"):
        export.save_lora(tmp_path / "b.safetensors", lora, prefix="unet.")
    with pytest.raises(InputError, match="no LoRA deltas"):
        export.save_lora(tmp_path / "b.safetensors", {})

    def interrupted(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.numpy, "save_file", interrupted)
        with pytest.raises(OSError, match="disk full"):
            export.save_lora(file, tree.scale(lora, 2.0), overwrite=True)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    export.save_lora(file, tree.scale(lora, 2.0), overwrite=True)
    assert file.read_bytes() != before


def write(path, tensors, config=None):
    metadata = None if config is None else {"lora_adapter_metadata": json.dumps(config)}
    safetensors.numpy.save_file(
        {key: np.ascontiguousarray(value, np.float32) for key, value in tensors.items()},
        path,
        metadata,
    )
    return path


def pair(name, a="lora_A.weight", b="lora_B.weight"):
    rng = np.random.default_rng(0)
    return {f"{name}.{a}": rng.normal(size=(4, 8)), f"{name}.{b}": rng.normal(size=(6, 4))}


Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
Q_PATH = "mid_block/attentions_0/transformer_blocks_0/attn1/to_q"


@pytest.mark.parametrize("prefix", ["", "unet.", "base_model.model.", "base_model.model.unet."])
@pytest.mark.parametrize(
    "names", [("lora_A.weight", "lora_B.weight"), ("lora.down.weight", "lora.up.weight")]
)
@pytest.mark.parametrize(
    "alpha, config, factor",
    [
        (None, None, 1.0),
        (2.0, None, 0.5),
        (None, {"r": 4, "lora_alpha": 8}, 2.0),
        (None, {"unet.r": 4, "unet.lora_alpha": 8}, 2.0),
        (None, {"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        (None, {"r": 4, "lora_alpha": 8, "alpha_pattern": {r"attn1\.to_q": 1}}, 0.25),
        (None, {"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_k": 1}}, 2.0),
        (8.0, {"r": 4, "lora_alpha": 8}, 2.0),
    ],
)
def test_variants_of_others_and_their_alpha(tmp_path, prefix, names, alpha, config, factor):
    tensors = pair(prefix + Q, *names)
    a, b = tensors.values()
    if alpha is not None:
        tensors[f"{prefix}{Q}.alpha"] = alpha
    lora = export.load_lora(write(tmp_path / "a.safetensors", tensors, config))
    assert list(lora) == [Q_PATH]
    np.testing.assert_array_equal(lora[Q_PATH]["a"], a.T.astype(np.float32))
    np.testing.assert_array_equal(lora[Q_PATH]["b"], factor * b.T.astype(np.float32))


def test_half_precision_files_become_float32(tmp_path):
    tensors = {key: jnp.asarray(value, jnp.bfloat16) for key, value in pair(Q).items()}
    safetensors.numpy.save_file({k: np.asarray(v) for k, v in tensors.items()}, tmp_path / "a")
    delta = export.load_lora(tmp_path / "a")[Q_PATH]
    assert delta["a"].dtype == delta["b"].dtype == jnp.float32
    np.testing.assert_array_equal(
        delta["a"], np.asarray(tensors[f"{Q}.lora_A.weight"], np.float32).T
    )


def test_foreign_or_broken_files_are_refused_in_one_line(tmp_path):
    def refused(tensors, match, config=None):
        with pytest.raises(InputError, match=match) as caught:
            export.load_lora(write(tmp_path / "a.safetensors", tensors, config))
        assert "\n" not in str(caught.value)

    only_b = {f"{Q}.lora_B.weight": pair(Q)[f"{Q}.lora_B.weight"]}
    magnitude = {f"{Q}.lora_magnitude_vector.weight": np.zeros(6)}
    refused(only_b, rf"-{re.escape(Q)}\.lora_A\.weight")
    refused(pair(Q) | magnitude, rf"\+{re.escape(Q)}\.lora_magnitude_vector")
    refused(pair(Q) | pair("unet." + Q), r"\+unet\.")
    refused(only_b | magnitude, r"\+.*magnitude.*-.*lora_A")
    refused({f"{Q}.alpha": 1.0}, r"-.*lora_A.* -.*lora_B")
    refused({"x": np.zeros(1)}, r"\+x")
    refused(pair("time_embedding.linear.1"), "diffusers name")
    refused(pair(Q) | {f"{Q}.alpha": 1.0}, "alpha", {"r": 4, "lora_alpha": 4})
    refused(
        {
            f"{Q}.lora_A.weight": np.zeros((4, 8, 1, 1)),
            f"{Q}.lora_B.weight": np.zeros((6, 4, 1, 1)),
        },
        "shapes",
    )
    refused(pair(Q), "JSON object", [1])
    (tmp_path / "b").write_bytes(b"not a tensor file")
    for name in ("b", "absent"):
        with pytest.raises(InputError, match="cannot read LoRA"):
            export.load_lora(tmp_path / name)
