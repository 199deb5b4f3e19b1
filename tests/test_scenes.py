"""Synthetic scenes: exact depth, exact views, determinism, disjoint splits, moderate cameras."""

import dataclasses
import pathlib
import tempfile
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from recapture_jax.errors import InputError
from recapture_jax.scenes import cameras, clips, photos, primitives, textures
from recapture_jax.scenes.render import render_frame, render_frame_index
from recapture_jax.scenes.sampling import MAX_OBJECTS, MIN_OBJECTS, sample_scene
from recapture_jax.scenes.scene import (
    BACKDROP,
    GRAVITY,
    GROUND,
    KINDS,
    NUM_SLOTS,
    SURROUND,
    height_of_fall,
    object_poses,
)

HEIGHT, WIDTH = 48, 80
SMALL = {"num_frames": 3, "height": 24, "width": 40}
scenes_of = jax.jit(jax.vmap(sample_scene))
poses_of = jax.jit(object_poses)
render = jax.jit(render_frame_index, static_argnums=(4, 5, 6))


@jax.jit
def paths_of(keys, radii):
    def one(key, radius):
        return cameras.sample_camera_path(key, 14, HEIGHT, WIDTH, radius)

    return jax.vmap(one)(keys, radii)


@cache
def many(count=256):
    """Scenes and camera paths with a leading axis of `count`."""
    keys = jax.random.split(jax.random.key(5), count)
    scenes = scenes_of(keys)
    return scenes, paths_of(jax.vmap(jax.random.fold_in)(keys, jnp.arange(count)), scenes.radius)


def pick(tree, i):
    return jax.tree.map(lambda a: a[i], tree)


@cache
def view(i, time=0.7, frame=0, photographed=False):
    """(scene, intrinsics, pose, rgb, depth, index) of case `i`, its surfaces photographs or not."""
    scenes, paths = many()
    scene, path = pick(scenes, i), pick(paths, i)
    if photographed:
        scene = photos.paste(scene, gradients(), jax.random.key(i), share=1.0)
    k, pose = path.intrinsics[frame], path.world_from_camera[frame]
    rgb, depth, index = render(scene, time, k, pose, HEIGHT, WIDTH, 1)
    return scene, np.asarray(k), np.asarray(pose), *map(np.asarray, (rgb, depth, index))


@cache
def gradients():
    """Three smooth photographs as textures: without detail that a shift of half a pixel would change."""
    with tempfile.TemporaryDirectory() as folder:
        y, x = np.mgrid[:32, :32] / 31
        for n, channels in enumerate(((x, y, 1 - x), (y * x, 1 - y, x), (1 - x, x, y))):
            pixels = np.round(255 * np.stack(channels, -1)).astype(np.uint8)
            Image.fromarray(pixels).save(f"{folder}/{n}.png")
        return photos.load(pathlib.Path(folder), 32)


def unproject(k, pose, depth):
    """World points [H, W, 3] in float64 of pixel centres at plane depth."""
    j, i = np.meshgrid(np.arange(depth.shape[1]) + 0.5, np.arange(depth.shape[0]) + 0.5)
    x, y = (j - k[0, 2]) / k[0, 0], (i - k[1, 2]) / k[1, 1]
    camera = np.stack([x, y, np.ones_like(x)], -1) * depth[..., None].astype(np.float64)
    return camera @ pose[:3, :3].T.astype(np.float64) + pose[:3, 3]


def implicit(scene, time, points):
    """How far outside each slot points are, in its unit frame: [N, ...], 1 on the surface."""
    rotation, position = (np.asarray(a, np.float64) for a in poses_of(scene, time))
    values = []
    for slot, kind in enumerate(KINDS):
        q = (points - position[slot]) @ rotation[slot] / np.asarray(scene.size)[slot]
        flat = np.sqrt(q[..., 0] ** 2 + q[..., 1] ** 2)
        value = {
            primitives.ELLIPSOID: np.sqrt((q**2).sum(-1)),
            primitives.BOX: np.abs(q).max(-1),
            primitives.CYLINDER: np.maximum(flat, np.abs(q[..., 2])),
        }[kind]
        values.append(np.where(np.asarray(scene.enabled)[slot], value, np.inf))
    return np.stack(values)


