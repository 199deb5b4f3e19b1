"""The oracle benchmark: its measures, its baselines (with their known defects), its table."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import splat as bench
from experiments.oracle import __main__ as oracle
from experiments.oracle import baselines, measure, views
from recapture_jax.camera import pose
from recapture_jax.camera.pinhole import intrinsics_from_fov
from recapture_jax.geometry import masks

IDENTITY = np.eye(4, dtype=np.float32)


def move_in(z):
    return np.asarray(pose.translation(jnp.array([0.0, 0.0, z])))


def box_scene(width=129, height=97):
    """A box at depth 2.5 (green) before a wall at 5 (red)."""
    v, u = np.mgrid[:height, :width] + 0.5
    box = (abs(u - width / 2) < 16) & (abs(v - height / 2) < 12)
    colors = np.where(box[..., None], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]).astype(np.float32)
    k = np.asarray(intrinsics_from_fov(40, height, width))
    return colors, np.where(box, 2.5, 5.0).astype(np.float32), k, (u - width / 2, v - height / 2)


def test_score_counts_errors_lies_and_holes():
    truth = np.full((2, 4, 3), 0.5)
    colors = truth.copy()
    colors[0, 0, 1] = 0.8  # false
    colors[0, 1] += 0.1  # off, within the threshold
    colors[1, 0] = 0.0  # wrong, but unknown
    known = np.ones((2, 4), bool)
    known[1, :2] = False
    found = measure.score(colors, known, truth)
    assert found.holes == 0.25 and found.false_known == pytest.approx(1 / 6)
    assert found.psnr == pytest.approx(-10 * np.log10((0.3**2 + 3 * 0.1**2) / 18))
    nothing = measure.score(colors, known & False, truth)
    assert nothing.holes == 1 and np.isnan(nothing.psnr)


@pytest.mark.parametrize("warp", [baselines.bilinear_z_weighted, baselines.nearest_z_buffer])
def test_baselines_on_layers(warp):
    """No move changes nothing; the near box covers the wall; a hole opens beside it."""
    colors, depth, k, (x, _) = box_scene()
    still, known = warp(colors, depth, k, k, IDENTITY)
    # Rounding gives the bilinear rule's neighbours weights of about 1e-5.
    inner = abs(abs(x) - 16) > 1
    assert known.all() and np.abs(still - colors)[inner].max() < 1e-3
    aside = np.asarray(pose.translation(jnp.array([-0.4, 0.0, 0.0])))
    image, known = warp(colors, depth, k, k, aside)
    row = image[48]
    shift = float(k[0, 0]) * 0.4 / 2.5
    middle = int(64.5 + shift)
    np.testing.assert_allclose(row[middle - 8 : middle + 8], [[0, 1, 0]] * 16, atol=1e-3)
    assert not known[48, middle - 16 - int(shift / 2) + 3]


@pytest.mark.parametrize("magnification, shows", [(1.9, 0.0), (2.5, 0.31), (3.0, 0.46)])
def test_bilinear_rule_has_the_see_through_that_is_known_of_it(magnification, shows):
    """Measured on the public code: share of a magnified foreground that shows the background."""
    colors, depth, k, (x, y) = box_scene()
    image, known = baselines.bilinear_z_weighted(
        colors, depth, k, k, move_in(2.5 * (1 - 1 / magnification))
    )
    inside = (abs(x) < 14 * magnification) & (abs(y) < 10 * magnification)
    wrong = known & inside & (image[..., 0] > 0.5)
    assert wrong.sum() / inside.sum() == pytest.approx(shows, abs=0.06)


def test_bilinear_rule_draws_what_is_behind_the_camera():
    colors, depth, k, _ = box_scene()
    image, known = baselines.bilinear_z_weighted(colors, depth, k, k, move_in(3.0))
    assert (known & (image[..., 1] > 0.5)).mean() > 0.01
    image, known = baselines.nearest_z_buffer(colors, depth, k, k, move_in(3.0))
    assert known.any() and image[..., 1].max() == 0


def test_public_code_with_all_its_work_draws_the_same():
    colors, depth, k, _ = box_scene()
    views_of = (colors, depth, k, k * np.array([[1.2], [1.1], [1]], np.float32), move_in(0.7))
    (lean, known), (full, as_known) = (
        warp(*views_of) for warp in (baselines.bilinear_z_weighted, baselines.bilinear_with_depth)
    )
    assert 0.5 < known.mean() and (known == as_known).mean() > 0.999
    # Rounding moves points by about 1e-5 px, which at an outline decides who is seen.
    assert (np.abs(lean - full).max(-1) > 1e-3).mean() < 0.002


def test_hiding_by_torn_points_lies_less_than_the_usual_warper():
    source = views.source(0, 0, 96, 160)
    for move in ("dolly in 0.5", "truck right 0.1", "orbit right 10"):
        path = source.trajectory(move)
        truth, found = source.truth(path), measure.warps(source, path)
        ours, usual = (
            measure.score(*found[name], truth) for name in ("ours", "bilinear z-weighted")
        )
        assert ours.psnr > usual.psnr and ours.false_known < usual.false_known, move


def test_eroded_is_our_erosion():
    known = np.random.default_rng(0).uniform(size=(13, 17)) > 0.05
    np.testing.assert_array_equal(baselines.eroded(known, 2), masks.erode(jnp.asarray(known), 2))


def test_views_are_exact():
    """No move: the truth is the source. A turn on the spot: the truth is the same light."""
    source = views.source(0, 0, 24, 40)
    still = source.trajectory("static")
    np.testing.assert_array_equal(source.truth(still), source.colors)
    turned = source.trajectory("pan right 6")
    found = measure.warps(source, turned)
    assert set(found) == set(measure.METHODS)
    for colors, known in found.values():
        assert colors.shape == (24, 40, 3) and 0.5 < known.mean() < 1
        assert np.abs(colors - source.truth(turned))[known].mean() < 0.05


def test_table_has_a_row_per_move_and_numbers(capsys):
    moves = ("static", "pan right 170", "zoom in 2")
    scores, skipped = oracle.run(1, 24, 40, moves=moves)
    assert skipped == 1 and set(scores) == {"static", "zoom in 2"}
    assert scores["static"]["ours"][0].psnr == 100 and scores["static"]["ours"][0].holes == 0
    assert scores["zoom in 2"]["nearest z-buffer"][0].holes > 0.5
    assert scores["zoom in 2"]["ours"][0].holes == 0
    own, resampled, finer = (scores["zoom in 2"][name][0] for name in measure.DETAILS)
    assert own.psnr < resampled.psnr - 0.5 and resampled == scores["zoom in 2"]["ours"][0]
    assert finer.psnr > 99  # a pixel of the larger picture is a pixel of the view
    assert oracle._enlarged(scores).keys() == {"zoom in 2 (1)"}
    lines = oracle.table(scores).splitlines()
    assert len(lines) == 2 + 2 + 1
    assert {line.count("|") for line in lines} == {2 + len(measure.METHODS)}
    assert "100.0 / 0.00 / 0.0" in lines[2]


def test_all_unknown_views_do_not_spoil_the_mean():
    nothing, some = measure.score(np.ones((1, 1, 3)), np.zeros((1, 1), bool), 0), None
    some = measure.Score(30.0, 0.02, 0.1)
    scores = {"a": {name: [nothing, some] for name in measure.METHODS}}
    scores |= {"b": {name: [nothing] for name in measure.METHODS}}
    lines = oracle.table(scores).splitlines()
    assert "30.0 / 2.00 / 55.0" in lines[2] and "nan / nan / 100.0" in lines[3]
    assert "30.0 / 2.00 / 70.0" in lines[4]


def test_bench_times_both_and_scores_both():
    records = bench.compare(24, 40, 1, moves=("static", "zoom in 3"), frames=2)
    assert [(r["move"], r["name"]) for r in records] == [
        (m, n) for m in ("static", "zoom in 3") for n in ("public rule", "public, all", "ours")
    ]
    assert all(r["wall"] > 0 and r["cpu"] >= 0 for r in records)
    by = {(r["move"], r["name"]): r["score"] for r in records}
    assert by["static", "ours"].psnr == 100
    assert by["zoom in 3", "ours"].holes == 0 < by["zoom in 3", "public rule"].holes
    assert bench.table(records).count("x faster") == 2


def test_command_refuses_nonsense():
    command = [sys.executable, "-m", "experiments.oracle", "--clips=0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "--clips=0" in done.stderr
    assert done.stderr.count("\n") == 1
