"""LoRA files written here and loaded by peft and diffusers: the same network as ours."""

import copy

import jax
import numpy as np
import pytest

from recapture_jax.lora import adapter, export, tree

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
safetensors_torch = pytest.importorskip("safetensors.torch")

from diffusers.loaders.peft import PeftAdapterMixin  # noqa: E402
from torch_params import flax_from_torch, randomise, rel_error  # noqa: E402

TINY = dict(
    in_channels=8,
    out_channels=4,
    down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    block_out_channels=(32, 64),
    layers_per_block=1,
    num_attention_heads=(2, 4),
    cross_attention_dim=32,
    addition_time_embed_dim=32,
    projection_class_embeddings_input_dim=96,
)
RANK, SCALE = 4, 0.6
# Every linear layer that has an effect: all the names that the file format must get right.
ALL_LINEAR = r"(?!.*attn2/to_[qk]$).*"


class Loadable(diffusers.UNetSpatioTemporalConditionModel, PeftAdapterMixin):
    """diffusers' U-Net for SVD lacks the LoRA methods that its other models have."""


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return randomise(diffusers.UNetSpatioTemporalConditionModel(**TINY), seed=1)


@pytest.fixture(scope="module")
def params(base):
    return flax_from_torch(base)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((2, 3, 8, 12, 8), dtype=np.float32)
    context = rng.standard_normal((2, 1, 32), dtype=np.float32)
    ids = np.array([[6.0, 127.0, 0.02], [11.0, 40.0, 0.1]], np.float32)
    return sample, np.array([0.3, -1.1], np.float32), context, ids


def random_lora(params, targets, rank=RANK, seed=2):
    lora = tree.init(jax.random.key(seed), params, targets, rank)
    for i, delta in enumerate(lora.values()):
        delta["b"] = 0.2 * jax.random.normal(jax.random.key(1000 * seed + i), delta["b"].shape)
    return lora


def fresh(base, cls=diffusers.UNetSpatioTemporalConditionModel):
    model = cls(**TINY)
    model.load_state_dict(base.state_dict())
    return model.eval()


def run_torch(model, inputs):
    sample, timestep, context, ids = (torch.from_numpy(x) for x in inputs)
    with torch.no_grad():
        out = model(sample.permute(0, 1, 4, 2, 3), timestep, context, ids).sample
    return out.permute(0, 1, 3, 4, 2).numpy()


def merged_by_hand(base, lora, scale=1.0):
    """W += scale (a b)^T on the PyTorch weights, names by a table of the modules' own."""
    model = copy.deepcopy(base)
    layers = {name.replace(".", "/"): module for name, module in model.named_modules()}
    for path, delta in lora.items():
        # The inverse of "_N" is ambiguous on paper; here the real module names decide.
        (layer,) = (
            layers[name]
            for name in layers
            if _joined(name) == path and hasattr(layers[name], "weight")
        )
        a, b = (torch.from_numpy(np.array(delta[name])) for name in "ab")
        with torch.no_grad():
            layer.weight += scale * (a.double() @ b.double()).T.float()
    return model


def _joined(name):
    parts = []
    for part in name.split("/"):
        if part.isdigit():
            parts[-1] += "_" + part
        else:
            parts.append(part)
    return "/".join(parts)


@pytest.mark.parametrize(
    "targets", ["spatial", "temporal", "temporal_all_linear", ALL_LINEAR], ids=lambda t: t[:8]
)
def test_peft_reads_the_file(base, params, inputs, tmp_path, targets):
    lora = random_lora(params, targets)
    file = export.save_lora(tmp_path / "lora.safetensors", lora, rank=RANK, scale=SCALE)
    tensors = safetensors_torch.load_file(file)
    model = fresh(base)
    names = [export.torch_name(path) for path in lora]
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names)
    peft.inject_adapter_in_model(config, model)
    result = peft.set_peft_model_state_dict(model, tensors)
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key]
    out = run_torch(model, inputs)
    assert rel_error(out, run_torch(merged_by_hand(base, lora, SCALE), inputs)) <= 1e-5
    assert rel_error(out, run_torch(base, inputs)) > 1e-2  # the LoRA matters


