"""Camera files: numbers of the formats' own documentation, round trips, damage."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from recapture_jax.camera import formats, moves, pose
from recapture_jax.camera import path as paths
from recapture_jax.camera.formats import FORMATS, read_path, write_path
from recapture_jax.camera.path import PosePath
from recapture_jax.camera.pinhole import intrinsics_from_fov
from recapture_jax.errors import InputError

H, W = 60, 80
K = np.array([[70.0, 0, 41], [0, 72.0, 29], [0, 0, 1]])


def wander(count=7, units="metres", size=(H, W), lens=True, anchored=False):
    """A path without symmetry, with a lens that changes."""
    s = np.linspace(0, 1, count)
    turn = pose.compose(
        pose.rotation_y(jnp.asarray(0.5 * s + 0.1)),
        pose.rotation_x(jnp.asarray(-0.3 * s**2)),
        pose.rotation_z(jnp.asarray(0.2 * s)),
    )
    poses = np.array(turn, np.float64)
    poses[:, :3, :3] = [
        np.linalg.qr(r)[0] @ np.diag(np.sign(np.diag(np.linalg.qr(r)[1]))) for r in poses[:, :3, :3]
    ]
    poses[:, :3, 3] = np.stack([s + 2, -0.5 * s, s**2 - 1], -1)
    intrinsics = None
    if lens:
        intrinsics = np.tile(K, (count, 1, 1))
        intrinsics[:, [0, 1], [0, 1]] *= (1 + 0.2 * s)[:, None]
    path = PosePath(poses, units, intrinsics, size if lens else None, name="wander")
    return paths.relative_to_first(path) if anchored else path


def rotate(quaternion, vector):
    """A vector turned by a quaternion (w, x, y, z), by the formula with two cross products."""
    w, u = quaternion[0], np.array(quaternion[1:])
    return vector + 2 * w * np.cross(u, vector) + 2 * np.cross(u, np.cross(u, vector))


# What each format keeps: of units, lens, absolute world.
ROUND_TRIPS = {
    "keyframes": (wander(anchored=True, lens=False), {}),
    "nerfstudio": (wander(units="arbitrary"), {"size": (H, W)}),
    "transforms": (wander(units="arbitrary"), {}),
    "colmap": (wander(units="arbitrary"), {}),
    "realestate10k": (wander(units="arbitrary"), {}),
    "tum": (wander(lens=False), {}),
    "recammaster": (wander(lens=False), {}),
    "npz": (wander(anchored=True, units="pivot"), {}),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_round_trip(name, tmp_path):
    path, options = ROUND_TRIPS[name]
    file = tmp_path / {"colmap": "model", "npz": "p.npz"}.get(name, "p.txt")
    if name in ("keyframes", "nerfstudio", "transforms", "recammaster"):
        file = tmp_path / "p.json"
    write_path(path, file, name, **options)
    assert formats.detect(file) == name
    back = read_path(file)
    np.testing.assert_allclose(back.world_from_camera, path.world_from_camera, atol=2e-9)
    assert back.units == path.units and back.anchored == path.anchored
    if path.intrinsics is not None:
        scale = np.array([[W / back.size[1]], [H / back.size[0]], [1]])
        expected = path.intrinsics.copy()
        if name == "nerfstudio":  # it says the vertical field of view alone
            expected[:, 0, 0], expected[:, 0, 2], expected[:, 1, 2] = (
                expected[:, 1, 1],
                W / 2,
                H / 2,
            )
        np.testing.assert_allclose(back.intrinsics * scale, expected, atol=1e-6)


def test_every_format_is_tested():
    assert set(ROUND_TRIPS) | {"trajectorycrafter", "cognvs", "viewcrafter"} == set(FORMATS)


def test_nothing_is_overwritten_unasked(tmp_path):
    path, file = wander(lens=False), tmp_path / "p.txt"
    write_path(path, file, "tum")
    with pytest.raises(InputError, match="exists"):
        write_path(path, file, "tum")
    write_path(path, file, "tum", overwrite=True)
    with pytest.raises(InputError, match="exists"):
        write_path(path, tmp_path, "colmap", overwrite=True)
    with pytest.raises(InputError, match="folder to write into"):
        write_path(path, tmp_path / "no" / "p.txt", "tum")


COLMAP_CAMERAS = """# Camera list with one line of data per camera:
#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]
# Number of cameras: 3
1 SIMPLE_PINHOLE 3072 2304 2559.81 1536 1152
2 PINHOLE 3072 2304 2560.56 2560.56 1536 1152
3 SIMPLE_RADIAL 3072 2304 2559.69 1536 1152 -0.0218531
"""
COLMAP_IMAGES = """# Image list with two lines of data per image:
1 0.851773 0.0165051 0.503764 -0.142941 -0.737434 1.02973 3.74354 1 P1180142.JPG
2362.39 248.498 58396 1784.7 268.254 59027 1784.7 268.254 -1
2 0.851773 0.0165051 0.503764 -0.142941 -0.737434 1.02973 3.74354 3 P1180141.JPG
1190.83 663.957 23056 1258.77 640.354 59070
"""
COLMAP_Q = np.array([0.851773, 0.0165051, 0.503764, -0.142941])
COLMAP_T = np.array([-0.737434, 1.02973, 3.74354])


def write_colmap_bin(folder):
    """The model of COLMAP's documentation, as binary."""
    with open(folder / "cameras.bin", "wb") as file:
        file.write(struct.pack("<Q", 2))
        file.write(struct.pack("<iiQQ3d", 1, 0, 3072, 2304, 2559.81, 1536, 1152))
        file.write(struct.pack("<iiQQ4d", 3, 2, 3072, 2304, 2559.69, 1536, 1152, -0.0218531))
    with open(folder / "images.bin", "wb") as file:
        file.write(struct.pack("<Q", 2))
        for camera, name in ((1, b"P1180142.JPG"), (3, b"P1180141.JPG")):
            file.write(struct.pack("<I7dI", camera, *COLMAP_Q, *COLMAP_T, camera) + name + b"\0")
            file.write(struct.pack("<Qddqddq", 2, 2362.39, 248.498, 58396, 1784.7, 268.254, -1))


