"""The Kubric-4D protocol: cameras, moves, files, and ground truth from points."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from experiments.kubric4d import controls, layout, pointcloud, rig
from recapture_jax.camera import pose
from recapture_jax.errors import InputError

SMALL = (64, 96)


def test_cameras_are_the_published_ones():
    k = rig.intrinsics(rig.RECORDED_SIZE)
    np.testing.assert_array_equal(k, [[576, 0, 288], [0, 576, 192], [0, 0, 1]])
    assert rig.VIEWS[:4] == ((0, 45, 15), (90, 45, 15), (180, 45, 15), (270, 45, 15))
    assert rig.VIEWS[rig.SOURCE_VIEW] == rig.SOURCE and rig.VIEWS[15] == (345, 5, 15)
    poses = rig.poses(np.array(rig.VIEWS))
    eyes = poses[:, :3, 3]
    np.testing.assert_allclose(np.linalg.norm(eyes - [0, 0, 1], axis=-1), 15)
    np.testing.assert_allclose(eyes[:4, 2], 1 + 15 * np.sqrt(0.5))
    looks = pose.look_at(jnp.asarray(eyes), jnp.array([0.0, 0, 1]), jnp.array([0.0, 0, 1]))
    np.testing.assert_allclose(poses, looks, atol=2e-6)


def test_gradual_moves_are_linear_and_end_at_frame_13():
    path = rig.gradual(rig.SOURCE, (75.0, 30.0, 12.0))
    assert path.shape == (14, 4, 4)
    np.testing.assert_array_equal(path[0], rig.poses(np.array(rig.SOURCE)))
    np.testing.assert_array_equal(path[13], rig.poses(np.array((75.0, 30.0, 12.0))))
    share = 4 / 13
    middle = (15 + 60 * share, 5 + 25 * share, 15 - 3 * share)
    np.testing.assert_allclose(path[4], rig.poses(np.array(middle)), atol=1e-12)


def test_drawn_moves_stay_in_the_training_ranges():
    drawn = [controls.draw("scn02900", i) for i in range(300)]
    ends = np.array([c.spherical_end for c in drawn])
    assert (np.abs(ends[:, 0] - 15) <= 90).all() and np.ptp(ends[:, 0]) > 150
    assert ends[:, 1].min() >= 0 and 30 < ends[:, 1].max() <= 35
    assert ends[:, 2].min() >= 12 and ends[:, 2].max() <= 18
    assert {c.frame_skip for c in drawn} == {1, 2, 3, 4}
    assert {c.frame_start for c in drawn} == set(range(7))
    assert max(c.frames().max() for c in drawn) < 60
    assert controls.draw("a", 0) == controls.draw("a", 0) != controls.draw("b", 0)
    splits = {controls.draw("a", 0, split=s).spherical_end for s in ("train", "validation", "test")}
    assert len(splits) == 3  # a choice on validation scenes has not seen the moves of the tests


def test_controls_files_round_trip_and_refuse_nonsense(tmp_path):
    path = tmp_path / "controls.json"
    made = controls.generate(["scn00000", "scn00001"], samples=2, seed=3)
    controls.write(made, path)
    assert controls.read(path) == made
    data = json.loads(path.read_text())
    data["scn00000"]["sample_00"]["fps"] = 12  # the published file may say more
    path.write_text(json.dumps(data))
    assert controls.read(path) == made
    for key, value, match in (
        ("frame_skip", 0, "frame_skip >= 1"),
        ("spherical_end", [1, 2], "azimuth, elevation, radius"),
        ("spherical_start", None, "scn00000/sample_00"),
    ):
        bad = json.loads(json.dumps(data))
        bad["scn00000"]["sample_00"][key] = value
        path.write_text(json.dumps(bad))
        with pytest.raises(InputError, match=match):
            controls.read(path)
    path.write_text("[1]")
    with pytest.raises(InputError, match="expected {scene"):
        controls.read(path)
    with pytest.raises(InputError, match="no such controls"):
        controls.read(tmp_path / "none.json")


def random_view(frames=3, size=(12, 18), seed=0):
    rng = np.random.default_rng(seed)
    return layout.View(
        rng.integers(0, 256, (frames, *size, 3), dtype=np.uint8),
        rng.uniform(5, 30, (frames, *size)).astype(np.float32),
        rig.intrinsics(size),
        rig.gradual(rig.SOURCE, (80.0, 20.0, 14.0), frames),
        rng.integers(0, 9, (frames, *size), dtype=np.uint8),
    )


def test_layout_round_trip(tmp_path):
    view = random_view()
    layout.write_view(tmp_path / "data", "scn00007", 4, view, {"generator": "test"})
    root = layout.data_root(tmp_path)
    assert root == tmp_path / "data" and layout.scenes(root) == ["scn00007"]
    back = layout.read_view(root, "scn00007", 4, segmentation=True)
    np.testing.assert_array_equal(back.rgb, view.rgb)
    np.testing.assert_array_equal(back.distance, view.distance)
    np.testing.assert_array_equal(back.segmentation, view.segmentation)
    np.testing.assert_allclose(back.intrinsics, view.intrinsics, atol=1e-12)
    np.testing.assert_allclose(back.world_from_camera, view.world_from_camera, atol=1e-12)
    part = layout.read_view(root, "scn00007", 4, [2, 0])
    np.testing.assert_array_equal(part.rgb, view.rgb[[2, 0]])
    np.testing.assert_allclose(part.world_from_camera, back.world_from_camera[[2, 0]])
    assert part.segmentation is None


def test_published_metadata_is_read_as_it_is_written(tmp_path):
    """Kubric's own signs: K for a 32 mm lens at 576x384, a camera on +x that looks back, z up."""
    scene = tmp_path / "scn00000"
    frames = scene / "frames_p0_v0"
    frames.mkdir(parents=True)
    meta = {
        "scene": {"num_frames": 1, "resolution": [576, 384], "fps": 24},
        "camera": {
            "focal_length": 32.0,
            "K": [[1, 0, -0.5], [0, -1.5, -0.5], [0, 0, -1]],
            "positions": [[15.0, 0.0, 1.0]],
            "quaternions": [[0.5, 0.5, 0.5, 0.5]],  # w first: Blender's camera turned to -x, z up
        },
    }
    (scene / "scn00000_p0_v0.json").write_text(json.dumps(meta))
    Image.new("RGBA", (576, 384)).save(frames / "rgba_00000.png")
    depth = np.full((384, 576), 15.0, np.float32)
    Image.fromarray(depth).save(frames / "depth_00000.tiff")
    view = layout.read_view(tmp_path, "scn00000", 0)
    np.testing.assert_allclose(view.intrinsics, rig.intrinsics((384, 576)))
    expected = rig.poses(np.array((0.0, 0.0, 15.0)))
    np.testing.assert_allclose(view.world_from_camera[0], expected, atol=1e-12)
    assert view.rgb.shape == (1, 384, 576, 3)


