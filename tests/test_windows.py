"""Clips longer than the model's: windows of time that agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax import cost
from recapture_jax.config import default_config, resolve_path
from recapture_jax.diffusion.guidance import Conditioning
from recapture_jax.diffusion.windows import blend_weights, in_windows, plan_windows, window_starts
from recapture_jax.errors import InputError
from recapture_jax.geometry.masks import fill_holes
from recapture_jax.lora import tree as lora_tree
from recapture_jax.scenes.clips import clip_key, paired_clip
from recapture_jax.stages import generate, tune
from recapture_jax.stages.anchor import Anchor
from recapture_jax.tuning.step import Settings, make_loss
from recapture_jax.weights import load_model


@pytest.mark.parametrize(
    "total, length, overlap, starts",
    [
        (14, 14, 6, [0]),
        (5, 14, 6, [0]),
        (15, 14, 6, [0, 1]),
        (22, 14, 6, [0, 8]),
        (40, 14, 6, [0, 8, 16, 24, 26]),
        (12, 4, 0, [0, 4, 8]),
    ],
)
def test_windows_cover_the_clip_and_their_weights_sum_to_one(total, length, overlap, starts):
    found = window_starts(total, length, overlap)
    assert found.tolist() == starts
    weights = blend_weights(total, length, found)
    covered = np.zeros(total)
    for start, row in zip(found, weights, strict=True):
        covered[start : start + weights.shape[1]] += row
    np.testing.assert_allclose(covered, 1.0, atol=1e-6)
    assert weights.min() > 0
    if overlap and len(found) == 2 and total == 22:
        assert weights[1][0] < 0.2  # the conditioning frame is left to the window before


@pytest.mark.parametrize("overlap", [-1, 4, 9])
def test_windows_that_do_not_advance_are_refused(overlap):
    with pytest.raises(InputError, match="windows of 4 frames cannot share"):
        window_starts(10, 4, overlap)


def test_windows_are_as_long_as_trained_and_share_two_fifths():
    starts, length = plan_windows(30, 14, 0, 0)
    assert length == 14 and np.diff(starts).tolist() == [9, 7]
    starts, length = plan_windows(30, 14, 8, 2)
    assert length == 8 and np.diff(starts).tolist() == [6, 6, 6, 4]
    assert plan_windows(5, 14, 0, 0)[1] == 5


def stacked(model, count, frames, size):
    rng = np.random.default_rng(0)
    images = rng.random((count, *size, 3), np.float32)
    conds = [
        model.condition(
            jnp.asarray(image),
            frames,
            fps=7,
            motion_bucket=40,
            noise_aug=0.0,
            key=jax.random.key(0),
        )
        for image in images
    ]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *conds)


def test_what_works_frame_by_frame_is_the_same_in_windows():
    """A denoiser that looks at single frames cannot tell windows from the whole clip."""
    starts = window_starts(11, 5, 2)
    weights = blend_weights(11, 5, starts)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 11, 4, 6, 2)), jnp.float32)
    cond = Conditioning(*(jnp.zeros((len(starts), *s)) for s in [(1, 1), (5, 4, 6, 2), (3,)]))
    unknown = jnp.ones((len(starts), 4, 6))

    def denoise(params, tables, x, sigma, cond):
        return params * jnp.tanh(x) / sigma

    run = in_windows(denoise)
    whole = run(3.0, jnp.zeros(len(starts)), starts, weights, unknown, x, jnp.float32(2.0), cond)
    np.testing.assert_allclose(whole, 1.5 * jnp.tanh(x), rtol=1e-5, atol=1e-6)


def test_each_window_has_its_own_condition_tables_and_guidance():
    starts = window_starts(7, 4, 1)
    weights = blend_weights(7, 4, starts)
    latents = jnp.stack([jnp.full((4, 1, 1, 1), v) for v in (10.0, 20.0)])
    cond = Conditioning(jnp.zeros((2, 1, 3)), latents, jnp.zeros((2, 3)))
    tables = jnp.array([1.0, 2.0])

    def denoise(params, table, x, sigma, cond):
        return jnp.broadcast_to(cond.latents + table, x.shape)  # unconditional: the table alone

    x = jnp.zeros((1, 7, 1, 1, 1))
    args = (None, tables, starts, weights, jnp.zeros((2, 1, 1)), x, jnp.float32(1.0), cond)
    plain = in_windows(denoise)(*args)
    np.testing.assert_allclose(plain[0, :3, 0, 0, 0], 11.0, rtol=1e-6)
    np.testing.assert_allclose(plain[0, 4:, 0, 0, 0], 22.0, rtol=1e-6)
    assert 11.0 < float(plain[0, 3, 0, 0, 0]) < 22.0  # shared
    scales = (1.0, 2.0, 3.0, 4.0)
    guided = in_windows(denoise, scales)(*args)
    np.testing.assert_allclose(guided[0, :3, 0, 0, 0], [11.0, 21.0, 31.0], rtol=1e-6)
    np.testing.assert_allclose(guided[0, 4:, 0, 0, 0], [42.0, 62.0, 82.0], rtol=1e-6)


def test_a_window_goes_on_from_what_the_one_before_invented():
    """Where its first frame is unknown it is conditioned on that estimate, in the conditioning's scale."""
    starts = window_starts(7, 3, 1)
    weights = blend_weights(7, 3, starts)
    latents = jnp.stack([jnp.full((3, 1, 2, 1), v) for v in (1.0, 10.0, 100.0)])
    cond = Conditioning(jnp.zeros((3, 1, 3)), latents, jnp.zeros((3, 3)))
    unknown = jnp.zeros((3, 1, 2)).at[1:, :, 1].set(1.0)  # the left column is known

    def denoise(params, table, x, sigma, cond):
        return 4.0 * cond.latents + jnp.arange(3.0).reshape(1, 3, 1, 1, 1)

    x = jnp.zeros((1, 7, 1, 2, 1))
    run = in_windows(denoise, scaling=4.0)
    made = run(None, jnp.zeros(3), starts, weights, unknown, x, jnp.float32(1.0), cond)[
        0, :, 0, :, 0
    ]
    np.testing.assert_allclose(made[[1, 3, 5], 0], [5.0, 41.0, 401.0], rtol=1e-6)
    np.testing.assert_allclose(made[:, 1], np.arange(4.0, 11.0), rtol=1e-6)  # no seam at all


