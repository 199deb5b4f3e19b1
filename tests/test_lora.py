"""LoRA trees, targets, the adapter in the forward pass, and files."""

import json
import re
from pathlib import Path

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import linen as nn

from recapture_jax.errors import InputError
from recapture_jax.lora import adapter, export, tree
from recapture_jax.lora import targets as lora_targets

KEYS = Path(__file__).parent / "data" / "svd_keys" / "unet_sd.json"
FLOAT32 = 1e-6  # relative error allowed between two float32 evaluation orders


class Attention(nn.Module):
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, context):
        def dense(name, bias=False):
            return nn.Dense(x.shape[-1], use_bias=bias, dtype=self.dtype, name=name)

        q, k, v = dense("to_q")(x), dense("to_k")(context), dense("to_v")(context)
        weights = jax.nn.softmax(jnp.einsum("bnc,bmc->bnm", q, k), axis=-1)
        return dense("to_out_0", True)(jnp.einsum("bnm,bmc->bnc", weights, v))


class Block(nn.Module):
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = x + Attention(self.dtype, name="attn1")(x, x)
        return x + nn.Dense(x.shape[-1], dtype=self.dtype, name="proj")(jnp.tanh(x))


class Toy(nn.Module):
    """Paths as in the U-Net: transformer_blocks_0/attn1/to_q, temporal_transformer_blocks_0/..."""

    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, temporal=True):
        block = nn.remat(Block) if self.remat else Block
        x = nn.Dense(8, dtype=self.dtype, name="linear_1")(x)
        x = block(self.dtype, name="transformer_blocks_0")(x)
        if temporal:
            x = block(self.dtype, name="temporal_transformer_blocks_0")(x)
        return x


@pytest.fixture(scope="module")
def toy():
    x = jax.random.normal(jax.random.key(0), (2, 5, 6))
    return Toy().init(jax.random.key(1), x)["params"], x


def random_lora(params, targets, rank=3, seed=2):
    """Both factors random, so that every delta changes the output."""
    lora = tree.init(jax.random.key(seed), params, targets, rank)
    for i, delta in enumerate(lora.values()):
        delta["b"] = 0.3 * jax.random.normal(jax.random.key(100 * seed + i), delta["b"].shape)
    return lora