@pytest.mark.parametrize("kind", ["txt", "bin", "sparse"])
def test_colmap_reads_its_documentation(kind, tmp_path):
    folder = tmp_path / "sparse/0" if kind == "sparse" else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "bin":
        write_colmap_bin(folder)
    else:
        (folder / "cameras.txt").write_text(COLMAP_CAMERAS)
        (folder / "images.txt").write_text(COLMAP_IMAGES)
    path = read_path(tmp_path if kind == "sparse" else folder / f"images.{kind}")
    # Pictures in the order of their names, not of their identifiers.
    np.testing.assert_allclose(path.intrinsics[:, 0, 0], [2559.69, 2559.81])
    np.testing.assert_allclose(path.intrinsics[0, :2, 2], [1536, 1152])
    assert path.size == (2304, 3072) and path.units == "arbitrary"
    assert path.notes == ("lens distortion is left out",)
    # "The coordinates of the projection centre are given by -R^t T."
    q = COLMAP_Q / np.linalg.norm(COLMAP_Q)
    centre = rotate(q * [1, -1, -1, -1], -COLMAP_T)
    np.testing.assert_allclose(path.world_from_camera[0, :3, 3], centre, atol=1e-9)
    forward = rotate(q * [1, -1, -1, -1], np.array([0.0, 0, 1]))  # "the Z axis to the front"
    np.testing.assert_allclose(path.world_from_camera[0, :3, 2], forward, atol=1e-9)