def test_only_what_the_window_before_has_is_taken_from_it(tiny_model, long_anchor):
    mask = long_anchor.mask.copy()
    mask[4:, :, :16] = False
    anchor = dataclasses.replace(long_anchor, mask=mask)
    unknown = generate._unknown_starts(tiny_model, anchor, np.array([0, 2, 4]), 3)
    assert unknown.shape == (3, 2, 4) and unknown[:2].sum() == 0
    assert unknown[2].tolist() == [[1, 1, 0, 0]] * 2
    assert (
        generate._unknown_starts(tiny_model, anchor, np.array([0, 4]), 4).sum() == 0
    )  # no overlap


@pytest.fixture(scope="module")
def long_anchor():
    """7 frames for a model of 3."""
    frames = np.random.default_rng(0).random((7, 16, 32, 3), np.float32)
    return Anchor(frames, np.ones(frames.shape[:3], bool), np.ones(frames.shape[:3], bool), None)


@pytest.fixture(scope="module")
def config():
    whole = default_config("smoke")
    whole.model.window_overlap = 1
    whole.generate.steps, whole.generate.sdedit_sigma = 2, 0.0
    whole.generate.keep_pixels = False
    return whole


def test_tuning_reads_every_window_with_its_own_first_frame(tiny_model, long_anchor, config):
    data = tune.anchor_data(tiny_model, long_anchor, config)
    assert data.latents.shape[:2] == data.mask.shape[:2] == (3, 3)
    latents = tiny_model.encode_video(jnp.asarray(long_anchor.frames))
    for k, start in enumerate((0, 2, 4)):
        np.testing.assert_allclose(data.latents[k], latents[start : start + 3], atol=1e-6)
        image = jnp.asarray(long_anchor.frames[start : start + 1])
        np.testing.assert_allclose(
            data.cond.context[k], tiny_model.embed_image(image)[0], atol=1e-5
        )
    # A step is of one window, and all of them come up.
    lora = lora_tree.init(jax.random.key(2), tiny_model.params["unet"], "temporal", 2)
    loss = make_loss(tiny_model.network, Settings(), ("temporal",))
    compiled = jax.jit(
        lambda d, key: loss({"temporal": lora}, {}, tiny_model.params["unet"], d, key)
    )

    def lost(mask, key):
        inputs = {"anchor": dataclasses.replace(data, mask=mask)}
        return float(compiled(inputs, jax.random.key(key))[0])

    ones = np.ones(data.mask.shape, bool)
    seen = set()
    for key in range(12):
        known = [
            lost(jnp.asarray(ones & (np.arange(3) == k)[:, None, None, None]), key) > 0
            for k in range(3)
        ]
        assert sum(known) == 1
        seen.add(known.index(True))
    assert seen == {0, 1, 2}


