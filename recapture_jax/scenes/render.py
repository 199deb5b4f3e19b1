"""Ray-casts a scene: colour, exact plane depth and the index of what each pixel sees."""

from functools import partial

import jax.numpy as jnp
from jax import lax

from recapture_jax.scenes import photos, primitives, textures
from recapture_jax.scenes.primitives import FAR, dot, normalize, transform
from recapture_jax.scenes.scene import (
    GROUND,
    LAYOUT,
    NUM_SLOTS,
    SURROUND,
    Scene,
    object_poses,
)


def _rays(intrinsics, world_from_camera, height, width, dx, dy):
    """Origin (three scalars) and directions (three [H*W]) with camera z = 1, at centre + (dx, dy).

    The ray parameter is then plane depth in metres.
    """
    x = jnp.tile((jnp.arange(width) + (0.5 + dx) - intrinsics[0, 2]) / intrinsics[0, 0], height)
    y = (jnp.arange(height) + (0.5 + dy) - intrinsics[1, 2]) / intrinsics[1, 1]
    y = jnp.repeat(y, width)
    direction = transform(world_from_camera[:3, :3], (x, y, jnp.ones_like(x)))
    return tuple(world_from_camera[i, 3] for i in range(3)), direction


def _object_maps(scene: Scene, time):
    """Unit_from_world linear maps [N, 3, 3] and object centres [N, 3]."""
    rotation, position = object_poses(scene, time)
    return jnp.swapaxes(rotation, -1, -2) / scene.size[:, :, None], position


def _over_slots(scene, body, carry):
    """Runs `body(slot, intersect, carry)` over enabled slots, each with its kind's intersection."""
    start = 0
    for kind, near, far in LAYOUT:
        stop = start + near + far

        def step(slot, carry, kind=kind):
            run = partial(body, slot, primitives.HIT[kind])
            return lax.cond(scene.enabled[slot], run, lambda c: c, carry)

        carry = lax.fori_loop(start, stop, step, carry)
        start = stop
    return carry


def _cast(scene, maps, origin, direction):
    """First hit of camera rays: (depth [P], index [P], axis [P] of the room's surface)."""
    matrices, centres = maps
    ground = primitives.hit_ground(origin, direction)
    dome = primitives.hit_dome(origin, direction, scene.dome_radius)
    walls, axis = primitives.hit_room(origin, direction, scene.half_extent)
    around = jnp.where(scene.room, walls, dome)
    depth = jnp.minimum(ground, around)
    index = jnp.where(ground < around, GROUND, SURROUND)

    def body(slot, intersect, carry):
        depth, index = carry
        matrix, centre = matrices[slot], centres[slot]
        local = transform(matrix, tuple(o - centre[i] for i, o in enumerate(origin)))
        t = intersect(local, transform(matrix, direction))
        nearer = t < depth
        return jnp.where(nearer, t, depth), jnp.where(nearer, slot, index)

    depth, index = _over_slots(scene, body, (depth, index))
    return depth, index, axis


def _lookup(table, onehot):
    # an exact gather: one row of ones per pixel, and a matrix product is far faster on a CPU
    return jnp.dot(table, onehot, precision=lax.Precision.HIGHEST)