def test_colmap_keeps_empty_lines_of_points(tmp_path):
    (tmp_path / "cameras.txt").write_text(COLMAP_CAMERAS)
    line = "{} 1 0 0 0 {} 0 0 1 frame_{}.png"
    lines = [line.format(i, i, i) + "\n" for i in (9, 10, 11)]  # 10 after 9
    (tmp_path / "images.txt").write_text("\n".join(lines))
    path = read_path(tmp_path)
    np.testing.assert_allclose(path.world_from_camera[:, 0, 3], [-9, -10, -11])


@pytest.mark.parametrize(
    "numbers, times",
    [
        ((1, 2, 5, 6), [0, 1, 4, 5]),  # two pictures that found no place
        ((0, 1, 4), [0, 1, 4]),
        ((3, 4, 7), [2, 3, 6]),  # counted from 1, the first two are missing
        ((1, 2, 3, 4), None),
        ((10, 20, 30), None),  # every tenth: their order says as much
    ],
)
@pytest.mark.parametrize("kind", ["colmap", "transforms"])
def test_pictures_without_a_pose_leave_gaps(tmp_path, kind, numbers, times):
    names = [f"cam1/frame_{n:05d}.png" for n in numbers]
    if kind == "colmap":
        (tmp_path / "cameras.txt").write_text(COLMAP_CAMERAS)
        line = "{} 1 0 0 0 {} 0 0 1 {}\n"
        lines = [line.format(n, -n, name) for n, name in zip(numbers, names, strict=True)]
        (tmp_path / "images.txt").write_text("\n".join(lines))
        path = read_path(tmp_path)
    else:
        matrices = np.tile(np.eye(4), (len(numbers), 1, 1))
        matrices[:, 0, 3] = numbers
        frames = [
            {"file_path": name, "transform_matrix": matrix.tolist()}
            for name, matrix in zip(names, matrices, strict=True)
        ]
        (tmp_path / "transforms.json").write_text(json.dumps({"frames": frames}))
        path = read_path(tmp_path / "transforms.json")
    assert path.numbered == (times is not None)
    if times is not None:
        np.testing.assert_array_equal(path.times, times)
        between = paths.select(path, 2, int(times[0]) + 1)
        step = numbers[0] + 1 + np.arange(2)
        np.testing.assert_allclose(between.world_from_camera[:, 0, 3], step, atol=1e-6)


def test_megasam_has_the_lens_of_its_pictures(tmp_path):
    """Its file calls the lens `intrinsic`, one for all frames, of the pictures that lie beside it."""
    lens = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
    pictures = np.zeros((2, 48, 64, 3), np.uint8)
    poses = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    depths = np.ones((2, 48, 64), np.float32)
    file = tmp_path / "clip_sgd_cvd_hr.npz"
    np.savez(file, images=pictures, depths=depths, intrinsic=lens, cam_c2w=poses)
    path = read_path(file)
    np.testing.assert_array_equal(path.intrinsics, np.stack([lens] * 2))
    assert path.size == (48, 64)


TUM = """# ground truth trajectory
# timestamp tx ty tz qx qy qz qw
1305031098.6659 1.3563 0.6305 1.6380 0.6132 0.5962 -0.3311 -0.3986
1305031098.6758 1.3543 0.6306 1.6360 0.6129 0.5966 -0.3316 -0.3980
"""


def test_tum_reads_freiburg1(tmp_path):
    file = tmp_path / "groundtruth.txt"
    file.write_text(TUM)
    path = read_path(file)
    assert path.units == "metres" and not path.anchored
    np.testing.assert_allclose(path.world_from_camera[0, :3, 3], [1.3563, 0.6305, 1.6380])
    q = np.array([-0.3986, 0.6132, 0.5962, -0.3311])
    for column, axis in enumerate(np.eye(3)):
        turned = rotate(q / np.linalg.norm(q), axis)
        np.testing.assert_allclose(path.world_from_camera[0, :3, column], turned, atol=1e-9)
    # The camera of this sequence looks down at a desk from 1.6 m, world z up.
    assert path.world_from_camera[0, 2, 2] < -0.3
    np.testing.assert_allclose(path.times, [1305031098.6659, 1305031098.6758])