def rel_error(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def nested(flat):
    params = {}
    for path, value in flat.items():
        *branches, leaf = path.split("/")
        node = params
        for name in branches:
            node = node.setdefault(name, {})
        node[leaf] = value
    return params


def kernels(params):
    """Module paths that have a kernel, written independently of the package."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    paths = ["/".join(key.key for key in path) for path, _ in leaves]
    return {path.removesuffix("/kernel") for path in paths if path.endswith("/kernel")}


@pytest.fixture(scope="module")
def full_size():
    """(torch names of the Linear layers, shapes of the full-size U-Net as a parameter tree)."""
    linear, flat = [], {}
    for key, shape in json.loads(KEYS.read_text()).items():
        owner, leaf = key.rsplit(".", 1)
        leaf = {"weight": "kernel" if len(shape) > 1 else "scale"}.get(leaf, leaf)
        if leaf == "kernel" and len(shape) == 2:
            linear.append(owner)
        path = re.sub(r"\.(\d+)", r"_\1", owner).replace(".", "/")
        flat[f"{path}/{leaf}"] = jax.ShapeDtypeStruct(tuple(shape[::-1]), jnp.bfloat16)
    return linear, nested(flat)


# Targets.


@pytest.mark.parametrize(
    "targets, modules, parameters",
    [
        ("spatial", 64, 1_597_440),
        ("temporal", 64, 1_597_440),
        # attn1 64 layers, attn2 v and out 32, ff 32, ff_in 32
        ("temporal_all_linear", 160, 1_597_440 + 861_184 + 2 * 2_795_520),
        (("spatial", "temporal_all_linear"), 224, 2 * 1_597_440 + 861_184 + 2 * 2_795_520),
        ((r".*/proj_in", r".*/proj_out"), 32, 798_720),
        (r".*/temporal_transformer_blocks_0/.*", 192, 8_910_848),
    ],
)
def test_counts_of_the_full_size_model(full_size, targets, modules, parameters):
    shapes = full_size[1]
    lora = jax.eval_shape(lambda key: tree.init(key, shapes, targets, 16), jax.random.key(0))
    assert len(lora) == modules
    assert tree.count(lora) == parameters


def test_spatial_and_temporal_are_disjoint_and_without_useless_layers(full_size):
    paths = [export.module_path(name) for name in full_size[0]]
    spatial = set(lora_targets.select("spatial", paths))
    temporal = set(lora_targets.select("temporal_all_linear", paths))
    assert not spatial & temporal
    assert set(lora_targets.select("temporal", paths)) < temporal
    assert all("/temporal_transformer_blocks_0/" in path for path in temporal)
    assert not any("temporal" in path for path in spatial)
    assert len(lora_targets.select(lora_targets.WITHOUT_EFFECT, paths)) == 64
    assert not any(lora_targets.matches(lora_targets.WITHOUT_EFFECT, p) for p in spatial | temporal)


def test_selection_without_a_match_names_similar_paths(full_size):
    with pytest.raises(InputError, match=r"matches none of the \d+ linear layers.*/attn1/to_q"):
        tree.init(
            jax.random.key(0), full_size[1], ["spatial", r"transformer_blocks_0/attn1/to_qq"], 4
        )
    with pytest.raises(InputError, match="not a regular expression"):
        lora_targets.patterns("(")
    with pytest.raises(InputError, match="no LoRA targets"):
        lora_targets.patterns(())


# Trees.


def test_init_statistics_and_independence(full_size):
    key = jax.random.key(3)
    path = "down_blocks_2/attentions_0/transformer_blocks_0/attn1/to_q"
    one = tree.init(key, full_size[1], path, 16)
    lora = tree.init(key, full_size[1], r"down_blocks_2/.*/attn1/.*", 16)
    a = np.asarray(lora[path]["a"])
    assert a.shape == (1280, 16) and a.dtype == np.float32
    np.testing.assert_array_equal(a, one[path]["a"])  # whatever else is targeted
    assert abs(a.std() - 1 / 16) < 5 / 16 / np.sqrt(2 * a.size)
    assert abs(a.mean()) < 5 / 16 / np.sqrt(a.size)
    assert not any(np.any(delta["b"]) for delta in lora.values())
    other = np.asarray(lora[path.replace("to_q", "to_k")]["a"])
    assert abs(np.corrcoef(a.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(a.size)
    assert not np.array_equal(a, tree.init(jax.random.key(4), full_size[1], path, 16)[path]["a"])


@pytest.mark.parametrize("rank", [0, -1, 2.0, True])
def test_init_refuses_bad_ranks(toy, rank):
    with pytest.raises(InputError, match="rank"):
        tree.init(jax.random.key(0), toy[0], "spatial", rank)


def test_zero_init_changes_nothing(toy):
    params, x = toy
    lora = tree.init(jax.random.key(0), params, ".*", 4)
    expected = Toy().apply({"params": params}, x)
    with adapter.adapters(lora):
        np.testing.assert_array_equal(Toy().apply({"params": params}, x), expected)
    np.testing.assert_array_equal(Toy().apply({"params": tree.merge(params, lora)}, x), expected)


def test_merge_against_numpy_and_its_dtype(toy):
    params, _ = toy
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    lora = random_lora(params, "temporal")
    merged = tree.merge(half, lora, 0.7)
    assert jax.tree.structure(merged) == jax.tree.structure(half)
    path = "temporal_transformer_blocks_0/attn1/to_v"
    kernel = half["temporal_transformer_blocks_0"]["attn1"]["to_v"]["kernel"]
    a, b = (np.asarray(lora[path][name], np.float64) for name in "ab")
    expected = jnp.asarray(np.asarray(kernel, np.float64) + 0.7 * a @ b, jnp.bfloat16)
    got = merged["temporal_transformer_blocks_0"]["attn1"]["to_v"]["kernel"]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(got, np.float32), np.asarray(expected, np.float32), rtol=2**-7, atol=0
    )
    assert not np.array_equal(got, kernel)
    assert merged["linear_1"]["kernel"] is half["linear_1"]["kernel"]
    assert half["temporal_transformer_blocks_0"]["attn1"]["to_v"]["kernel"] is kernel


def test_merge_refuses_what_does_not_fit(toy):
    params, _ = toy
    lora = random_lora(params, "spatial")
    path = next(iter(lora))
    with pytest.raises(InputError, match="1 of 2 layers are absent, such as elsewhere/to_q"):
        tree.merge(params, {path: lora[path], "elsewhere/to_q": lora[path]})
    wide = {"a": jnp.zeros((9, 3)), "b": jnp.zeros((3, 8))}
    with pytest.raises(InputError, match=r"9 -> 8, the model has a kernel of shape \(8, 8\)"):
        tree.merge(params, {path: wide})
    with pytest.raises(InputError, match="expected"):
        tree.merge(params, {path: {"a": jnp.zeros((8, 3)), "b": jnp.zeros((2, 8))}})


def test_combine_split_scale(toy):
    params, x = toy
    spatial, temporal = random_lora(params, "spatial"), random_lora(params, "temporal")
    both = tree.combine(temporal, spatial)
    assert list(both) == sorted([*spatial, *temporal])
    again = tree.split(both, "spatial")
    assert again[0].keys() == spatial.keys() and again[1].keys() == temporal.keys()
    with pytest.raises(InputError, match="overlap in 4 layers, such as transformer_blocks_0/attn1"):
        tree.combine(both, spatial)
    half = tree.merge(params, tree.scale(both, 0.5))
    expected = Toy().apply({"params": tree.merge(params, both, 0.5)}, x)
    assert rel_error(Toy().apply({"params": half}, x), expected) <= FLOAT32


# The adapter.


@pytest.mark.parametrize("remat", [False, True], ids=["plain", "remat"])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_additive_equals_merged_in_value_and_gradient(toy, remat, jit):
    params, x = toy
    lora = random_lora(params, ("spatial", "temporal", "linear_1"))
    weights = jax.random.normal(jax.random.key(9), (2, 5, 8))

    def merged(lora):
        y = Toy().apply({"params": tree.merge(params, lora, 0.8)}, x)
        return jnp.sum(weights * y), y

    def additive(lora, scale):
        with adapter.adapters(lora, scale) as hits:
            y = Toy(remat).apply({"params": params}, x)
        assert hits == set(lora)
        return jnp.sum(weights * y), y

    run = jax.value_and_grad(additive, has_aux=True)
    (_, y), grads = (jax.jit(run) if jit else run)(lora, jnp.float32(0.8))
    (_, expected), expected_grads = jax.value_and_grad(merged, has_aux=True)(lora)
    base = Toy().apply({"params": params}, x)
    assert rel_error(base, expected) > 0.05  # the deltas matter
    assert rel_error(y, expected) <= FLOAT32
    assert jax.tree.structure(grads) == jax.tree.structure(expected_grads)
    for path, delta in grads.items():
        for name, grad in delta.items():
            # Looser than the whole: behind the softmax large terms cancel.
            assert rel_error(grad, expected_grads[path][name]) <= 5e-6, (path, name)
    whole, expected_whole = (jax.flatten_util.ravel_pytree(g)[0] for g in (grads, expected_grads))
    assert rel_error(whole, expected_whole) <= FLOAT32


def test_several_loras_add_up(toy):
    params, x = toy
    first, second = (
        random_lora(params, "spatial", seed=2),
        random_lora(params, "spatial", 5, seed=3),
    )
    with adapter.adapters(first, 0.5), adapter.adapters(second, 2.0):
        y = Toy().apply({"params": params}, x)
    both = tree.merge(tree.merge(params, first, 0.5), second, 2.0)
    assert rel_error(y, Toy().apply({"params": both}, x)) <= FLOAT32


def test_low_precision_layers_keep_their_dtype(toy):
    params, x = toy
    lora = random_lora(params, ".*")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    toy_half = Toy(dtype=jnp.bfloat16)

    def loss(lora):
        y = adapter.apply_with_lora(toy_half.apply, lora)({"params": half}, x)
        return jnp.sum(y.astype(jnp.float32)), y

    (_, y), grads = jax.value_and_grad(loss, has_aux=True)(lora)
    assert y.dtype == jnp.bfloat16  # although x itself is float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
    exact = Toy().apply({"params": tree.merge(params, lora)}, x)
    assert rel_error(y, exact) < 0.03


def test_prefix_places_the_deltas_under_a_submodule(toy):
    params, x = toy

    class Whole(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Toy(name="unet")(Toy(name="other")(x)[..., :6])

    lora = random_lora(params, "spatial")
    variables = {"unet": params, "other": params}
    y = adapter.apply_with_lora(Whole().apply, lora, prefix="unet")({"params": variables}, x)
    variables = {"unet": tree.merge(params, lora), "other": params}
    assert rel_error(y, Whole().apply({"params": variables}, x)) <= FLOAT32
    with pytest.raises(InputError, match="4 of 4 LoRA layers were not reached"):
        adapter.apply_with_lora(Whole().apply, lora)({"params": variables}, x)


def test_a_delta_that_is_never_used_raises(toy):
    params, x = toy
    lora = random_lora(params, ("spatial", "temporal"))
    with pytest.raises(InputError, match="4 of 8 LoRA layers.*temporal_transformer_blocks_0/attn1"):
        adapter.apply_with_lora(Toy().apply, lora)({"params": params}, x, temporal=False)
    with adapter.adapters(lora, require_all=False) as hits:
        Toy().apply({"params": params}, x, temporal=False)
    assert hits == set(tree.split(lora, "spatial")[0])
    # A compiled call does not run Python again, so a context around it must not go unnoticed.
    run = jax.jit(lambda x: Toy().apply({"params": params}, x))
    run(x)
    with pytest.raises(InputError, match="8 of 8"), adapter.adapters(lora):
        run(x)


def test_an_error_of_the_body_is_not_masked_and_the_context_ends(toy):
    params, x = toy
    lora = random_lora(params, "spatial")
    expected = Toy().apply({"params": params}, x)
    with pytest.raises(ZeroDivisionError), adapter.adapters(lora):
        raise ZeroDivisionError
    np.testing.assert_array_equal(Toy().apply({"params": params}, x), expected)


def test_a_delta_of_another_shape_raises(toy):
    params, x = toy
    lora = {"linear_1": {"a": jnp.zeros((6, 2)), "b": jnp.zeros((2, 1))}}  # would broadcast
    with pytest.raises(InputError, match="linear_1 is 6 -> 1, the layer maps"):
        adapter.apply_with_lora(Toy().apply, lora)({"params": params}, x)


# Files.


def test_names_are_a_bijection_on_all_linear_layers_of_the_model(full_size):
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
def test_round_trip(toy, tmp_path, prefix):
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


def test_scale_is_folded_and_ranks_may_differ(toy, tmp_path):
    spatial, temporal = random_lora(toy[0], "spatial", 3), random_lora(toy[0], "temporal", 5)
    lora = tree.combine(spatial, temporal)
    back = export.load_lora(export.save_lora(tmp_path / "a.safetensors", lora, scale=0.25))
    for path, delta in lora.items():
        np.testing.assert_array_equal(back[path]["a"], delta["a"])
        np.testing.assert_array_equal(back[path]["b"], 0.25 * delta["b"])
    with pytest.raises(InputError, match="rank 5, expected 3"):
        export.save_lora(tmp_path / "b.safetensors", lora, rank=3)


def test_saving_refuses_and_replaces(toy, tmp_path, monkeypatch):
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
