"""One resumable training loop for both networks: time-limited chunks, EMA, learning curve."""

import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.pretrain_small.data import Journal
from recapture_jax import xla

SLOW = 0.02


def schedule(peak: float, steps: int, warmup: int = 200) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, 0.02 * peak)


def start_quiet(params: dict, layers: tuple[str, ...]) -> dict:
    """Zeroes the kernels of the named layers: those that end residual branches, as latent diffusion starts.

    The network begins as the few convolutions on its direct path.
    """
    flat = flatten_dict(params, sep="/")
    ends = tuple(f"{name}/kernel" for name in layers)
    quiet = {k: np.zeros_like(v) if k.endswith(ends) else v for k, v in flat.items()}
    return unflatten_dict(quiet, sep="/")


def train(
    name: str,
    workdir: pathlib.Path,
    params: dict,
    loss: Callable[[dict, jax.Array, dict], jax.Array],
    batch: Callable[[int], dict],
    *,
    steps: int,
    learning_rate: float,
    minutes: float,
    ema_decay: float = 0.998,
    slow: tuple[str, ...] = (),
    save_every: int = 250,
) -> dict:
    """Trains until `steps` or `minutes`, from the last snapshot; returns the averaged parameters.

    Layers named in `slow` learn at SLOW of the rate.
    """
    params = jax.tree.map(jnp.asarray, params)
    rates = jax.tree_util.tree_map_with_path(
        lambda path, _: SLOW if any(getattr(k, "key", k) in slow for k in path) else 1.0, params
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule(learning_rate, steps), weight_decay=1e-4),
        optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, rates)),
    )
    ema = jax.tree.map(jnp.copy, params)  # donated with the rest: no shared buffers
    state = {
        "params": params,
        "ema": ema,
        "opt": optimizer.init(params),
        "step": jnp.zeros((), jnp.int32),
    }
    path = workdir / f"{name}_state.npz"
    if path.exists():
        state = _load(path, state)

    def step(state, inputs):
        key = jax.random.fold_in(jax.random.key(17), state["step"])
        value, grads = jax.value_and_grad(loss)(state["params"], key, inputs)
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        # A short memory at the start, so that the average forgets the random initialisation.
        decay = jnp.minimum(ema_decay, (1.0 + state["step"]) / (10.0 + state["step"]))
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state["ema"], params)
        return {"params": params, "ema": ema, "opt": opt, "step": state["step"] + 1}, value

    compiled = xla.jit(step, donate_argnums=0)
    journal = Journal(workdir / f"{name}_curve.jsonl")
    begin, values, first = time.time(), [], int(state["step"])
    for i in range(first, steps):
        state, value = compiled(state, batch(i))
        values.append(value)
        if (i + 1) % 50 == 0:
            mean = float(np.mean(jax.device_get(values)))
            if not np.isfinite(mean):
                raise FloatingPointError(f"{name}: loss is {mean} at step {i + 1}")
            rate = (time.time() - begin) / (i + 1 - first)
            journal.write(step=i + 1, loss=mean, seconds_per_step=rate)
            values = []
        out_of_time = time.time() - begin > 60 * minutes
        if (i + 1) % save_every == 0 or i + 1 == steps or out_of_time:
            _save(path, state)
        if out_of_time:
            logging.info("%s: stopped by the clock at step %d of %d", name, i + 1, steps)
            break
    return jax.device_get(state["ema"])


def _save(path: pathlib.Path, state: dict) -> None:
    leaves = jax.device_get(jax.tree.leaves(state))
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, *leaves)
    temporary.replace(path)


def _load(path: pathlib.Path, like: dict) -> dict:
    with np.load(path) as file:
        leaves = [file[f"arr_{i}"] for i in range(len(file.files))]
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(x) for x in leaves])