def test_realestate10k_reads_world_to_camera(tmp_path):
    """One second of a camera that stands at (1, 0, -2) and has turned right by 30 degrees."""
    c, s = np.cos(np.pi / 6), 0.5
    r = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])  # camera_from_world
    t = -r @ [1, 0, -2]
    row = " ".join(f"{v:.9f}" for v in np.column_stack([r, t]).reshape(-1))
    lens = "0.474812461 0.844111024 0.5 0.5 0 0"
    file = tmp_path / "0f47577ab3441480.txt"
    file.write_text(
        f"https://www.youtube.com/watch?v=x\n0 {lens} 1 0 0 0 0 1 0 0 0 0 1 0\n"
        f"1001000 {lens} {row}\n2002000 {lens} {row}\n3003000 {lens} {row}\n"
    )
    path = read_path(file)
    np.testing.assert_allclose(path.world_from_camera[1, :3, 3], [1, 0, -2], atol=1e-8)
    np.testing.assert_allclose(path.world_from_camera[1, :3, 2], [s, 0, c], atol=1e-8)
    np.testing.assert_allclose(path.intrinsics[0, [0, 1], [0, 1]], [0.474812461, 0.844111024])
    assert path.size == (1, 1) and path.times[1] == pytest.approx(1.001)
    # Square pixels at 16:9.
    pixels = path.intrinsics[0] * np.array([[1280], [720], [1]])
    assert pixels[0, 0] == pytest.approx(pixels[1, 1], rel=1e-3)


# Its camera 7 ("translate up") in frames 0 and 10, and the last of camera 5 ("zoom in").
RECAMMASTER = {
    "frame0": "[1 0 0 0] [-0 1 0 0] [0 -0 1 0] [3390 1380 240 1] ",
    "frame1": "[0.999518 0 -0.0310409 0] [-0 1 0 0] [0.0310409 0 0.999518 0] [3390 1380 252.422 1] ",
    "frame2": "[1 0 0 0] [0 1 0 0] [0 0 1 0] [3588.76 1380 240 1] ",
}


def test_recammaster_reads_unreal_centimetres(tmp_path):
    file = tmp_path / "camera_extrinsics.json"
    file.write_text(json.dumps({frame: {"cam07": text} for frame, text in RECAMMASTER.items()}))
    path = paths.relative_to_first(read_path(file))
    assert path.units == "metres"
    np.testing.assert_allclose(path.world_from_camera[0], np.eye(4), atol=1e-12)
    # Up is -y, so the camera that rises 12.4 cm tilts down to a point 4 m ahead.
    np.testing.assert_allclose(path.world_from_camera[1, :3, 3], [0, -0.12422, 0], atol=1e-9)
    forward = path.world_from_camera[1, :3, 2]
    np.testing.assert_allclose(forward, [0, 0.0310409, 0.999518], atol=1e-6)
    assert forward[1] / forward[2] == pytest.approx(0.12422 / 4, rel=1e-3)
    np.testing.assert_allclose(path.world_from_camera[2, :3, 3], [0, 0, 1.9876], atol=1e-9)


def test_recammaster_wants_a_camera_named(tmp_path):
    file = tmp_path / "camera_extrinsics.json"
    text = "[1 0 0 0] [0 1 0 0] [0 0 1 0] [0 {} 0 1]"
    cameras = {"cam01": text.format(100), "cam02": text.format(200)}
    file.write_text(json.dumps({"frame0": cameras}))
    with pytest.raises(InputError, match="cam01, cam02"):
        read_path(file)
    for camera in ("2", "cam02"):
        position = read_path(file, camera=camera).world_from_camera[0, :3, 3]
        np.testing.assert_allclose(position, [2, 0, 0])  # Unreal's y is right