def test_unfinished_and_damaged_scenes_are_refused(tmp_path):
    layout.write_view(tmp_path, "scn00000", 0, random_view(), {})
    read = layout.read_view
    with pytest.raises(InputError, match="not there or unfinished"):
        read(tmp_path, "scn00000", 1)
    with pytest.raises(InputError, match="there are 3"):
        read(tmp_path, "scn00000", 0, [3])
    frames = tmp_path / "scn00000" / "frames_p0_v0"
    (frames / "rgba_00001.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="rgba_00001.png cannot be read"):
        read(tmp_path, "scn00000", 0)
    (frames / "rgba_00001.png").unlink()
    with pytest.raises(InputError, match="rgba_00001.png is missing"):
        read(tmp_path, "scn00000", 0)
    Image.new("RGBA", (4, 4)).save(frames / "rgba_00000.png")
    with pytest.raises(InputError, match="its metadata says"):
        read(tmp_path, "scn00000", 0, [0])
    (tmp_path / "scn00000" / "scn00000_p0_v0.json").write_text('{"scene": {}}')
    with pytest.raises(InputError, match="not the metadata"):
        read(tmp_path, "scn00000", 0)
    with pytest.raises(InputError, match="expected folders scn00000"):
        layout.data_root(tmp_path / "elsewhere")


def wall(size=(96, 144), distance_to_wall=10.0):
    """A view of a wall at a constant plane depth, seen from the origin along +z."""
    k = rig.intrinsics(size)
    distance = distance_to_wall * layout.ray_lengths(size, k)
    rgb = np.random.default_rng(0).integers(1, 256, (1, *size, 3), dtype=np.uint8)
    return layout.View(rgb, distance[None].astype(np.float32), k, np.eye(4)[None])


def test_clean_points_are_exact_and_quirks_as_large_as_known():
    view = wall()
    xyz, rgb = pointcloud.points(view, 0, faithful=False)
    np.testing.assert_allclose(xyz[:, 2], 10, atol=1e-5)
    u = xyz[:, 0] / xyz[:, 2] * view.intrinsics[0, 0] + view.intrinsics[0, 2]
    np.testing.assert_allclose(u.reshape(96, 144)[5], np.arange(144) + 0.5, atol=1e-4)
    np.testing.assert_array_equal(rgb, view.rgb[0].reshape(-1, 3) / 255)
    quirky, _ = pointcloud.points(view, 0)
    np.testing.assert_array_equal(quirky, quirky.astype(np.float16))
    error = np.abs(quirky[:, 2] / 10 - 1)
    assert 0.0035 < error.max() < 0.0075 and 0.0015 < error.mean() < 0.0035


def loop_splat(xyz, rgb, k, size):
    """The rule for a camera at the origin, one point at a time; weights in logarithms."""
    height, width = size
    kept = []
    for p, c in zip(xyz, rgb, strict=True):
        if p[2] > 0.1:
            u, v = (k @ p)[:2] / p[2]
            i, j = int(v + 0.5), int(u + 0.5)  # towards zero
            if 0 <= i < height and 0 <= j < width:
                kept.append((i, j, p[2], c))
    far = max(z for *_, z, _ in kept)
    total = np.zeros((height, width), np.longdouble)
    sums = np.zeros((height, width, 3), np.longdouble)
    for i, j, z, c in kept:
        for di, dj, share in ((0, 0, 1), (0, 1, 0.02), (1, 0, 0.02), (1, 1, 0.02)):
            if i + di < height and j + dj < width:
                w = share * np.exp(np.longdouble(-512 * (2 * z / far - 1)))
                total[i + di, j + dj] += w
                sums[i + di, j + dj] += w * c
    return (sums / np.where(total > 0, total, 1)[..., None]).astype(np.float64)


def test_splat_agrees_with_loops():
    rng = np.random.default_rng(0)
    xyz = rng.uniform([-4, -3, -1], [4, 3, 9], (400, 3))
    rgb = rng.uniform(size=(400, 3))
    size = (14, 21)
    k = rig.intrinsics(size)
    found = pointcloud.splat(xyz, rgb, k, np.eye(4), size)
    np.testing.assert_allclose(found, loop_splat(xyz, rgb, k, size), atol=1e-9)
    assert (found.sum(-1) == 0).any()
    behind = pointcloud.splat(xyz * [1, 1, -0.001], rgb, k, np.eye(4), size)
    assert not behind.any()


def test_blur_and_reduction_are_torchs():
    rng = np.random.default_rng(1)
    image = rng.uniform(size=(28, 42, 3))
    x = torch.from_numpy(image).permute(2, 0, 1)[:, None]
    offsets = torch.arange(21, dtype=torch.float64) - 10
    kernel = torch.exp(-0.5 * (offsets / 5.25) ** 2)
    kernel = (kernel / kernel.sum())[None]
    expected = F.conv2d(F.pad(x, (10,) * 4, "reflect"), (kernel.T @ kernel)[None, None])
    np.testing.assert_allclose(
        pointcloud.blur(image, 21, 5.25), expected[:, 0].permute(1, 2, 0), atol=1e-12
    )
    expected = F.interpolate(x[:, 0][None].float(), (26, 38), mode="bilinear")[0]
    np.testing.assert_allclose(
        pointcloud.reduced(image, (26, 38)), expected.permute(1, 2, 0), atol=1e-6
    )


def test_fill_takes_colours_from_around_holes_alone():
    image = np.zeros((40, 60, 3))
    image[:, :30] = [0.2, 0.4, 0.6]
    filled = pointcloud.fill(image)
    np.testing.assert_allclose(filled[:, :36], np.broadcast_to([0.2, 0.4, 0.6], (40, 36, 3)))
    assert not filled[:, 45:].any()  # nothing known within reach


def test_occlusion_is_what_the_source_leaves_black():
    view = wall()
    k = rig.intrinsics((70, 105))
    same = pointcloud.occlusion(view, 0, k, np.eye(4), SMALL, True, (70, 105))
    assert not same.any()
    aside = np.eye(4)
    aside[0, 3] = 5.0  # half of the wall's 10 metres to the right
    hidden = pointcloud.occlusion(view, 0, k, aside, SMALL, True, (70, 105))
    assert not hidden[:, :47].any() and hidden[:, 53:].all()  # a blurred edge between