@pytest.mark.parametrize("i", range(6))
def test_depth_lies_on_the_surface_and_nothing_is_in_front(i):
    scene, k, pose, _, depth, index = view(i)
    points = unproject(k, pose, depth)
    values = implicit(scene, 0.7, points)
    for slot in range(NUM_SLOTS):
        np.testing.assert_allclose(values[slot][index == slot], 1.0, atol=2e-4)
    np.testing.assert_allclose(points[index == GROUND][:, 2], 0.0, atol=2e-5)
    around = points[index == SURROUND]
    if bool(scene.room):
        ratio = np.abs(around) / np.asarray(scene.half_extent)
        np.testing.assert_allclose(ratio.max(-1), 1.0, atol=1e-5)
    else:
        radius = np.sqrt((around**2).sum(-1))
        np.testing.assert_allclose(radius, float(scene.dome_radius), rtol=1e-5)
    # marching from the camera meets no object before the reported depth
    for share in np.linspace(0.02, 0.999, 120):
        inside = implicit(scene, 0.7, unproject(k, pose, depth * share)) < 0.995
        assert not inside.any()


def test_every_kind_of_surface_is_seen():
    seen = set()
    for i in range(6):
        *_, index = view(i)
        seen |= {("object", KINDS[n]) if n < NUM_SLOTS else n for n in np.unique(index)}
    assert seen >= {("object", kind) for kind in range(3)} | {GROUND, SURROUND}


def test_depth_of_a_sphere_in_closed_form():
    scene = pick(many()[0], 0)
    size = jnp.full((NUM_SLOTS, 3), 0.75)
    place = jnp.zeros((NUM_SLOTS, 3)).at[0].set(jnp.asarray([0.0, 0.0, 1.0]))
    scene = dataclasses.replace(
        frozen(scene), size=size, position=place, enabled=jnp.arange(NUM_SLOTS) == 0
    )
    pose = cameras.look_at(jnp.asarray([6.0, 0.0, 1.0]), jnp.asarray([0.0, 0.0, 1.0]))
    # the principal point sits on a pixel centre
    k = cameras.make_intrinsics(60.0, HEIGHT + 1, WIDTH + 1)
    _, depth, index = render(scene, 0.0, k, pose, HEIGHT, WIDTH, 1)
    assert int(index[24, 40]) == 0
    np.testing.assert_allclose(float(depth[24, 40]), 5.25, rtol=1e-6)
    # the silhouette's half angle is asin(r / distance)
    columns = np.flatnonzero(np.asarray(index[24] == 0))
    half_width = 60.0 * np.tan(np.arcsin(0.75 / 6.0))
    assert columns[0] == 40 - int(half_width) and columns[-1] == 40 + int(half_width)


def frozen(scene):
    """The scene with all motion off."""
    motion = jax.tree.map(jnp.zeros_like, scene.motion)
    axis = jnp.zeros((NUM_SLOTS, 3)).at[:, 2].set(1.0)
    return dataclasses.replace(scene, motion=dataclasses.replace(motion, spin_axis=axis))