def test_nerfstudio_is_opengl(tmp_path):
    """A camera turned right and standing 1 up, in a world with y up."""
    file = tmp_path / "camera_path.json"
    c, s = np.cos(0.3), np.sin(0.3)
    matrix = [[c, 0, -s, 0], [0, 1, 0, 1], [s, 0, c, 0], [0, 0, 0, 1]]
    data = {"render_height": 480, "render_width": 640, "fps": 24, "keyframes": []}
    data["camera_path"] = [
        {"camera_to_world": list(np.eye(4).reshape(-1)), "fov": 90.0, "aspect": 4 / 3},
        {"camera_to_world": np.reshape(matrix, -1).tolist(), "fov": 60.0, "aspect": 4 / 3},
    ]
    file.write_text(json.dumps(data))
    path = paths.relative_to_first(read_path(file))
    forward, position = path.world_from_camera[1, :3, 2], path.world_from_camera[1, :3, 3]
    np.testing.assert_allclose(forward, [s, 0, c], atol=1e-12)
    np.testing.assert_allclose(position, [0, -1, 0], atol=1e-12)
    pixels = path.intrinsics * np.array([[640], [480], [1]])
    np.testing.assert_allclose(pixels[0], [[240, 0, 320], [0, 240, 240], [0, 0, 1]], atol=1e-9)
    assert path.focal_factor[1] == pytest.approx(np.sqrt(3))


def test_cameras_json_of_a_run_comes_back_in_pivot_depths(tmp_path):
    k = intrinsics_from_fov(40, H, W)
    film = moves.build_trajectory("orbit right 20; zoom in 1.2", 5, k, 2.5)
    data = formats.nerfstudio_camera_path(film, H, W, 12)
    (tmp_path / "cameras.json").write_text(json.dumps(data))
    path = read_path(tmp_path / "cameras.json")
    assert path.units == "pivot" and path.anchored and path.name == film.name
    back = paths.to_trajectory(path, 5, np.asarray(k), 2.5)
    np.testing.assert_allclose(
        back.cameras.world_from_camera, film.cameras.world_from_camera, atol=1e-6
    )
    np.testing.assert_allclose(back.cameras.intrinsics, film.cameras.intrinsics, rtol=1e-5)
    far = paths.to_trajectory(path, 5, np.asarray(k), 5.0)  # the same move of another subject
    np.testing.assert_allclose(
        far.cameras.world_from_camera[:, :3, 3],
        2 * film.cameras.world_from_camera[:, :3, 3],
        atol=2e-6,
    )


def test_transforms_reads_the_fox(tmp_path):
    """Lens numbers of Instant NGP's example: angle and focal length agree."""
    file = tmp_path / "transforms.json"
    lens = {"camera_angle_x": 0.7481849417937728, "w": 1080.0, "h": 1920.0}
    lens |= {"cx": 554.558, "cy": 965.268, "k1": 0.0578421}
    frames = [
        {"file_path": f"images/{i}.jpg", "transform_matrix": np.diag([1.0, 1, 1, 1]).tolist()}
        for i in (10, 9)
    ]
    frames[0]["transform_matrix"][2][3] = 3.0
    file.write_text(json.dumps(lens | {"frames": frames}))
    path = read_path(file)
    assert path.intrinsics[0, 0, 0] == pytest.approx(1375.52, abs=0.01)
    np.testing.assert_allclose(path.intrinsics[0, :2, 2], [554.558, 965.268])
    assert path.size == (1920, 1080) and "k1" in path.notes[0]
    # Frame 9 comes first, and OpenGL's camera looks along -z: z = +3 is 3 backwards.
    back = paths.relative_to_first(path).world_from_camera[1, :3, 3]
    np.testing.assert_allclose(back, [0, 0, -3], atol=1e-12)


@pytest.mark.parametrize("key, forward", [("c2w", True), ("cam_c2w", True), ("w2c", False)])
def test_npz_maps_as_the_name_says(key, forward, tmp_path):
    path = wander(lens=False)
    poses = path.world_from_camera if forward else np.linalg.inv(path.world_from_camera)
    np.savez(tmp_path / "p.npz", **{key: poses.astype(np.float32)[:, :3], "intrinsics": K})
    back = read_path(tmp_path / "p.npz")
    np.testing.assert_allclose(back.world_from_camera, path.world_from_camera, atol=1e-6)
    np.testing.assert_allclose(back.intrinsics[3], K)