def _surface(scene, maps, point, index, axis):
    """Material columns, metric local coordinates, world normal and flat axis at hit points."""
    matrices, centres = maps
    material = scene.material
    eye = jnp.broadcast_to(jnp.eye(3)[None], (2, 3, 3))
    zero = jnp.zeros((2, 3))
    kind = jnp.concatenate(
        [jnp.full((near + far,), kind) for kind, near, far in LAYOUT] + [jnp.asarray([3, 4])]
    )
    columns = {
        "matrix": jnp.concatenate([matrices, eye]).reshape(-1, 9),
        "centre": jnp.concatenate([centres, zero]),
        "size": jnp.concatenate([scene.size, zero + 1.0]),
        "kind": kind[:, None],
        "scalars": jnp.stack(
            [
                material.pattern.astype(jnp.float32),
                material.frequency,
                material.gain,
                material.warp,
                material.grain,
                material.gloss,
            ],
            axis=-1,
        ),
        "color_a": material.color_a,
        "color_b": material.color_b,
        "direction": material.direction,
        "shift": material.shift,
    }
    if scene.photos is not None:
        columns["photo"] = jnp.stack([scene.photos.index, scene.photos.width], axis=-1)
    table = jnp.concatenate([v.astype(jnp.float32) for v in columns.values()], axis=-1).T
    onehot = (jnp.arange(NUM_SLOTS + 2)[:, None] == index[None, :]).astype(jnp.float32)
    rows = iter(_lookup(table, onehot))
    got = {name: [next(rows) for _ in range(v.shape[-1])] for name, v in columns.items()}

    m = got["matrix"]
    kind = got["kind"][0]
    away = tuple(p - c for p, c in zip(point, got["centre"], strict=True))
    q = tuple(
        m[3 * i] * away[0] + m[3 * i + 1] * away[1] + m[3 * i + 2] * away[2] for i in range(3)
    )
    size = tuple(got["size"])
    local = tuple(a * s for a, s in zip(q, size, strict=True))

    # outward normals in the unit frame; flat is 1 on the axis a flat face is normal to
    ax, ay, az = (jnp.abs(c) for c in q)
    box = kind == primitives.BOX
    cylinder = kind == primitives.CYLINDER
    cap = cylinder & (az * az > ax * ax + ay * ay)
    box_x = box & (ax >= ay) & (ax >= az)
    box_y = box & ~box_x & (ay >= az)
    wall = (kind == 4) & scene.room
    flat = (
        box_x | (wall & (axis == 0)),
        box_y | (wall & (axis == 1)),
        (box & ~box_x & ~box_y) | cap | (kind == 3) | (wall & (axis == 2)),
    )
    is_flat = flat[0] | flat[1] | flat[2]
    smooth = (q[0], q[1], jnp.where(cylinder, 0.0, q[2]))
    sides = (jnp.sign(q[0]), jnp.sign(q[1]), jnp.sign(q[2]))
    # the ground's outward side is up, whatever the rounding of z = 0 says; walls face inwards
    sides = (*sides[:2], jnp.where(kind == 3, 1.0, sides[2]))
    inwards = jnp.where(kind == 4, -1.0, 1.0)
    unit = tuple(
        inwards * jnp.where(is_flat, f * s, c) for f, s, c in zip(flat, sides, smooth, strict=True)
    )
    normal = normalize(
        tuple(m[i] * unit[0] + m[3 + i] * unit[1] + m[6 + i] * unit[2] for i in range(3))
    )
    names = ("pattern", "frequency", "gain", "warp", "grain", "gloss")
    columns = dict(zip(names, got["scalars"], strict=True))
    for name in ("direction", "shift"):
        columns |= {f"{name}_{c}": v for c, v in zip("xyz", got[name], strict=True)}
    if scene.photos is not None:
        columns |= dict(zip(("photo", "photo_width"), got["photo"], strict=True))
    colors = tuple(got["color_a"]), tuple(got["color_b"])
    return columns, colors, local, normal, tuple(f.astype(jnp.float32) for f in flat)


def _sun_and_occlusion(scene, maps, point, normal, index, sun):
    """Visibility [P] in {0, 1} of the point `sun` of the sun, and a soft ambient factor [P] from
    nearby objects.
    """
    matrices, centres = maps
    volume = jnp.cbrt(scene.size[:, 0] * scene.size[:, 1] * scene.size[:, 2])

    def body(slot, intersect, carry):
        lit, open_sky = carry
        away = tuple(p - centres[slot][i] for i, p in enumerate(point))
        matrix = matrices[slot]
        t = intersect(transform(matrix, away), transform(matrix, sun))
        other = index != slot  # convex objects shade themselves by their normals
        square = jnp.maximum(dot(away, away), 1e-6)
        r2 = volume[slot] * volume[slot]
        facing = jnp.maximum(-dot(normal, away), 0.0) * lax.rsqrt(square)
        block = jnp.minimum(facing * r2 / jnp.maximum(square, r2), 0.75)
        lit = jnp.where(other & (t < FAR), 0.0, lit)
        return lit, jnp.where(other, open_sky * (1.0 - block), open_sky)

    ones = jnp.ones_like(point[0])
    return _over_slots(scene, body, (ones, ones))


