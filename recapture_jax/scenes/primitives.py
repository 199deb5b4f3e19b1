"""Ray intersections with the unit sphere, cube and cylinder, and with the surroundings.

A vector field over P rays is a tuple of three [P] arrays: XLA then fuses whole intersections into
one loop. Ray parameters are in units of the (not normalised) ray direction; a ray whose direction
has camera z = 1 therefore returns plane depth. Misses return `FAR`.
"""

import jax.numpy as jnp

FAR = 1e9
_EPSILON = 1e-4

ELLIPSOID, BOX, CYLINDER = 0, 1, 2


def dot(a, b):
    """Inner product of two component tuples."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def transform(matrix, v):
    """`matrix` [3, 3] times the component tuple `v`."""
    return tuple(matrix[i, 0] * v[0] + matrix[i, 1] * v[1] + matrix[i, 2] * v[2] for i in range(3))


def normalize(v):
    """The component tuple `v` at unit length."""
    scale = 1.0 / jnp.sqrt(jnp.maximum(dot(v, v), 1e-20))
    return tuple(c * scale for c in v)


def _nonzero(x):
    return jnp.where(jnp.abs(x) < 1e-9, 1e-9, x)


def _enter(near, far, hit=True):
    return jnp.where(hit & (near <= far) & (near > _EPSILON), near, FAR)


def hit_sphere(origin, direction):
    """Where rays from outside enter the unit sphere."""
    inverse = 1.0 / dot(direction, direction)
    middle = -dot(origin, direction) * inverse
    # the squared miss distance from the closest point: far better in float32 than b^2 - 4ac
    closest = tuple(o + middle * d for o, d in zip(origin, direction, strict=True))
    discriminant = 1.0 - dot(closest, closest)
    half = jnp.sqrt(jnp.maximum(discriminant, 0.0) * inverse)
    return _enter(middle - half, middle + half, discriminant > 0.0)


def _slab(o, d):
    inverse = 1.0 / _nonzero(d)
    a, b = (-1.0 - o) * inverse, (1.0 - o) * inverse
    return jnp.minimum(a, b), jnp.maximum(a, b)


def hit_box(origin, direction):
    """Where rays from outside enter the cube [-1, 1]^3."""
    (x0, x1), (y0, y1), (z0, z1) = (_slab(o, d) for o, d in zip(origin, direction, strict=True))
    return _enter(jnp.maximum(jnp.maximum(x0, y0), z0), jnp.minimum(jnp.minimum(x1, y1), z1))


def hit_cylinder(origin, direction):
    """Where rays from outside enter the cylinder x^2 + y^2 <= 1, |z| <= 1."""
    (ox, oy, _), (dx, dy, _) = origin, direction
    inverse = 1.0 / jnp.maximum(dx * dx + dy * dy, 1e-12)
    middle = -(ox * dx + oy * dy) * inverse
    cx, cy = ox + middle * dx, oy + middle * dy
    discriminant = 1.0 - cx * cx - cy * cy
    half = jnp.sqrt(jnp.maximum(discriminant, 0.0) * inverse)
    z0, z1 = _slab(origin[2], direction[2])
    near, far = jnp.maximum(middle - half, z0), jnp.minimum(middle + half, z1)
    return _enter(near, far, discriminant > 0.0)


HIT = {ELLIPSOID: hit_sphere, BOX: hit_box, CYLINDER: hit_cylinder}


def hit_ground(origin, direction):
    """Where rays meet the plane z = 0 from above."""
    t = -origin[2] / jnp.minimum(direction[2], -1e-9)
    return jnp.where(direction[2] < -1e-9, t, FAR)


def hit_dome(origin, direction, radius):
    """Where rays from inside leave the sphere of `radius` metres about the world origin."""
    inverse = 1.0 / dot(direction, direction)
    middle = -dot(origin, direction) * inverse
    closest = tuple(o + middle * d for o, d in zip(origin, direction, strict=True))
    half = jnp.sqrt(jnp.maximum(radius * radius - dot(closest, closest), 0.0) * inverse)
    return middle + half


def hit_room(origin, direction, half_extent):
    """Where rays from inside leave the walls |x| <= X, |y| <= Y or the ceiling z = Z.

    Returns (t, axis): axis 0, 1 or 2 names the surface's normal.
    """
    tx, ty = (
        (jnp.where(d < 0, -half_extent[i], half_extent[i]) - o) / _nonzero(d)
        for i, (o, d) in enumerate(zip(origin[:2], direction[:2], strict=True))
    )
    tz = (half_extent[2] - origin[2]) / jnp.maximum(direction[2], 1e-9)
    tz = jnp.where(direction[2] > 1e-9, tz, FAR)
    t = jnp.minimum(jnp.minimum(tx, ty), tz)
    return t, jnp.where(t == tx, 0, jnp.where(t == ty, 1, 2))