@pytest.mark.parametrize(
    ("i", "photographed"), [*((i, False) for i in range(4)), (0, True), (1, True)]
)
def test_two_views_agree_under_exact_depth(i, photographed):
    scenes, paths = many()
    moving = np.flatnonzero(np.asarray(paths.motion) > 0.08)
    case = int(moving[i])
    scene, k0, pose0, rgb0, depth0, _ = view(case, 0.7, 0, photographed)
    _, k1, pose1, rgb1, depth1, _ = view(case, 0.7, 13, photographed)
    points = unproject(k0, pose0, depth0)
    camera = (points - pose1[:3, 3]) @ pose1[:3, :3]
    z = camera[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        column = np.floor(k1[0, 0] * camera[..., 0] / z + k1[0, 2]).astype(int)
        row = np.floor(k1[1, 1] * camera[..., 1] / z + k1[1, 2]).astype(int)
    valid = (z > 0) & (column >= 0) & (column < WIDTH) & (row >= 0) & (row < HEIGHT)
    column, row = column.clip(0, WIDTH - 1), row.clip(0, HEIGHT - 1)
    valid &= np.abs(depth1[row, column] - z) < 0.03 * z
    assert valid.mean() > 0.25
    difference = np.abs(rgb1[row, column] - rgb0).mean(-1)[valid]
    unwarped = np.abs(rgb1 - rgb0).mean(-1)[valid]
    # half a pixel of rounding remains at texture edges
    assert np.median(difference) < 0.02
    assert difference.mean() < 0.6 * unwarped.mean()


def test_supersampling_averages_and_keeps_depth():
    scene, k, pose, rgb, depth, _ = view(1)
    sharp = dataclasses.replace(scene.light, sun_radius=jnp.zeros(()))
    scene = dataclasses.replace(scene, light=sharp)  # a soft shadow is made by the rays of a pixel
    fine, same_depth, _ = render(scene, 0.7, jnp.asarray(k), jnp.asarray(pose), HEIGHT, WIDTH, 2)
    np.testing.assert_array_equal(np.asarray(same_depth), depth)
    difference = np.abs(np.asarray(fine) - rgb)
    assert 0.0 < difference.mean() < 0.03

    big = np.diag([2.0, 2.0, 1.0]).astype(np.float32) @ k
    rgb4, *_ = render(scene, 0.7, jnp.asarray(big), jnp.asarray(pose), 2 * HEIGHT, 2 * WIDTH, 1)
    pooled = np.asarray(rgb4).reshape(HEIGHT, 2, WIDTH, 2, 3).mean((1, 3))
    np.testing.assert_allclose(np.asarray(fine), pooled, atol=2e-3)


def test_frozen_scene_and_static_camera_repeat_the_frame():
    scene, k, pose, *_ = view(2)
    still = frozen(scene)
    args = (jnp.asarray(k), jnp.asarray(pose), HEIGHT, WIDTH, 1)
    first, last = render(still, 0.0, *args), render(still, 1.6, *args)
    jax.tree.map(np.testing.assert_array_equal, first, last)


def test_clips_move_visibly_but_moderately():
    scenes, _ = many()
    at = [jax.jit(jax.vmap(object_poses, (0, None)))(scenes, t) for t in (0.0, 13 / 8)]
    near = np.asarray(scenes.enabled) & ~np.asarray(BACKDROP)
    travel = np.linalg.norm(np.asarray(at[1][1] - at[0][1]), axis=-1)[near]
    assert 0.3 < (travel > 0.2).mean() < 0.7
    assert travel.max() < 3.5
    far = np.asarray(scenes.enabled) & np.asarray(BACKDROP)
    assert np.linalg.norm(np.asarray(at[1][1] - at[0][1]), axis=-1)[far].max() == 0.0


def test_objects_stay_in_bounds_and_above_ground():
    scenes, _ = many()
    near = np.asarray(scenes.enabled) & ~np.asarray(BACKDROP)
    count = near.sum(-1)
    assert count.min() >= MIN_OBJECTS and count.max() == MAX_OBJECTS
    assert len(np.unique(count)) == MAX_OBJECTS - MIN_OBJECTS + 1
    for time in (0.0, 0.9, 3.7, 25.0):
        rotation, position = jax.jit(jax.vmap(object_poses, (0, None)))(scenes, time)
        # how far the box, or the ellipsoid, of these half extents reaches down
        down = np.abs(np.asarray(rotation)[..., 2, :]) * np.asarray(scenes.size)
        ball = np.asarray(KINDS) == primitives.ELLIPSOID
        reach = np.where(ball, np.sqrt((down**2).sum(-1)), down.sum(-1))
        assert (np.asarray(position)[..., 2] - reach)[near].min() > -1e-4
        horizontal = np.linalg.norm(np.asarray(position)[..., :2], axis=-1)
        assert (horizontal <= np.asarray(scenes.radius)[:, None] + 1e-4)[near].all()


def test_a_third_starts_in_mid_air():
    scenes, _ = many()
    near = np.asarray(scenes.enabled) & ~np.asarray(BACKDROP)
    motion = jax.tree.map(np.asarray, scenes.motion)
    lifted = (motion.fall_height > 0) | (np.asarray(scenes.position)[..., 2] > 3.0)
    falls = (motion.fall_height > 0)[near].mean()
    assert 0.25 < falls < 0.33 and lifted[near].mean() >= falls


def test_a_fall_obeys_gravity_and_ends():
    height, bounce = 2.0, 0.5
    fall = np.sqrt(2 * height / GRAVITY)
    times = np.linspace(0.0, 4.0, 4001)
    path = np.array(
        height_of_fall(jnp.full(4001, height), jnp.full(4001, bounce), jnp.asarray(times))
    )
    flying = times < fall
    np.testing.assert_allclose(path[flying], height - GRAVITY / 2 * times[flying] ** 2, atol=1e-5)
    # the first flight is restitution^2 as high and restitution times as long as twice the fall
    first = (times > fall) & (times < fall * (1 + 2 * bounce))
    np.testing.assert_allclose(path[first].max(), height * bounce**2, rtol=1e-3)
    assert path[np.searchsorted(times, fall * (1 + 2 * bounce))] < 0.02
    rest = fall * (1 + 2 * bounce / (1 - bounce))
    assert path.min() >= 0 and path[times > rest].max() < 1e-3


def test_shadows_are_soft():
    scene, k, pose, *_ = view(1)
    seen = []
    for radius in (0.0, 0.05):
        light = dataclasses.replace(scene.light, sun_radius=jnp.float32(radius))
        case = dataclasses.replace(scene, light=light)
        seen.append(render(case, 0.7, jnp.asarray(k), jnp.asarray(pose), HEIGHT, WIDTH, 2)[0])
    changed = np.abs(np.asarray(seen[1] - seen[0])).max(-1)
    assert 0.002 < (changed > 0.01).mean() < 0.2


def test_cameras_stay_outside_objects_and_above_ground():
    scenes, paths = many()
    eyes = np.asarray(paths.world_from_camera)[:, :, :3, 3]
    assert eyes[..., 2].min() >= cameras.MIN_HEIGHT
    for i in range(eyes.shape[0]):
        scene = pick(scenes, i)
        for frame in (0, 7, 13):
            assert implicit(scene, frame / clips.FRAME_RATE, eyes[i, frame]).min() > 1.02
        if bool(scene.room):
            assert (np.abs(eyes[i]) < np.asarray(scene.half_extent) - 0.5).all()


def test_camera_paths_are_rigid_varied_and_labelled():
    _, paths = many()
    pose = np.asarray(paths.world_from_camera)
    product = np.einsum("btij,btkj->btik", pose[..., :3, :3], pose[..., :3, :3])
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(3), product.shape), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(pose[..., :3, :3]), 1.0, atol=1e-5)
    moves, motion = np.asarray(paths.move), np.asarray(paths.motion)
    assert set(moves) == set(range(len(cameras.MOVES)))
    static = moves == 0
    assert 0.17 < static.mean() < 0.33
    assert (motion[static] == 0.0).all() and (motion[~static] > 0.005).all()
    assert 0.06 < np.median(motion[~static]) < 0.3 and motion.max() < 1.0
    np.testing.assert_array_equal(
        pose[static], np.broadcast_to(pose[static][:, :1], pose[static].shape)
    )
    zoomed = np.ptp(np.asarray(paths.intrinsics)[:, :, 0, 0], axis=1) > 1e-3
    assert zoomed[moves == cameras.MOVES.index("zoom")].all()


