"""The device mesh and where arrays live on it: one axis, `data`, over the noise draws of a step."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from recapture_jax.errors import InputError


def make_mesh(data: int = -1) -> Mesh:
    """A mesh over `data` devices (-1: all).

    Raises:
      InputError: if there are fewer devices.
    """
    devices = jax.devices()
    data = len(devices) if data == -1 else data
    if data > len(devices):
        raise InputError(f"config.mesh.data={data}: this machine has {len(devices)} devices")
    return Mesh(np.array(devices[:data]), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def place_batch(mesh: Mesh):
    """`place(batch, size)` for compiled steps: the leading axis of every array over `data`.

    A size that does not divide over the devices stays replicated.
    """

    def place(batch, size: int):
        spec = P("data") if size % mesh.devices.size == 0 else P()
        return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, spec))

    return place


def replicate(tree, mesh: Mesh):
    """The tree on every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))