def _environment(scene, point):
    """Coordinates and masks of the dome: hills below an outline, sky with clouds above."""
    light = scene.light
    x, y, z = (p / scene.dome_radius for p in point)
    azimuth = jnp.arctan2(y, x)
    phase = light.hill_phase
    outline = (
        0.5 + 0.28 * jnp.sin(2.0 * azimuth + phase[0]) + 0.16 * jnp.sin(5.0 * azimuth + phase[1])
    )
    outline = outline + 0.06 * jnp.sin(13.0 * azimuth + phase[2])
    outline = light.hill_height * jnp.maximum(outline, 0.1)
    above = z > outline
    lift = 2.2 / (jnp.maximum(z, 0.0) + 0.22)
    coordinates = tuple(
        jnp.where(above, s, h)
        for s, h in zip((x * lift, y * lift, 0.3 * lift), (9 * x, 9 * y, 16 * z), strict=True)
    )
    return above, z, coordinates


def _point_of_sun(light, dx, dy):
    """Direction to the point of the sun at (dx, dy) in [-1/2, 1/2]^2 across it: the rays of a pixel
    see different ones, which makes its shadow soft.
    """
    sun = light.sun_direction
    side = jnp.stack([-sun[1], sun[0], jnp.zeros(())])
    side = side / jnp.sqrt(jnp.sum(side**2))
    at = sun + 2.0 * light.sun_radius * (dx * side + dy * jnp.cross(sun, side))
    return tuple(normalize(tuple(at[i] for i in range(3))))


def _shade(scene, maps, origin, direction, pixel, within):
    """Linear colour (three [P]) of camera rays.

    pixel: a ray's width at unit depth; within: where in its pixel it is, as `_rays`.
    """
    light = scene.light
    depth, index, axis = _cast(scene, maps, origin, direction)
    point = tuple(o + depth * d for o, d in zip(origin, direction, strict=True))
    material, (color_a, color_b), local, normal, flat = _surface(scene, maps, point, index, axis)
    view = normalize(direction)
    facing = jnp.clip(-dot(normal, view), 0.02, 1.0)
    footprint = pixel * depth * lax.rsqrt(facing)

    around = (index == SURROUND) & jnp.logical_not(scene.room)
    sky, sky_z, dome = _environment(scene, point)
    sky = sky & around
    local = tuple(jnp.where(around, e, c) for e, c in zip(dome, local, strict=True))
    footprint = jnp.where(around, pixel * 9.0, footprint)
    mix, noise, tint = textures.blend(material, local, flat, footprint)

    colors = [a + mix * (b - a) for a, b in zip(color_a, color_b, strict=True)]
    if scene.photos is not None:
        colors = _photographed(scene.photos, material, colors, color_a, (local, flat, footprint))

    shadow_ray = _point_of_sun(light, *within)
    lit, open_sky = _sun_and_occlusion(scene, maps, point, normal, index, shadow_ray)
    sun = tuple(light.sun_direction[i] for i in range(3))
    lambert = dot(normal, sun)
    wrapped = jnp.maximum(lambert, 0.0) * 0.9 + 0.1 * jnp.maximum(0.5 + 0.5 * lambert, 0.0)
    # indoors the walls get a soft fill instead of half of them staying dark
    fill = (index == SURROUND) & scene.room
    direct = jnp.where(fill, 0.35 + 0.2 * lambert, wrapped * (0.06 + 0.94 * lit))
    hemisphere = 0.7 + 0.3 * normal[2]
    corner = jnp.where(fill, 0.75 + 0.25 * jnp.clip(point[2] / 3.0, 0.0, 1.0), 1.0)
    ambient = hemisphere * open_sky * corner
    half = normalize(tuple(s - v for s, v in zip(sun, view, strict=True)))
    shine = jnp.maximum(dot(normal, half), 0.0) ** 40
    shine = material["gloss"] * shine * lit * (lambert > 0.0)

    elevation = jnp.clip(sky_z, 0.0, 1.0)
    blue = jnp.sqrt(elevation)
    glow = jnp.maximum(dot(view, sun), 0.0) ** 24
    cloud = light.clouds * jnp.clip(0.9 * noise + 0.1, 0.0, 1.0) * jnp.clip(6.0 * elevation, 0, 1)
    haze = 1.0 - jnp.exp(-depth / 160.0)
    haze = jnp.where(scene.room, 0.3 * haze, jnp.where(around, 0.35, haze))
    rgb = []
    for i in range(3):
        albedo = colors[i] * (1.0 + material["grain"] * noise + 0.5 * (tint - 0.5))
        albedo = jnp.clip(albedo, 0.0, 1.0)
        surface = albedo * (light.ambient[i] * ambient + light.sun_color[i] * direct)
        surface = jnp.where(
            around, albedo * (light.ambient[i] + 0.45 * light.sun_color[i]), surface
        )
        surface = surface + light.sun_color[i] * shine
        surface = surface + haze * (0.75 * light.sky_horizon[i] - surface)
        clear = light.sky_horizon[i] + blue * (light.sky_zenith[i] - light.sky_horizon[i])
        clear = clear + cloud * (0.95 - clear) + 0.35 * glow * light.sun_color[i]
        rgb.append(jnp.where(sky, clear, surface))
    return rgb


