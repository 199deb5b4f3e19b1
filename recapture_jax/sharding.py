"""The device mesh and where arrays live on it.

Axes: `data`, over the noise draws of a step; `fsdp`, over the frozen weights (Rajbhandari et al. 2020, arXiv
1910.02054, stage 3) and, with `data`, over the draws; `frames`, over a clip's frames. Only a step's inputs are
placed, XLA's partitioner does the rest: what is spatial stays on its device, temporal layers exchange frames.

`frames` splits the work only where a device of `data` and `fsdp` has one draw: XLA cannot split the frames of several
clips once they are one batch.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from recapture_jax.errors import InputError

AXES = ("data", "fsdp", "frames")
_SMALL = 2**12  # elements; splitting less costs more messages than it saves memory


def make_mesh(data: int = -1, fsdp: int = 1, frames: int = 1) -> Mesh:
    """A mesh of `data` x `fsdp` x `frames` devices; data = -1: all that are left.

    Raises:
      InputError: if there are fewer devices, or -1 leaves some over.
    """
    devices = jax.devices()
    others = fsdp * frames
    if data == -1:
        if len(devices) % others:
            raise InputError(
                f"config.mesh.fsdp={fsdp} times frames={frames} does not divide this machine's "
                f"{len(devices)} devices; give config.mesh.data, too"
            )
        data = len(devices) // others
    if data * others > len(devices):
        raise InputError(
            f"config.mesh: {data} x {fsdp} x {frames} (data, fsdp, frames), this machine has "
            f"{len(devices)} devices"
        )
    return Mesh(np.array(devices[: data * others]).reshape(data, fsdp, frames), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def place_batch(mesh: Mesh):
    """`place(batch, size)` for compiled steps: the leading axis of every array over `data` and `fsdp`.

    Of arrays with an axis of frames, `[size, T, h, w, ...]`, that one over `frames`. What does not divide over
    its devices stays whole.
    """
    shape = dict(mesh.shape)

    def place(batch, size: int):
        first = _draw_axes(shape, size) or None

        def put(x):
            clips = x.ndim >= 4 and x.shape[1] % shape["frames"] == 0
            spec = P(first, "frames") if clips else P(first)
            return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

        return jax.tree.map(put, batch)

    return place


def devices_used(shape: Mapping[str, int], draws: int, frames: int) -> int:
    """Over how many devices of a mesh a step of so many draws and frames is split; the others repeat it."""
    slots = math.prod(shape[a] for a in _draw_axes(shape, draws))
    alone = draws == slots and frames % shape["frames"] == 0
    return slots * (shape["frames"] if alone else 1)


def _draw_axes(shape: Mapping[str, int], draws: int) -> tuple[str, ...]:
    """The axes that so many draws are split over, as far as they divide."""
    sets = (("data", "fsdp"), ("data",))
    return next((s for s in sets if draws % math.prod(shape[a] for a in s) == 0), ())


def weight_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Of a frozen weight: its longest axis that divides over `fsdp`; small ones are on every device."""
    count = mesh.shape["fsdp"]
    fitting = [i for i, n in enumerate(shape) if n % count == 0]
    if count == 1 or not fitting or math.prod(shape) < _SMALL:
        return replicated(mesh)
    longest = max(fitting, key=lambda i: shape[i])
    return NamedSharding(mesh, P(*(["fsdp" if i == longest else None for i in range(len(shape))])))


def shard_weights(tree: Any, mesh: Mesh) -> Any:
    """The tree with every array split over `fsdp` as `weight_sharding` says."""
    return jax.device_put(tree, jax.tree.map(lambda x: weight_sharding(x.shape, mesh), tree))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree on every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))