def test_vipe_poses_have_frame_numbers(tmp_path):
    path = wander(4, lens=False)
    np.savez(tmp_path / "p.npz", data=path.world_from_camera, inds=np.array([0, 2, 4, 6]))
    back = read_path(tmp_path / "p.npz")
    picked = paths.select(back, 3, start=1, stride=1)  # frames 1, 2, 3
    np.testing.assert_allclose(picked.world_from_camera[1], path.world_from_camera[1])
    middle = path.world_from_camera[:2, :3, 3].mean(0)
    np.testing.assert_allclose(picked.world_from_camera[0, :3, 3], middle, atol=1e-6)
    with pytest.raises(InputError, match="frames 0 to 6"):
        paths.select(back, 8)
    write_path(back, tmp_path / "again.npz", "npz")
    assert read_path(tmp_path / "again.npz").numbered


def test_whole_seconds_are_no_frame_numbers(tmp_path):
    (tmp_path / "p.txt").write_text("".join(f"{2 * i} {i} 0 0 0 0 0 1\n" for i in range(4)))
    picked = paths.select(read_path(tmp_path / "p.txt"), 4)
    np.testing.assert_allclose(picked.world_from_camera[:, 0, 3], [0, 1, 2, 3])


def test_npz_with_a_silent_name_needs_the_convention(tmp_path):
    np.savez(tmp_path / "p.npz", poses=np.tile(np.eye(4), (3, 1, 1)))
    with pytest.raises(InputError, match="c2w or w2c"):
        read_path(tmp_path / "p.npz")
    assert read_path(tmp_path / "p.npz", convention="w2c").num_frames == 3


@pytest.mark.parametrize("name", [n for n in ROUND_TRIPS if n not in ("npz", "keyframes")])
def test_a_camera_that_stands_still_is_the_source_camera(name, tmp_path):
    """Named for a peer defect: an identity trajectory that is none. Wherever the camera stands."""
    poses = np.tile(wander().world_from_camera[3], (4, 1, 1))
    units = "metres" if name in ("recammaster", "tum") else "arbitrary"
    path = PosePath(poses, units, np.tile(K, (4, 1, 1)), (H, W))
    write_path(path, tmp_path / "p", name)
    film = paths.to_trajectory(read_path(tmp_path / "p", name), 9, K, 2.0)
    np.testing.assert_allclose(
        film.cameras.world_from_camera, np.tile(np.eye(4), (9, 1, 1)), atol=1e-6
    )
    np.testing.assert_allclose(film.cameras.intrinsics, np.tile(K, (9, 1, 1)), rtol=1e-6)


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_damage_is_refused_and_never_a_crash(name, tmp_path):
    """Bytes of a good file changed, dropped or doubled at random: a path, or one clear line."""
    path, options = ROUND_TRIPS[name]
    write_path(path, tmp_path / "good", name, **options)
    file = tmp_path / "good" / "images.txt" if name == "colmap" else tmp_path / "good"
    good, rng, refused = file.read_bytes(), np.random.default_rng(7), 0
    for _ in range(60):
        data, at = bytearray(good), int(rng.integers(len(good)))
        kind = rng.integers(4)
        if kind == 0:
            data[at] = int(rng.integers(256))
        elif kind == 1:
            del data[at : at + int(rng.integers(1, 40))]
        elif kind == 2:
            data[at:at] = rng.choice([b"nan", b"-", b"1e999", b"[", b'"', b" ", b"\n", b"null"])
        else:
            data = data[:at]
        file.write_bytes(data)
        try:
            back = read_path(tmp_path / "good", name)
            assert np.isfinite(back.world_from_camera).all()
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 10