@pytest.mark.parametrize(
    "name, axis, sign",
    [
        ("pan", 0, -1),  # pan right: content moves left
        ("tilt", 1, 1),  # tilt up: content moves down
        ("truck", 0, -1),
        ("pedestal", 1, 1),
    ],
)
def test_moves_displace_content_the_right_way(name, axis, sign):
    pivot = jnp.asarray([0.2, -0.3, 0.8])
    source = cameras.look_at(jnp.asarray([5.0, 3.0, 2.0]), pivot)
    amounts = jnp.zeros((8,)).at[cameras.MOVES.index(name)].set(0.1)
    k = np.asarray(cameras.make_intrinsics(80.0, HEIGHT, WIDTH))

    def pixel(pose):
        camera = np.asarray(pose)[:3, :3].T @ (np.asarray(pivot) - np.asarray(pose)[:3, 3])
        return (k @ camera)[:2] / camera[2], camera[2]

    before, depth = pixel(source)
    np.testing.assert_allclose(before, [WIDTH / 2, HEIGHT / 2], atol=1e-4)
    after, _ = pixel(cameras.move_camera(source, pivot, amounts))
    assert sign * (after - before)[axis] > 4.0
    assert abs((after - before)[1 - axis]) < 1.0
    closer = jnp.zeros((8,)).at[cameras.MOVES.index("dolly")].set(0.1)
    np.testing.assert_allclose(
        pixel(cameras.move_camera(source, pivot, closer))[1], 0.9 * depth, rtol=1e-5
    )
    circled = jnp.zeros((8,)).at[cameras.MOVES.index("orbit")].set(0.3)
    there, same = pixel(cameras.move_camera(source, pivot, circled))
    np.testing.assert_allclose(there, before, atol=1e-3)
    np.testing.assert_allclose(same, depth, rtol=1e-5)


