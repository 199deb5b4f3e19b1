"""What a tuning step keeps from its forward to its backward pass, counted by tracing alone.

It is a property of the program, the same on every device; nothing is allocated and nothing runs.
"""

from typing import Any

import jax

from recapture_jax.tuning.step import NetworkOf, Settings, make_loss


def kept_bytes(network_of: NetworkOf, settings: Settings, loras: Any, base: Any, data: Any) -> int:
    """Bytes of activations kept, parameters and LoRAs apart.

    Args:
        network_of, settings: as `step.make_loss`.
        loras: shapes of the trained deltas by kind; base: of the frozen parameters; data: of what the
            losses read.
    """
    loss = make_loss(network_of, settings, tuple(loras))

    def backward(loras, base, data):
        key = jax.random.key(0)
        return jax.vjp(lambda loras: loss(loras, {}, base, data, key)[0], loras)[1]

    kept = jax.eval_shape(backward, loras, base, data)
    # Kept parameters are no copies; they are told from activations by their shapes.
    known = {(p.shape, p.dtype) for p in jax.tree.leaves((base, loras))}
    return nbytes([x for x in jax.tree.leaves(kept) if (x.shape, x.dtype) not in known])


def nbytes(tree: Any) -> int:
    """Bytes of all arrays, or shapes, of a tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
