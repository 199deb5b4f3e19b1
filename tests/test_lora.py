"""LoRA trees, targets, the adapter in the forward pass."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from lora_toy import FLOAT32, Toy, full_size, random_lora, rel_error, toy  # noqa: F401  fixtures among them

from recapture_jax.errors import InputError
from recapture_jax.lora import adapter, export, tree
from recapture_jax.lora import targets as lora_targets

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
def test_counts_of_the_full_size_model(full_size, targets, modules, parameters):  # noqa: F811
    shapes = full_size[1]
    lora = jax.eval_shape(lambda key: tree.init(key, shapes, targets, 16), jax.random.key(0))
    assert len(lora) == modules
    assert tree.count(lora) == parameters


def test_spatial_and_temporal_are_disjoint_and_without_useless_layers(full_size):  # noqa: F811
    paths = [export.module_path(name) for name in full_size[0]]
    spatial = set(lora_targets.select("spatial", paths))
    temporal = set(lora_targets.select("temporal_all_linear", paths))
    assert not spatial & temporal
    assert set(lora_targets.select("temporal", paths)) < temporal
    assert all("/temporal_transformer_blocks_0/" in path for path in temporal)
    assert not any("temporal" in path for path in spatial)
    assert len(lora_targets.select(lora_targets.WITHOUT_EFFECT, paths)) == 64
    assert not any(lora_targets.matches(lora_targets.WITHOUT_EFFECT, p) for p in spatial | temporal)


def test_selection_without_a_match_names_similar_paths(full_size):  # noqa: F811
    with pytest.raises(InputError, match=r"matches none of the \d+ linear layers.*/attn1/to_q"):
        tree.init(
            jax.random.key(0), full_size[1], ["spatial", r"transformer_blocks_0/attn1/to_qq"], 4
        )
    with pytest.raises(InputError, match="not a regular expression"):
        lora_targets.patterns("(")
    with pytest.raises(InputError, match="no LoRA targets"):
        lora_targets.patterns(())


# Trees.


def test_init_statistics_and_independence(full_size):  # noqa: F811
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
def test_init_refuses_bad_ranks(toy, rank):  # noqa: F811
    with pytest.raises(InputError, match="rank"):
        tree.init(jax.random.key(0), toy[0], "spatial", rank)


def test_zero_init_changes_nothing(toy):  # noqa: F811
    params, x = toy
    lora = tree.init(jax.random.key(0), params, ".*", 4)
    expected = Toy().apply({"params": params}, x)
    with adapter.adapters(lora):
        np.testing.assert_array_equal(Toy().apply({"params": params}, x), expected)
    np.testing.assert_array_equal(Toy().apply({"params": tree.merge(params, lora)}, x), expected)


def test_merge_against_numpy_and_its_dtype(toy):  # noqa: F811
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


def test_merge_refuses_what_does_not_fit(toy):  # noqa: F811
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


def test_combine_split_scale(toy):  # noqa: F811
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
def test_additive_equals_merged_in_value_and_gradient(toy, remat, jit):  # noqa: F811
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


def test_several_loras_add_up(toy):  # noqa: F811
    params, x = toy
    first, second = (
        random_lora(params, "spatial", seed=2),
        random_lora(params, "spatial", 5, seed=3),
    )
    with adapter.adapters(first, 0.5), adapter.adapters(second, 2.0):
        y = Toy().apply({"params": params}, x)
    both = tree.merge(tree.merge(params, first, 0.5), second, 2.0)
    assert rel_error(y, Toy().apply({"params": both}, x)) <= FLOAT32


def test_low_precision_layers_keep_their_dtype(toy):  # noqa: F811
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


def test_prefix_places_the_deltas_under_a_submodule(toy):  # noqa: F811
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


def test_a_delta_that_is_never_used_raises(toy):  # noqa: F811
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


def test_an_error_of_the_body_is_not_masked_and_the_context_ends(toy):  # noqa: F811
    params, x = toy
    lora = random_lora(params, "spatial")
    expected = Toy().apply({"params": params}, x)
    with pytest.raises(ZeroDivisionError), adapter.adapters(lora):
        raise ZeroDivisionError
    np.testing.assert_array_equal(Toy().apply({"params": params}, x), expected)


def test_a_delta_of_another_shape_raises(toy):  # noqa: F811
    params, x = toy
    lora = {"linear_1": {"a": jnp.zeros((6, 2)), "b": jnp.zeros((2, 1))}}  # would broadcast
    with pytest.raises(InputError, match="linear_1 is 6 -> 1, the layer maps"):
        adapter.apply_with_lora(Toy().apply, lora)({"params": params}, x)