def test_a_known_long_clip_is_sampled_to_its_anchor(tiny_model, long_anchor, config):
    group = config.generate.copy_and_resolve_references()
    group.known_weight, group.known_sigma_min = 1.0, 0.0
    made = generate.generate(tiny_model, long_anchor, {}, config.model, group, seed=0)
    plain = tiny_model.decode(tiny_model.encode_video(jnp.asarray(long_anchor.frames)), 7)
    np.testing.assert_allclose(made, plain, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_windows_share_one_sample(tiny_model, long_anchor, config, guidance):
    """Every frame is sampled, finite, and of the one noise: the same twice, others for other seeds."""
    group = config.generate.copy_and_resolve_references()
    group.known_weight, group.max_guidance = 0.0, guidance
    args = (tiny_model, long_anchor, {}, config.model, group)
    first, again, other = (generate.generate(*args, seed=s) for s in (0, 0, 1))
    assert first.shape == long_anchor.frames.shape and np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean(axis=(1, 2, 3)).min() > 1e-3


def test_one_window_is_the_model_itself(tiny_model, long_anchor, config):
    """A window over the whole clip, and the windows of a clip that fits: one and the same path."""
    group = config.generate.copy_and_resolve_references()
    group.known_weight = 0.0
    short = Anchor(*(v[:3] for v in dataclasses.astuple(long_anchor)[:3]), None)
    own = config.model.copy_and_resolve_references()
    results = []
    for own.window in (0, 3, 9):
        results.append(generate.generate(tiny_model, short, {}, own, group, seed=0))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.fixture(scope="module")
def prior():
    return load_model(resolve_path(default_config("small").model.path))


@pytest.mark.parametrize("scene", range(3))
def test_no_seam_where_a_window_begins(prior, scene):
    """The shipped prior on rendered scenes whose right half nobody knows after the first frame.

    What it invents there changes no more where the second window begins than around it.
    """
    config = default_config("small")
    config.generate.keep_pixels = False
    clip = paired_clip(clip_key(0, "validation", scene), num_frames=22, samples=1)["target"]
    frames = np.asarray(clip["frames"])
    mask = np.ones(frames.shape[:3], bool)
    mask[1:, :, 100:] = False
    filled = np.stack(
        [fill_holes(jnp.asarray(f), jnp.asarray(m)) for f, m in zip(frames, mask, strict=True)]
    )
    starts, _ = tune.windows_of(prior, 22, config.model)
    assert starts.tolist() == [0, 8]
    anchor = Anchor(filled, mask, mask, None)
    made = generate.generate(prior, anchor, {}, config.model, config.generate, seed=0)
    change = np.abs(np.diff(made[:, :, 104:], axis=0)).mean((1, 2, 3))
    assert change[6:9].max() < 1.2 * np.median(change[4:12])


def test_memory_is_flat_and_cost_linear_in_the_number_of_windows(tiny_model):
    """XLA's plan: four times the windows cost the longer latents, not a second network, and four times the work."""
    size, temporary, work = (32, 64), [], []
    for count in (2, 8):
        total = 2 * count + 1
        starts = window_starts(total, 3, 1)
        assert len(starts) == count
        weights = blend_weights(total, 3, starts)
        cond = stacked(tiny_model, count, 3, size)
        one = jax.tree.map(lambda x: x[:1], cond)
        tables = tiny_model.tables(tiny_model.params["unet"], one)
        tables = jax.tree.map(lambda x, n=count: jnp.stack([x] * n), tables)
        x = jnp.zeros((1, total, *cond.latents.shape[2:]))
        unknown = np.ones((count, *cond.latents.shape[2:4]), np.float32)
        params, sigma = tiny_model.params["unet"], jnp.float32(1.0)
        args = params, tables, starts, weights, unknown, x, sigma, cond
        denoise = tiny_model.window_denoiser(None)
        plan = jax.jit(denoise).lower(*args).compile()
        temporary.append(plan.memory_analysis().temp_size_in_bytes)
        work.append(cost.flops(denoise, *args))
    assert temporary[1] < 1.2 * temporary[0]
    assert work[1] == pytest.approx(4 * work[0], rel=1e-6)
    table = jax.tree.map(lambda x: x[0], tables)
    single = cost.flops(tiny_model.sampling_denoiser(), params, table, x[:, :3], sigma, one)
    assert work[0] == pytest.approx(2 * single, rel=1e-6)


@pytest.mark.parametrize("length, overlap", [(14, 5), (14, 8), (25, 10)])
def test_the_number_of_windows_is_linear_in_the_length_of_the_clip(length, overlap):
    for total in range(length, 40 * length, 13):
        count = len(window_starts(total, length, overlap))
        assert count == 1 + -(-(total - length) // (length - overlap))
