"""The device mesh and where arrays live on it.

Axes: `data`, over the clips of a program (noise draws of a tuning step, the two halves of guidance); `fsdp`, over the
frozen weights (Rajbhandari et al. 2020, arXiv 1910.02054, stage 3) and, with `data`, over the clips; `frames`, over a
clip's frames. An axis that the clips leave free goes to the frames, too. Only a program's inputs are placed, XLA's
partitioner does the rest: what is spatial stays on its device, temporal layers exchange frames.

Frames are split only where a device has one clip: XLA cannot split the frames of several once they are one batch. Over
one axis they cost an n-th on n devices, over two at once a third more than that (FLOPs of the guided step in
tests/distributed, mesh 2 x 2 x 2).
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from recapture_jax import processes
from recapture_jax.errors import InputError

AXES = ("data", "fsdp", "frames")
_SMALL = 2**12  # elements; splitting less costs more messages than it saves memory


def make_mesh(data: int = -1, fsdp: int = 1, frames: int = 1) -> Mesh:
    """A mesh of `data` x `fsdp` x `frames` devices of all processes; data = -1: all that are left.

    Raises:
      InputError: if there are fewer devices, -1 leaves some over, or a process would have none of them.
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
    count = data * others
    if count > len(devices):
        raise InputError(
            f"config.mesh: {data} x {fsdp} x {frames} (data, fsdp, frames), this machine has "
            f"{len(devices)} devices"
        )
    if jax.process_count() > 1 and count < len(devices):
        raise InputError(
            f"config.mesh: {data} x {fsdp} x {frames} (data, fsdp, frames) leaves some of the "
            f"{len(devices)} devices of {jax.process_count()} processes out; set config.mesh.data=-1"
        )
    return Mesh(np.array(devices[:count]).reshape(data, fsdp, frames), AXES)


def one_device() -> Mesh:
    """A mesh of this process's first device."""
    return Mesh(np.array(jax.local_devices()[:1]).reshape(1, 1, 1), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


@dataclasses.dataclass(frozen=True)
class Placement:
    """`place(batch, size)` for compiled programs: the leading axis of every array over devices.

    Of arrays with an axis of frames, `[size, T, h, w, ...]`, that one, too, as far as both divide. Equal for the same
    mesh, so that what is compiled with it is compiled once.

    Attributes:
      mesh: devices.
      taken: an axis that something else is split over.
    """

    mesh: Mesh
    taken: str | None = None

    def __call__(self, batch: Any, size: int) -> Any:
        shape = _without(self.mesh.shape, self.taken)

        def put(x):
            clips, frames = _axes(shape, size, x.shape[1] if x.ndim >= 4 else 1)
            spec = P(clips or None, frames) if frames else P(clips or None)
            return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

        return jax.tree.map(put, batch)

    def axes(self, clips: int, frames: int) -> tuple[str, ...]:
        """What the frames of all clips are split over once they are one axis, clip by clip.

        With axes of one device: over an axis that is not named, `jax.shard_map` sums gradients.
        """
        over_clips, over_frames = _axes(_without(self.mesh.shape, self.taken), clips, frames)
        single = (a for a in AXES if self.mesh.shape[a] == 1 and a != self.taken)
        return (*over_clips, *over_frames, *single)


def axis_of_trajectories(shape: Mapping[str, int], together: int) -> str | None:
    """The axis of a mesh that trajectories tuned in one step are split over; None: each device has all of them."""
    count = shape["data"]
    return "data" if together and count > 1 and together % count == 0 else None


def devices_used(
    shape: Mapping[str, int], clips: int, frames: int, taken: str | None = None
) -> int:
    """Over how many devices of a mesh a program on so many clips and frames is split; the others repeat it."""
    left = _without(shape, taken)
    own = math.prod(left[a] for axes in _axes(left, clips, frames) for a in axes)
    return own * (shape[taken] if taken else 1)


def _without(shape: Mapping[str, int], taken: str | None) -> dict[str, int]:
    return {a: 1 if a == taken else n for a, n in shape.items()}


def _axes(
    shape: Mapping[str, int], clips: int, frames: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The axes over which clips and frames are split."""
    over_clips = _largest(shape, ("data", "fsdp"), clips)
    if clips > math.prod(shape[a] for a in over_clips):
        return over_clips, ()
    return over_clips, _largest(shape, tuple(a for a in AXES if a not in over_clips), frames)


def _largest(shape: Mapping[str, int], axes: tuple[str, ...], length: int) -> tuple[str, ...]:
    """Those of `axes` that make the largest product that divides `length`."""
    sets = [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]
    sizes = {c: math.prod(shape[a] for a in c) for c in sets}
    fitting = [c for c in sets if length % sizes[c] == 0]
    return tuple(a for a in max(fitting, key=sizes.get) if shape[a] > 1)


def weight_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Of a frozen weight: its longest axis that divides over `fsdp`; small ones are on every device."""
    count = mesh.shape["fsdp"]
    fitting = [i for i, n in enumerate(shape) if n % count == 0]
    if count == 1 or not fitting or math.prod(shape) < _SMALL:
        return replicated(mesh)
    longest = max(fitting, key=lambda i: shape[i])
    return NamedSharding(mesh, P(*(["fsdp" if i == longest else None for i in range(len(shape))])))


def shard_weights(tree: Any, mesh: Mesh) -> Any:
    """The tree with every array split over `fsdp` as `weight_sharding` says.

    Every process has the same arrays, or such as are on the mesh already.
    """
    return jax.tree.map(lambda x: _put(x, weight_sharding(x.shape, mesh)), tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree on every device of the mesh, process 0's if there are several."""
    return jax.tree.map(lambda x: _put(x, replicated(mesh)), processes.same(tree))


def gather(x: jax.Array, mesh: Mesh) -> jax.Array:
    """An array that lies on the mesh in parts, whole on every device."""
    if mesh.size == 1:
        return x
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))(x)


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    placed = isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim)
    if placed or sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
