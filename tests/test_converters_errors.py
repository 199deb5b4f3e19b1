"""SVD converter on bad input: one clear line, exit code 2, nothing left behind."""

import json

import numpy as np
import pytest
import svd_layouts as layouts
from safetensors.numpy import load_file, save_file
from svd_layouts import shapes_once  # noqa: F401  (an autouse fixture)

from converters import sources
from converters.rules import ConversionError
from recapture_jax.errors import InputError


@pytest.fixture(scope="module")
def trees():
    return layouts.random_trees()


def _edit(src, component, change):
    path = src / component / f"{layouts.STEMS.get(component, 'model')}.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def _config(src, component, **values):
    path = src / component / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def _weights(src, component="unet"):
    return src / component / f"{layouts.STEMS.get(component, 'model')}.safetensors"


def _truncate(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def _swap_vae_weights_into_unet(src):
    _weights(src).write_bytes(_weights(src, "vae").read_bytes())


def _vae_folder_as_unet(src):
    _swap_vae_weights_into_unet(src)
    (src / "unet/config.json").write_text((src / "vae/config.json").read_text())


def _remove_folder(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def _lose_shard(src):
    layouts.shard(src / "unet", "diffusion_pytorch_model")
    (src / "unet/diffusion_pytorch_model-00002-of-00003.safetensors").unlink()


def _lose_index(src):
    layouts.shard(src / "unet", "diffusion_pytorch_model")
    (src / "unet/diffusion_pytorch_model.safetensors.index.json").unlink()


def _mix_shards(src):
    layouts.shard(src / "unet", "diffusion_pytorch_model")
    shards = sorted((src / "unet").glob("*-of-*"))
    shards[0].write_bytes(shards[1].read_bytes())


def _escape_index(src):
    layouts.shard(src / "unet", "diffusion_pytorch_model")
    index = src / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"a": "../vae/diffusion_pytorch_model.safetensors"}})
    )


BIAS = "conv_in.bias"
FOLDER_ERRORS = {
    "no vae": (lambda s: _remove_folder(s / "vae"), "has no sub-folder vae"),
    "no config": (lambda s: (s / "unet/config.json").unlink(), "unet/config.json is missing"),
    "bad json": (lambda s: (s / "vae/config.json").write_text("{"), "is not valid JSON"),
    "json list": (lambda s: (s / "vae/config.json").write_text("[]"), "JSON object"),
    "sd15 unet": (
        lambda s: _config(s, "unet", _class_name="UNet2DConditionModel"),
        "is of a UNet2DConditionModel, expected UNetSpatioTemporalConditionModel",
    ),
    "vae as unet": (_vae_folder_as_unet, "is of a AutoencoderKLTemporalDecoder"),
    "vae weights in unet": (_swap_vae_weights_into_unet, "+decoder.conv_in.bias (64,)"),
    "plain vae": (
        lambda s: _config(s, "vae", _class_name="AutoencoderKL"),
        "expected AutoencoderKLTemporalDecoder",
    ),
    "sv3d ids": (
        lambda s: _config(s, "unet", projection_class_embeddings_input_dim=40),
        "is 40, expected 3 x 8",
    ),
    "other widths": (lambda s: _config(s, "unet", block_out_channels=[64, 64]), "is not"),
    "unknown block": (
        lambda s: _config(s, "unet", down_block_types=["A", "B"]),
        "the config of unet is not usable",
    ),
    "clip act": (lambda s: _config(s, "image_encoder", hidden_act="relu"), "hidden_act"),
    "clip sizes": (lambda s: _config(s, "image_encoder", hidden_size=None), "lacks hidden_size"),
    "no frames": (lambda s: _config(s, "unet", num_frames=None), "pass --num_frames"),
    "truncated": (lambda s: _truncate(_weights(s), 5000), "not a whole safetensors file"),
    "short": (lambda s: _truncate(_weights(s), _weights(s).stat().st_size - 8), "not a whole"),
    "empty": (lambda s: _truncate(_weights(s), 0), "not a whole safetensors file"),
    "lfs": (
        lambda s: _weights(s).write_text("version https://git-lfs.github.com/spec/v1\noid x\n"),
        "is a Git LFS pointer",
    ),
    "pickle": (
        lambda s: _weights(s).rename(s / "unet/diffusion_pytorch_model.bin"),
        "only torch pickles (diffusion_pytorch_model.bin)",
    ),
    "no weights": (lambda s: _weights(s).unlink(), "has no weights"),
    "no shard": (_lose_shard, "00002-of-00003.safetensors is missing"),
    "no index": (_lose_index, "has shards but no index"),
    "mixed shards": (_mix_shards, "disagree about"),
    "index outside": (_escape_index, "expected a .safetensors file beside it"),
    "tensor missing": (
        lambda s: _edit(s, "unet", lambda t: t.pop(BIAS)),
        "unet: 1 tensors do not fit the model of its config (+ has no place in the model, "
        "- missing in the source): -conv_in/bias (32,);",
    ),
    "tensor extra": (
        lambda s: _edit(s, "vae", lambda t: t.update(stray=np.zeros(2, np.float32))),
        "+stray (2,)",
    ),
    "tensor shape": (
        lambda s: _edit(s, "unet", lambda t: t.update({BIAS: np.zeros(31, np.float32)})),
        "conv_in.bias: (31,) is not (32,) of conv_in/bias",
    ),
    "integers": (
        lambda s: _edit(s, "unet", lambda t: t.update({BIAS: np.zeros(32, np.int8)})),
        "conv_in.bias is I8",
    ),
    "nan": (
        lambda s: _edit(s, "vae", lambda t: t["quant_conv.bias"].__setitem__(3, np.nan)),
        "quant_conv.bias holds NaN",
    ),
}