def test_batches_are_deterministic_complete_and_compiled_once():
    stream = clips.clip_batches(3, "train", 2, **SMALL)
    before = clips.render_clips._cache_size()
    first, second = next(stream), next(stream)
    again = next(clips.clip_batches(3, "train", 2, start=2, **SMALL))
    other = next(clips.clip_batches(3, "test", 2, **SMALL))
    assert clips.render_clips._cache_size() == before + 1
    np.testing.assert_array_equal(np.asarray(second["frames"]), np.asarray(again["frames"]))
    np.testing.assert_array_equal(second["index"], [2, 3])
    assert not np.array_equal(np.asarray(first["frames"]), np.asarray(other["frames"]))
    assert not np.array_equal(np.asarray(first["frames"][0]), np.asarray(first["frames"][1]))

    assert first["frames"].shape == (2, 3, 24, 40, 3) and first["frames"].dtype == jnp.float32
    assert first["depth"].shape == (2, 3, 24, 40)
    assert first["intrinsics"].shape == (2, 3, 3, 3)
    assert first["world_from_camera"].shape == (2, 3, 4, 4)
    assert first["motion"].shape == (2,)
    for batch in (first, second, other):
        frames, depth = np.asarray(batch["frames"]), np.asarray(batch["depth"])
        assert np.isfinite(frames).all() and frames.min() >= 0.0 and frames.max() <= 1.0
        assert np.isfinite(depth).all() and depth.min() > 0.2 and depth.max() < 100.0
        assert frames.std(axis=(2, 3)).min() > 0.02