def _photographed(textures, material, colors, tint, where):
    """The colours of surfaces, three [P], those of photographs where there are any."""
    index = jnp.round(material["photo"]).astype(jnp.int32)
    texels, grey = photos.sample(textures, index, material["photo_width"], *where)
    found = [t * jnp.where(grey, c, 1.0) for t, c in zip(texels, tint, strict=True)]
    return [jnp.where(index < 0, c, f) for c, f in zip(colors, found, strict=True)]


def _display(linear):
    """Linear light -> display values in [0, 1]: a soft shoulder, then a square-root gamma."""
    linear = jnp.maximum(linear, 0.0)
    mapped = linear * (1.0 + linear * (1.0 / 6.25)) / (1.0 + linear * 0.45)
    return jnp.sqrt(jnp.clip(mapped, 0.0, 1.0))


def render_frame(scene: Scene, time, intrinsics, world_from_camera, height, width, samples=1):
    """Renders one frame.

    Args:
        scene: what to render; time: seconds.
        intrinsics: [3, 3] pixels; world_from_camera: [4, 4], OpenCV axes, metres.
        height, width: static image size; samples: static, samples x samples rays per pixel.

    Returns:
        (rgb [H, W, 3] float32 in [0, 1], depth [H, W] plane depth in metres of the pixel centre).
    """
    rgb, depth, _ = render_frame_index(
        scene, time, intrinsics, world_from_camera, height, width, samples
    )
    return rgb, depth


def render_frame_index(scene, time, intrinsics, world_from_camera, height, width, samples=1):
    """`render_frame` and the slot index [H, W] (then GROUND, SURROUND) under each pixel centre."""
    maps = _object_maps(scene, time)
    camera = (intrinsics, world_from_camera, height, width)
    depth, index, _ = _cast(scene, maps, *_rays(*camera, 0.0, 0.0))
    pixel = 1.0 / (intrinsics[0, 0] * samples)
    grid = (jnp.arange(samples) + 0.5) / samples - 0.5
    offsets = jnp.stack([jnp.tile(grid, samples), jnp.repeat(grid, samples)], axis=-1)

    def add(i, total):
        within = offsets[i, 0], offsets[i, 1]
        rgb = _shade(scene, maps, *_rays(*camera, *within), pixel, within)
        # samples are averaged as displayed: bright edges then stay smooth
        return tuple(t + _display(c) for t, c in zip(total, rgb, strict=True))

    # A trip count that the compiler cannot see keeps the shading apart from the stacking below;
    # fused with it, it runs seven times slower on a CPU.
    count = jnp.where(scene.radius > 0.0, samples * samples, 0)
    zero = jnp.zeros((height * width,))
    total = lax.fori_loop(0, count, add, (zero, zero, zero))
    rgb = jnp.stack(total, axis=-1).reshape(height, width, 3) / (samples * samples)
    return rgb, depth.reshape(height, width), index.reshape(height, width)