@pytest.mark.parametrize("case", FOLDER_ERRORS)
def test_bad_folder_is_one_line_and_leaves_nothing(tmp_path, trees, capsys, case):
    spoil, expected = FOLDER_ERRORS[case]
    src = layouts.tiny_folder(tmp_path, trees)
    spoil(src)
    code, out, err = layouts.run_main(capsys, "--src", src, "--dst", tmp_path / "out")
    assert code == 2
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    assert expected in err
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


UNET = "model.diffusion_model."


def _drop(prefix):
    def edit(tensors):
        for key in [key for key in tensors if key.startswith(prefix)]:
            del tensors[key]

    return edit


def _frame_decoder(tensors):
    for key in [key for key in tensors if "first_stage_model.decoder" in key]:
        if "time_" in key or "mix_factor" in key:
            del tensors[key]


def _full_size_ids(tensors):
    tensors[UNET + "label_emb.0.0.weight"] = np.zeros((128, 40), np.float32)


SINGLE_ERRORS = {
    "sd15": (_drop("conditioner."), "no tensors conditioner.embedders.3.encoder.encoder.*"),
    "not a model": (_drop(UNET), "no tensors model.diffusion_model.*"),
    "image decoder": (_frame_decoder, "frame-by-frame image decoder"),
    "sv3d ids": (_full_size_ids, "label_emb.0.0.weight: (40, 128) is not (24, 128)"),
    "stray": (
        lambda t: t.update({"model_ema.x": np.zeros(1, np.float32)}),
        "1 tensors belong to no part of SVD (model_ema.x)",
    ),
    "unet extra": (
        lambda t: t.update({UNET + "input_blocks.99.0.x": np.zeros(1, np.float32)}),
        "+input_blocks.99.0.x (1,)",
    ),
    "clip lost": (
        lambda t: t.pop("conditioner.embedders.0.open_clip.model.visual.ln_pre.bias"),
        "-vision_model/pre_layrnorm/bias (32,)",
    ),
}


@pytest.mark.parametrize("case", SINGLE_ERRORS)
def test_bad_single_file(tmp_path, trees, capsys, case):
    edit, expected = SINGLE_ERRORS[case]
    args = layouts.tiny_single(tmp_path, trees, edit=edit)
    code, _, err = layouts.run_main(capsys, "--dst", tmp_path / "out", "--src", *args)
    assert code == 2 and len(err.splitlines()) == 1
    assert expected in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["configs.json", "svd.safetensors"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--src", "{tmp}/none", "--dst", "{tmp}/out"], "does not exist"),
        (["--src", "{tmp}/x.ckpt", "--dst", "{tmp}/out"], "x.ckpt is a torch pickle"),
        (["--src", "{tmp}/x.txt", "--dst", "{tmp}/out"], "neither a folder nor"),
        (["--src", "{tmp}/x.ckpt"], "--dst"),
        (["--src", "{tmp}/x.ckpt", "--dst", "{tmp}/out", "--dtype", "int8"], "int8"),
        (["--src", "{tmp}/x.ckpt", "--dst", "{tmp}/out", "--num_frames", "0"], "at least 1"),
        (["--src", "{tmp}/x.ckpt", "--dst", "{tmp}"], "exists already"),
        (["--src", "{tmp}/x.ckpt", "--dst", "{tmp}", "--overwrite"], "not an earlier conversion"),
    ],
)
def test_bad_flags(tmp_path, capsys, flags, expected):
    for name in ("x.ckpt", "x.txt"):
        (tmp_path / name).write_text("x")
    code, out, err = layouts.run_main(capsys, *(flag.format(tmp=tmp_path) for flag in flags))
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert expected in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.ckpt", "x.txt"]


def test_missing_variant(tmp_path, trees):
    with pytest.raises(ConversionError, match="has no weights of variant 'fp16'"):
        sources.open_source(layouts.tiny_folder(tmp_path, trees), variant="fp16")


def test_float16_overflow_is_refused(tmp_path, trees, capsys):
    src = layouts.tiny_folder(tmp_path, trees)
    _edit(src, "image_encoder", lambda t: t["visual_projection.weight"].__imul__(1e6))
    code, _, err = layouts.run_main(
        capsys, "--src", src, "--dst", tmp_path / "out", "--dtype", "float16"
    )
    assert code == 2 and "visual_projection.weight overflows in float16" in err
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_conversion_error_is_an_input_error():
    assert issubclass(ConversionError, InputError)