# peft says so about any second adapter; here two are what is wanted.
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
@pytest.mark.parametrize("prefix", ["", "unet"])
def test_diffusers_loads_two_files_of_different_rank(base, params, inputs, tmp_path, prefix):
    spatial = random_lora(params, "spatial", 4, seed=2)
    # Two ranks within one file: they travel in the metadata's rank_pattern.
    temporal = tree.combine(
        random_lora(params, "temporal", 6, seed=3),
        random_lora(params, (r".*/temporal_transformer_blocks_0/ff/.*", r".*/linear_1"), 2, seed=4),
    )
    model = fresh(base, Loadable)
    for name, lora in {"spatial": spatial, "temporal": temporal}.items():
        file = export.save_lora(tmp_path / f"{name}.safetensors", lora, prefix=prefix)
        model.load_lora_adapter(
            str(tmp_path), weight_name=file.name, prefix=prefix or None, adapter_name=name
        )
    model.set_adapters(["spatial", "temporal"], [1.0, 0.5])
    expected = merged_by_hand(merged_by_hand(base, spatial), temporal, 0.5)
    assert rel_error(run_torch(model, inputs), run_torch(expected, inputs)) <= 1e-5
    model.set_adapters("spatial", 1.0)
    expected = merged_by_hand(base, spatial)
    assert rel_error(run_torch(model, inputs), run_torch(expected, inputs)) <= 1e-5


def test_our_reader_understands_what_diffusers_writes(base, params, tmp_path):
    lora = random_lora(params, ("spatial", "temporal"))
    model = fresh(base, Loadable)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=3 * RANK, target_modules=[export.torch_name(path) for path in lora]
    )
    peft.inject_adapter_in_model(config, model, adapter_name="mine")
    model.peft_config = {"mine": config}
    file = export.save_lora(tmp_path / "ours.safetensors", lora)
    peft.set_peft_model_state_dict(model, safetensors_torch.load_file(file), adapter_name="mine")
    model._hf_peft_config_loaded = True
    model.save_lora_adapter(str(tmp_path), adapter_name="mine", weight_name="theirs.safetensors")
    back = export.load_lora(tmp_path / "theirs.safetensors")
    assert back.keys() == lora.keys()
    for path, delta in lora.items():
        np.testing.assert_array_equal(back[path]["a"], delta["a"])
        np.testing.assert_allclose(back[path]["b"], 3 * delta["b"], rtol=1e-6)


@pytest.mark.parametrize("targets", [("spatial", "temporal"), ALL_LINEAR], ids=["attn1", "all"])
def test_our_unet_with_adapters_equals_diffusers_with_the_file(
    base, params, inputs, tmp_path, targets
):
    unet = pytest.importorskip("recapture_jax.models.unet")
    lora = random_lora(params, targets)
    file = export.save_lora(tmp_path / "lora.safetensors", lora, rank=RANK, scale=SCALE)
    reference = fresh(base, Loadable)
    reference.load_lora_adapter(str(tmp_path), weight_name=file.name, prefix=None)
    expected = run_torch(reference, inputs)

    network = unet.UNet(unet.UNetConfig.from_dict(TINY))

    @jax.jit
    def additive(params, lora, inputs):
        with adapter.adapters(lora, SCALE):
            return network.apply({"params": params}, *inputs)

    out = additive(params, lora, inputs)
    assert rel_error(expected, run_torch(base, inputs)) > 1e-2
    assert rel_error(out, expected) <= 2e-6


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
@pytest.mark.parametrize("image_only", [False, True], ids=["video", "image-only"])
def test_every_delta_is_hit_in_our_unet_and_its_gradient(params, inputs, remat, image_only):
    unet = pytest.importorskip("recapture_jax.models.unet")
    network = unet.UNet(unet.UNetConfig.from_dict(TINY), remat=remat)
    both = random_lora(params, ("spatial", "temporal_all_linear"))
    spatial, temporal = tree.split(both, "spatial")
    reached = []

    def loss(lora):
        with adapter.adapters(lora, require_all=False) as hits:
            out = network.apply({"params": params}, *inputs, image_only=image_only)
        reached.append(hits)
        return (out**2).mean()

    grads = jax.eval_shape(jax.grad(loss), both)
    assert jax.tree.structure(grads) == jax.tree.structure(both)
    assert len(spatial) == 4 * 4 and len(temporal) == 4 * 10  # 4 transformers
    for hits in reached:
        assert hits == set(spatial if image_only else both)