def test_vmapped_frames_match_single_frames():
    scenes, paths = many()
    cases = scenes, paths.intrinsics[:, 0], paths.world_from_camera[:, 0]
    two = jax.tree.map(lambda a: a[:2], cases)
    draw = jax.jit(
        jax.vmap(lambda s, k, p: render_frame(s, 0.7, k, p, HEIGHT, WIDTH)),
    )
    rgb, depth = draw(*two)
    for i in range(2):
        *_, one_rgb, one_depth, _ = view(i)
        assert np.mean(np.abs(np.asarray(rgb[i]) - one_rgb) > 1e-3) < 1e-3
        np.testing.assert_allclose(np.asarray(depth[i]), one_depth, rtol=1e-4)


def test_splits_never_share_a_key():
    def data(split):
        return {
            tuple(np.asarray(jax.random.key_data(clips.clip_key(0, split, i)))) for i in range(200)
        }

    splits = [data(s) for s in ("train", "validation", "test")]
    assert len(set.union(*splits)) == 600
    with pytest.raises(InputError, match="unknown split 'dev'"):
        clips.clip_batches(0, "dev", 2)


def test_paired_clip_shares_scene_time_and_first_frame():
    pair = clips.paired_clip(jax.random.key(11), samples=1, **SMALL)
    source, target = pair["source"], pair["target"]
    np.testing.assert_allclose(
        np.asarray(source["frames"][0]), np.asarray(target["frames"][0]), atol=1e-5
    )
    pose = np.asarray(source["world_from_camera"])
    np.testing.assert_array_equal(pose, np.broadcast_to(pose[:1], pose.shape))
    moved = np.abs(np.asarray(target["world_from_camera"]) - pose).max()
    zoomed = np.abs(np.asarray(target["intrinsics"] - source["intrinsics"])).max()
    assert max(moved, zoomed) > 1e-2 and float(target["motion"]) > 0.0
    assert float(source["motion"]) == 0.0


def test_value_noise_interpolates_its_lattice():
    rng = np.random.default_rng(0)
    corner = rng.integers(-40, 40, (200, 3)).astype(np.float32)
    u = rng.uniform(0, 1, (200, 3)).astype(np.float32)
    p = corner + u
    u = p - np.floor(p)
    weight = u * u * (3 - 2 * u)
    slow = np.zeros(200)
    for bits in range(8):
        step = np.array([bits & 1, bits >> 1 & 1, bits >> 2 & 1], np.float32)
        value = np.asarray(textures.value_noise(*jnp.asarray(np.floor(p) + step).T))
        slow += value * np.prod(np.where(step > 0, weight, 1 - weight), -1)
    np.testing.assert_allclose(np.asarray(textures.value_noise(*jnp.asarray(p).T)), slow, atol=1e-5)
    lattice = np.stack(np.meshgrid(*[np.arange(16.0)] * 3), -1).reshape(-1, 3)
    values = np.asarray(textures.value_noise(*jnp.asarray(lattice, jnp.float32).T))
    assert abs(values.mean() - 0.5) < 0.02 and abs(values.std() - 12**-0.5) < 0.01


def test_patterns_fade_before_they_alias():
    rng = np.random.default_rng(1)
    points = tuple(jnp.asarray(rng.uniform(0, 50, 4000), jnp.float32) for _ in range(3))
    full = jnp.ones_like(points[0])
    material = {"frequency": full, "gain": 0.5 * full, "warp": 0.0 * full}
    material |= {f"direction_{c}": v * full for c, v in zip("xyz", (1.0, 0.0, 0.0), strict=True)}
    material |= {f"shift_{c}": 0.0 * full for c in "xyz"}
    flat = (0.0 * full,) * 3
    for pattern in range(textures.NUM_PATTERNS):
        material["pattern"] = jnp.full(points[0].shape, pattern)
        near = np.asarray(textures.blend(material, points, flat, 0.01 * full)[0])
        far = np.asarray(textures.blend(material, points, flat, 2.5 * full)[0])
        assert near.min() >= 0.0 and near.max() <= 1.0
        assert near.std() > 0.03 and far.std() < 0.01
