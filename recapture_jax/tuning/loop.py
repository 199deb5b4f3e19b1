"""Runs a compiled step to the end: progress, metrics, checkpoints, resuming, non-finite losses."""

import functools
import math
import time
from collections.abc import Mapping
from typing import Any

import jax

from recapture_jax import progress, xla
from recapture_jax.checkpoints import TrainCheckpoints
from recapture_jax.errors import InputError
from recapture_jax.sharding import replicate, replicated, shard_weights


def fit(
    step,
    state: dict,
    frozen: Mapping,
    base: Any,
    data: Mapping,
    *,
    steps: int,
    mesh: jax.sharding.Mesh,
    label: str,
    checkpoints: TrainCheckpoints | None = None,
    checkpoint_every: int = 100,
    metrics: progress.Metrics | None = None,
) -> tuple[dict, dict]:
    """Steps until `steps`, from the newest checkpoint if there is one.

    Args:
      step: from `step.make_step`.
      state: the initial state; donated.
      frozen, base, data: further arguments of `step`, placed on the mesh once; base is split over its
        axis fsdp.
      steps: where to stop, counted from the very beginning.
      mesh: devices.
      label: of the progress bar and of the metrics' records.

    Returns:
      The final state, and a record: compile seconds, steps per second, first and last losses.

    Raises:
      InputError: if a loss is not finite; the checkpoints of earlier steps stay.
    """
    everywhere = replicated(mesh)
    if checkpoints is not None and checkpoints.latest() is not None:
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state
        )
        state = checkpoints.restore(checkpoints.latest(), shapes)
        progress.say(f"{label}: resuming at step {int(state['step'])} of {steps}")
    state, frozen, data = replicate((state, dict(frozen), dict(data)), mesh)
    base = shard_weights(base, mesh)
    done = int(state["step"])
    record: dict[str, Any] = {"steps": steps, "resumed_at": done}
    if metrics is not None:
        metrics.resume(done)
    if done >= steps:
        return state, record

    begin = time.perf_counter()
    compiled = _program(step, mesh, state, frozen, base, data)
    record["compile_seconds"] = round(time.perf_counter() - begin, 2)
    record["flops_per_step"] = (compiled.cost_analysis() or {}).get("flops")  # of one device
    progress.say(f"{label}: compiled in {record['compile_seconds']:.1f} s")

    begin = time.perf_counter()
    bar = progress.bar(label, steps, done)
    pending: tuple[int, dict] | None = None

    def settle() -> None:
        """Reads the losses of an earlier step while the device works on the next one."""
        if pending is None:
            return
        number, values = pending[0], {k: float(v) for k, v in pending[1].items()}
        if not all(math.isfinite(v) for v in values.values()):
            raise InputError(
                f"{label}: a loss is not finite at step {number} ({values}); lower config.tune.learning_rate "
                "or set config.model.dtype=float32, then run again: earlier checkpoints are kept"
            )
        record.setdefault("first", values)
        record["last"] = values
        if metrics is not None:
            metrics.write(stage=label, step=number, **values)
        bar.set_postfix(
            {k: f"{v:.4f}" for k, v in values.items() if k.startswith("loss")}, refresh=False
        )

    try:
        for number in range(done + 1, steps + 1):
            state, values = compiled(state, frozen, base, data)
            settle()
            pending = (number, values)
            bar.update()
            if checkpoints is not None and number % checkpoint_every == 0 and number < steps:
                settle()  # a checkpoint is only written of a state whose loss was finite
                pending = None
                checkpoints.save(number, state, force=True)
        settle()
    finally:
        bar.close()
    record["steps_per_second"] = round((steps - done) / (time.perf_counter() - begin), 3)
    progress.say(f"{label}: {record['steps_per_second']} steps/s")
    return state, record


def _program(step, mesh: jax.sharding.Mesh, *args) -> jax.stages.Compiled:
    """The compiled step; the same step on the same shapes is traced and compiled once per process."""
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), args
    )
    leaves, structure = jax.tree.flatten(shapes)
    return _compile(step, mesh, structure, tuple(leaves))


@functools.lru_cache(maxsize=8)
def _compile(step, mesh: jax.sharding.Mesh, structure, leaves: tuple) -> jax.stages.Compiled:
    program = xla.jit(step, donate_argnums=0, out_shardings=replicated(mesh))
    return program.lower(*jax.tree.unflatten(structure, leaves)).compile()
