"""Kubric-4D's ground truth from points, the whole chain, against one written by itself in PyTorch.

Each of the published constants and quirks is in it, so that none can change unseen.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from experiments.kubric4d import layout, pointcloud, rig

RECORDED, RENDERED, SCORED = (48, 72), (70, 105), (64, 96)
MOVE = (100.0, 20.0, 14.0)


def gaussian(image, size, sigma):
    """`[C, H, W]` blurred, the borders mirrored."""
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    padded = F.pad(image[None], (size // 2,) * 4, mode="reflect")
    channels = len(image)
    return F.conv2d(padded, kernel.expand(channels, 1, size, size), groups=channels)[0]


def cloud(view):
    """World points and colours: rays even in angle, pixels at their corners, half precision."""
    height, width = view.size
    focal = torch.from_numpy(view.intrinsics)
    half = [np.arctan(0.5 * n / float(focal[i, i])) for n, i in ((width, 0), (height, 1))]
    across, down = (
        torch.linspace(-a, a, n, dtype=torch.float64)
        for a, n in zip(half, (width, height), strict=True)
    )
    length = torch.sqrt(torch.tan(across)[None] ** 2 + torch.tan(down)[:, None] ** 2 + 1)
    plane = torch.from_numpy(view.distance[0]).double() / length
    column, row = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    pixels = torch.stack([column, row, torch.ones_like(row)], dim=-1).double()
    local = (pixels @ torch.linalg.inv(focal).T * plane[..., None]).reshape(-1, 3)
    pose = torch.from_numpy(view.world_from_camera[0])
    points = (local @ pose[:3, :3].T + pose[:3, 3]).half().double()
    return points, torch.from_numpy(view.rgb[0]).reshape(-1, 3).double() / 255


def seen(views, matrix, world_from_camera, fill_size, fill_sigma):
    """`[H, W, 3]` at SCORED: splat, holes filled by a normalised blur, a last blur, reduced."""
    points, colours = (torch.cat(parts) for parts in zip(*map(cloud, views), strict=True))
    camera_from_world = torch.linalg.inv(torch.from_numpy(world_from_camera))
    local = points @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
    projected = local @ torch.from_numpy(matrix).T
    z = projected[:, 2]
    pixel = (projected[:, :2] / z[:, None] + 0.5).trunc().long()
    height, width = RENDERED
    size = torch.tensor([width, height])
    kept = ((pixel >= 0) & (pixel < size)).all(-1) & (z > 0.1)
    pixel, z, colours = pixel[kept], z[kept], colours[kept]
    strength = 512.0
    if z.max() >= 64:
        z, strength = z.sqrt().clamp(max=32), 256.0
    weight = torch.exp(-strength * (2 * z / z.max() - 1))
    total = torch.zeros(4, height + 1, width + 1, dtype=torch.float64)
    values = torch.cat([colours, torch.ones(len(colours), 1, dtype=torch.float64)], dim=1)
    for down, right, share in ((0, 0, 1.0), (0, 1, 0.02), (1, 0, 0.02), (1, 1, 0.02)):
        place = (pixel[:, 1] + down, pixel[:, 0] + right)
        for channel in range(4):
            total[channel].index_put_(place, weight * share * values[:, channel], accumulate=True)
    *sums, weights = total[:, :height, :width]
    image = torch.stack(sums) / torch.where(weights > 0, weights, torch.inf)
    image = image.clamp(0, 1)
    hole = image.sum(0) == 0
    known = (~hole)[None].double()
    around = gaussian(image, fill_size, fill_sigma)
    share = gaussian(known, fill_size, fill_sigma).clamp(min=1e-7)
    smooth = gaussian(torch.where(hole, around / share, image), 3, 0.6)
    reduced = F.interpolate(smooth[None], SCORED, mode="bilinear", align_corners=False)[0]
    return reduced.permute(1, 2, 0).numpy()


@pytest.fixture(params=[30.0, 120.0], ids=["near", "far"])
def views(request):
    """Recorded views with the source's among them; beyond 64 metres the rule is another."""
    rng = np.random.default_rng(3)
    found = []
    for number in (rig.SOURCE_VIEW, 0, 5):
        rgb = rng.integers(0, 256, (1, *RECORDED, 3), dtype=np.uint8)
        distance = rng.uniform(8, request.param, (1, *RECORDED)).astype(np.float32)
        pose = rig.poses(np.array(rig.VIEWS[number]))[None]
        found.append(layout.View(rgb, distance, rig.intrinsics(RECORDED), pose))
    return found


def test_pictures_from_points(views):
    matrix, pose = rig.intrinsics(RENDERED), rig.poses(np.array(MOVE))
    found = pointcloud.rendering(views, 0, matrix, pose, SCORED, True, RENDERED)
    np.testing.assert_allclose(found, seen(views, matrix, pose, 21, 5.25), atol=1e-4)


@pytest.mark.parametrize("azimuth", [40.0, 100.0])
def test_occluded_pixels(views, azimuth):
    matrix, pose = rig.intrinsics(RENDERED), rig.poses(np.array((azimuth, *MOVE[1:])))
    found = pointcloud.occlusion(views[0], 0, matrix, pose, SCORED, True, RENDERED)
    np.testing.assert_array_equal(found, seen(views[:1], matrix, pose, 3, 0.75).sum(-1) <= 1e-7)
    assert azimuth < 90 or 0.01 < found.mean() < 0.5
