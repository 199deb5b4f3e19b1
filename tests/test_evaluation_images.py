"""PSNR and SSIM against scikit-image and against loops; regions by GCD's rules; intervals."""

import numpy as np
import pytest
from scipy import stats
from skimage import metrics

from recapture_jax.errors import InputError
from recapture_jax.evaluation import images, intervals, optional

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 20, 26


def pair(seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(size=(HEIGHT, WIDTH, 3)).astype(np.float32)
    return np.clip(truth + noise * rng.standard_normal(truth.shape), 0, 1), truth


def loop_ssim(a, b):
    """Means over 7x7 windows, sample covariance, written out; one channel."""
    found = np.zeros((HEIGHT - 6, WIDTH - 6))
    for i, j in np.ndindex(*found.shape):
        x, y = a[i : i + 7, j : j + 7].ravel(), b[i : i + 7, j : j + 7].ravel()
        ((vx, cov), (_, vy)) = np.cov(x, y)  # divides by 48
        c1, c2 = 0.01**2, 0.03**2
        structure = (2 * cov + c2) / (vx + vy + c2)
        found[i, j] = (
            structure * (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
        )
    return found


def test_whole_frames_agree_with_scikit_image():
    result, truth = pair()
    expected = metrics.peak_signal_noise_ratio(truth, result, data_range=1)
    assert images.psnr(result, truth) == pytest.approx(expected, abs=1e-5)
    expected = metrics.structural_similarity(truth, result, data_range=1, channel_axis=-1)
    assert images.ssim_mean(images.ssim_map(result, truth)) == pytest.approx(expected, abs=1e-5)


def test_ssim_map_is_the_uniform_window_with_sample_covariance():
    result, truth = (x.astype(np.float64) for x in pair())
    expected = np.mean([loop_ssim(result[..., c], truth[..., c]) for c in range(3)], axis=0)
    np.testing.assert_allclose(images.ssim_map(result, truth), expected, atol=1e-9)


def test_regions_follow_gcd():
    """PSNR over the region's pixels; SSIM over its core, three erosions with a cross, minus 3."""
    result, truth = pair()
    region = np.zeros((HEIGHT, WIDTH), bool)
    region[2:15, 4:22] = True
    region[8, 12] = False
    error = np.square(result - truth)[region]
    expected = metrics.peak_signal_noise_ratio(truth[region], result[region], data_range=1)
    assert images.psnr(result, truth, region) == pytest.approx(expected, abs=1e-5)
    assert images.psnr(result, truth, region) == pytest.approx(-10 * np.log10(error.mean()))

    core = region
    for _ in range(3):
        p = np.pad(core, 1)
        core = core & p[:-2, 1:-1] & p[2:, 1:-1] & p[1:-1, :-2] & p[1:-1, 2:]
    assert 0 < core.sum() < region.sum() / 2
    similarity = images.ssim_map(result, truth)
    expected = similarity[core[3:-3, 3:-3]].mean()
    assert images.ssim_mean(similarity, region) == pytest.approx(expected, abs=1e-12)


def test_the_frame_border_erodes_a_region():
    """Outside the image nothing is occluded: a region at the border loses 3 pixels there, too."""
    similarity = np.zeros((HEIGHT - 6, WIDTH - 6))
    similarity[0] = 1.0  # row 3 of the frame
    everything = np.ones((HEIGHT, WIDTH), bool)
    assert images.ssim_mean(similarity, everything) == pytest.approx(1 / (HEIGHT - 6))
    everything[:2] = False  # now row 3 is eroded, rows 5 and on are left
    assert images.ssim_mean(similarity, everything) == 0


def test_frame_scores_and_their_means_drop_what_is_empty():
    result, truth = (np.stack([x, x, x]) for x in pair())
    occluded = np.zeros(truth.shape[:-1], bool)
    occluded[1:, :, :14] = True
    occluded[2] = True
    scores = images.frame_scores(result, truth, occluded)
    assert set(scores) == {f"{m}_{r}" for m in ("psnr", "ssim") for r in ("all", "occ", "vis")}
    assert np.isnan(scores["psnr_occ"][0]) and np.isnan(scores["ssim_occ"][0])
    assert np.isnan(scores["psnr_vis"][2]) and not np.isnan(scores["psnr_vis"][1])
    assert scores["psnr_occ"][2] == scores["psnr_all"][2]
    means = images.mean_over_frames(scores)
    assert means["psnr_occ"] == pytest.approx(np.mean(scores["psnr_occ"][1:]))
    last = images.mean_over_frames(scores, images.AVERAGES["last"])
    assert last["psnr_all"] == scores["psnr_all"][2] and np.isnan(last["psnr_vis"])
    without = images.mean_over_frames({"x": [9.0, 1.0, 2.0]}, images.AVERAGES["1-13"])
    assert without == {"x": 1.5}


def test_equal_frames_are_100_db_not_infinite():
    _, truth = pair()
    assert images.psnr(truth, truth) == pytest.approx(100)
    assert np.isnan(images.psnr(truth, truth, np.zeros((HEIGHT, WIDTH), bool)))


def test_bad_input_is_refused():
    _, truth = pair()
    clip, mask = truth[None], np.zeros((1, HEIGHT, WIDTH), bool)
    with pytest.raises(InputError, match="belong"):
        images.frame_scores(clip[:, 1:], clip, mask)
    with pytest.raises(InputError, match="NaN"):
        images.frame_scores(clip * np.nan, clip, mask)
    with pytest.raises(InputError, match="at least 7"):
        images.ssim_map(truth[:6], truth[:6])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(optional, "installed", lambda module: False)
    with pytest.raises(InputError, match="SSIM needs the package scikit-image.*pip install"):
        images.ssim_map(*pair())


def test_interval_is_students():
    values = RNG.normal(3.0, 2.0, 12)
    found = intervals.interval([*values, np.nan])
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert found.count == 12 and found.mean == pytest.approx(values.mean())
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert intervals.interval([1.0, 1.1, 0.9]).excludes_zero
    assert not intervals.interval([1.0, -1.1, 0.9]).excludes_zero
    lone = intervals.interval([2.0])
    assert np.isnan(lone.half) and not lone.excludes_zero
    assert [intervals.text(intervals.interval(v), 1) for v in ([], [2.0], [1.0, 1.0])] == [
        "-",
        "2.0",
        "1.0 ± 0.0",
    ]


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        found = intervals.interval(rng.normal(0.5, 1.0, 6))
        hits += abs(found.mean - 0.5) <= found.half
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)
