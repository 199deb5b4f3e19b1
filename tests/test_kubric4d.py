"""The Kubric-4D protocol on rendered scenes: exact samples, and the same from the real layout."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kubric4d_miniature import MOVE, SMALL, VIEWS, miniature_sample, write_miniature
from scipy import ndimage

from experiments.kubric4d import examples, layout, protocol, rendered, rig
from recapture_jax.evaluation.images import psnr
from recapture_jax.evaluation.temporal import warp_error

LENS = jnp.asarray(rig.intrinsics(SMALL), jnp.float32)


@pytest.fixture(scope="module")
def scene():
    return rendered.make(3, "validation")


def test_rendered_scenes_are_open_and_seeded(scene):
    assert not bool(scene.room) and int(scene.enabled.sum()) >= 3
    frames = np.arange(14) * 4
    times = rendered.seconds(frames)
    poses = jnp.asarray(rig.gradual(rig.SOURCE, rig.SOURCE), jnp.float32)
    first = rendered.film(scene, times, LENS, poses, SMALL)
    again, other = rendered.make(3, "validation"), rendered.make(3, "test")
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), scene, again))
    assert not np.allclose(scene.position, other.position, atol=0.1)
    assert len(np.unique(first[2])) >= 3 and (np.asarray(first[2]) == 0).any()
    record = rendered.record(scene, rig.SOURCE_VIEW, frames, SMALL)
    plane = layout.plane_depth(record.distance, record.intrinsics)
    np.testing.assert_allclose(plane, first[1], rtol=1e-5)


def test_exact_flow_explains_moving_objects_and_a_moving_camera(scene):
    times = rendered.seconds(np.arange(14) * 3)
    poses = jnp.asarray(rig.gradual(rig.SOURCE, (67.0, 31.0, 12.0)), jnp.float32)
    clip, depth, labels = rendered.film(scene, times, LENS, poses, SMALL)
    flow, seen = rendered.exact_flow(scene, times, depth, labels, LENS, poses)
    seen = np.asarray(seen)
    objects = seen & (np.asarray(labels[:-1]) > 0)
    assert seen.mean() > 0.8 and objects.sum() > 200
    clip, flow = np.asarray(clip), np.asarray(flow)
    for valid in (seen, objects):
        still = warp_error(clip, np.zeros_like(flow), valid)
        assert warp_error(clip, flow, valid) < 0.35 * still
    static = jnp.tile(poses[:1], (14, 1, 1))
    _, depth, labels = rendered.film(scene, times, LENS, static, SMALL)
    flow, _ = rendered.exact_flow(scene, times, depth, labels, LENS, static)
    ground, flow = np.asarray(labels[:-1]) == 0, np.asarray(flow)
    assert np.abs(flow[ground]).max() < 2e-2  # float32, far away
    assert np.abs(flow[~ground]).max() > 0.1


@pytest.fixture(scope="module")
def sample():
    return miniature_sample()


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    return write_miniature(tmp_path_factory.mktemp("kubric"))


def test_rendered_sample_is_exact(sample):
    assert sample.kind == "exact" and sample.truth.shape == (14, *SMALL, 3)
    np.testing.assert_array_equal(sample.truth[0], sample.source[0])
    assert not sample.occluded[0].any() and 0.05 < sample.occluded[-1].mean() < 0.8
    np.testing.assert_allclose(sample.source_from_target[0], np.eye(4), atol=1e-6)


def test_recorded_sample_is_the_same_scene_splatted(miniature, sample):
    """The two truths of one move agree, and so do the masks, but for holes and edges."""
    root = layout.data_root(miniature)
    options = {"views": VIEWS, "faithful": False, "render_size": SMALL}
    recorded = protocol.recorded_sample(root, "scn00003", MOVE, SMALL, **options)
    assert recorded.kind == "splat, clean"
    np.testing.assert_allclose(recorded.source_from_target, sample.source_from_target, atol=1e-6)
    near = np.isclose(recorded.depth, sample.depth, rtol=0.02)
    assert near.mean() > 0.9
    for t in (0, 13):
        score = psnr(recorded.truth[t], sample.truth[t], ~sample.occluded[t])
        wrong = psnr(recorded.truth[t], sample.truth[13 - t], ~sample.occluded[t])
        assert score > 17 and score > wrong + 3
    # The splat's points are wide: narrow holes close and edges recede, but what is black is hidden.
    wide = ndimage.binary_erosion(sample.occluded[-1], iterations=3)
    assert recorded.occluded[-1][wide].mean() > 0.9
    assert sample.occluded[-1][recorded.occluded[-1]].mean() > 0.95
    faithful = protocol.recorded_sample(
        root, "scn00003", MOVE, SMALL, **options | {"faithful": True}
    )
    assert faithful.kind == "splat"
    assert 15 < psnr(faithful.truth[5], recorded.truth[5]) < 60


def test_written_scenes_are_finished_once(miniature):
    path = miniature / "data" / "scn00003" / "scn00003_p0_v4.json"
    meta, stamp = json.loads(path.read_text()), path.stat().st_mtime_ns
    assert meta["generator"] == rendered.GENERATOR
    write_miniature(miniature)
    assert path.stat().st_mtime_ns == stamp


def test_examples_have_the_shapes_they_promise(miniature, sample):
    made = examples.example(sample, "sample_00", MOVE)
    for name, (shape, dtype) in examples.feature_shapes(SMALL).items():
        assert made[name].shape == shape and made[name].dtype == dtype, name
    root = layout.data_root(miniature)
    assert examples.recorded_splits(root) == {"train": ["scn00003"]}
    given = {"scn00003": {"sample_05": dataclasses.replace(MOVE, frame_start=0)}}
    options = {"views": VIEWS, "render_size": (64, 96)}
    ((key, found),) = examples.recorded(root, ["scn00003"], SMALL, given, **options)
    assert key == "scn00003_sample_05" and found["truth"] == "splat"
    assert found["frames"].tolist() == list(range(14))
