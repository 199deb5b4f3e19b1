"""Does it fit, and how long will it take? Told of each stage, and settled, before any work starts.

Memory is that of `estimate`. Time is matrix products and convolutions, counted in the trace, over what the device does
in a large matrix product, times the share of it that each stage reached in `experiments.bench.steps` on two CPU cores;
compilation comes on top.
"""

import dataclasses
import functools
import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from recapture_jax import cost, progress
from recapture_jax.errors import InputError
from recapture_jax.estimate import GIB, Estimate, Need

# Of a large matrix product's rate.
_EFFICIENCY = {"encode": 0.55, "tune": 0.36, "sample": 0.54, "decode": 0.45}
_SHARES = {"none": 0.7, "dots": 0.7, "full": 0.9}
"""Of a device's memory that a plan may take: rematerialising costs a third of the speed, running out all of it."""
_WINDOWS = (8, 6)  # frames; shorter ones would share but the one that they are conditioned on
_WINDOWED = ("tune", "sample")  # what holds less of a shorter window


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a run will be done on this device.

    `model.remat`, `offload`, `window` and `window_overlap`, `generate.decode_chunk`, and apart:
    `generate.guidance_passes`.
    """

    remat: str
    offload: bool
    apart: bool
    decode_chunk: int
    window: int
    window_overlap: int
    needs: tuple[Need, ...]
    limit: int
    seconds: dict[str, float]

    @property
    def guidance_passes(self) -> str:
        """As the configuration says it."""
        return "apart" if self.apart else "together"

    @property
    def lacking(self) -> tuple[Need, ...]:
        """Stages that do not fit."""
        return tuple(n for n in self.needs if not _fits(n, self.limit))

    def report(self) -> dict[str, Any]:
        """For run.json, in GiB."""
        stages = {n.stage: round(n.total / GIB, 3) for n in self.needs}
        chosen = {
            "remat": self.remat,
            "offload": self.offload,
            "guidance_passes": self.guidance_passes,
            "decode_chunk": self.decode_chunk,
            "window": self.window,
        }
        chosen |= {"gib": stages, "limit_gib": round(self.limit / GIB, 2)}
        return chosen | {"expected_seconds": {k: round(v, 1) for k, v in self.seconds.items()}}


def device_memory() -> int:
    """Bytes that one device offers to this process: of an accelerator what XLA may take, else free main memory."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: nothing is known, nothing is refused
        return 2**63


@functools.lru_cache(maxsize=4)
def _estimate(model_config: str, config: str, dtype, frames: int, size) -> Estimate:
    """One for all runs of a process that are alike but for their clip and move; both given as JSON."""
    return Estimate(json.loads(model_config), ConfigDict(json.loads(config)), dtype, frames, size)


def plan(
    model_config: dict,
    config,
    dtype,
    frames: int,
    size,
    limit: int | None = None,
    together: int = 1,
) -> Plan:
    """How the run fits the device; says so, and what each stage needs.

    What is free comes first: with `generate.guidance_passes` 'auto' the two passes of guidance run one after the
    other if they do not fit together, with `model.offload` 'auto' the weights that a stage does not use wait in main
    memory; `model.remat` 'auto' becomes the first of none, dots, full that fits; a decoder that does not
    fit takes fewer frames at once. Where that is not enough, and nothing of it was ruled out, a run (not one of
    several together) with `model.window` 0 sees a long clip in shorter windows. Nothing else is changed by itself,
    since it would change the result more.

    Args:
        As `Estimate`; limit: bytes of the device, found out if None; together: trajectories tuned in one step.

    Raises:
        InputError: it does not fit; with the numbers, and what to lower.
    """
    limit = device_memory() if limit is None else limit

    def at(window: int, overlap: int) -> Plan:
        names = ("model", "lora", "tune", "generate", "mesh")
        groups = {name: config[name].to_dict() for name in names}
        groups["model"] |= {"window": window, "window_overlap": overlap}
        shared = json.dumps(model_config), json.dumps(groups)
        estimate = _estimate(*shared, jnp.dtype(dtype), frames, tuple(size))
        return _arrange(estimate, limit, together)

    group = config.model
    found = asked = at(group.window, group.window_overlap)
    seen = min(frames, int(model_config["num_frames"]))
    shorter = ()
    if asked.lacking and together == 1 and _windows_help(asked, config, seen):
        shorter = _WINDOWS
    for window in shorter:
        # An overlap was meant for a longer window if it is most of this one.
        overlap = group.window_overlap if 2 * group.window_overlap <= window else 0
        found = at(window, overlap)
        if not found.lacking:
            break
    else:
        found = asked
    _say(found, config, seen)
    if found.lacking:
        raise InputError(_refusal(found, config, frames, size, shorter))
    return found


def _windows_help(asked: Plan, config, seen: int) -> bool:
    """Whether shorter windows are what is left; seen: frames that the model sees at once now."""
    if config.model.window or seen <= max(_WINDOWS):
        return False
    return all(n.stage in _WINDOWED and not _ruled_out(n.stage, config) for n in asked.lacking)


def _fits(need: Need, limit: int, remat: str = "full") -> bool:
    return need.total <= _SHARES[remat] * limit


def _arrange(estimate: Estimate, limit: int, together: int) -> Plan:
    """The fastest way to do the run with these windows of time, or the leanest, which then does not fit."""
    config = estimate.config

    def fits(need: Need, remat: str = "full") -> bool:
        return _fits(need, limit, remat)

    def placed(need: Need, offload: bool) -> Need:
        return estimate.offloaded(need) if offload else need

    given, passes = config.generate.decode_chunk, config.generate.guidance_passes
    chunk = given or estimate.frames
    offloads = _offload_choices(config.model.offload)
    together_fits = fits(placed(estimate.sample(), offloads[0]))
    apart = estimate.guided and (passes == "apart" or passes == "auto" and not together_fits)

    def others(chunk: int, offload: bool) -> tuple[Need, Need, Need]:
        needs = estimate.encode(), estimate.sample(apart), estimate.decode(chunk)
        return tuple(placed(need, offload) for need in needs)

    if not all(map(fits, others(chunk, offloads[0]))):
        offloads = offloads[-1:]
    for remat, offload in itertools.product(_remat_choices(config.model.remat), offloads):
        tuning = placed(estimate.tune(remat, together), offload)
        if fits(tuning, remat):
            break
    while chunk > 1 and not fits(others(chunk, offload)[-1]):
        chunk -= 1
    encoding, *rest = others(chunk, offload)
    needs = (encoding, tuning, *rest)
    rate = cost.matmul_rate(estimate.dtype, cost.matmul_side())
    seconds = {k: n / (rate * _EFFICIENCY[k]) for k, n in estimate.operations(remat).items()}
    chunk = given if chunk >= (given or estimate.frames) else chunk
    windows = config.model.window, config.model.window_overlap
    return Plan(remat, offload, apart, chunk, *windows, needs, limit, seconds)


def _remat_choices(given: str) -> tuple[str, ...]:
    if given != "auto":
        return (given,)
    # XLA:CPU undoes rematerialisation: it costs time there and gains nothing.
    return ("none",) if jax.default_backend() == "cpu" else ("none", "dots", "full")


def _offload_choices(given: str) -> tuple[bool, ...]:
    if given != "auto":
        return (given == "always",)
    return (False,) if jax.default_backend() == "cpu" else (False, True)


def _say(found: Plan, config, seen: int) -> None:
    largest = max(n.total for n in found.needs)
    parts = ", ".join(f"{n.stage} {_gib(n.total)}" for n in found.needs)
    text = f"memory: at most about {_gib(largest)} of {_gib(found.limit)} ({parts})"
    if config.model.remat == "auto":
        text += f"; model.remat={found.remat}"
    if found.offload:
        text += "; weights wait in main memory between their uses"
    if found.apart and config.generate.guidance_passes == "auto":
        text += "; the passes of guidance one after the other"
    if found.decode_chunk != config.generate.decode_chunk:
        text += f"; decoding {found.decode_chunk} frames at once, or all would not fit"
    progress.say(text)
    if found.window != config.model.window:
        progress.say(
            f"{seen} frames at once do not fit: the model sees windows of {found.window} "
            f"(model.window={found.window}), and the result is another than all at once would give"
        )
    parts = ", ".join(f"{k} {_duration(v)}" for k, v in found.seconds.items())
    progress.say(
        f"time: about {_duration(sum(found.seconds.values()))} ({parts}), compilation and depth apart"
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{max(1, round(seconds))} s"


def _ruled_out(stage: str, config) -> list[str]:
    """What would lower the need of a stage and leave the result as it is, but for the configuration."""
    model, free = config.model, []
    if stage == "sample" and config.generate.guidance_passes == "together":
        free.append("config.generate.guidance_passes=auto")
    if model.offload == "never":
        free.append("config.model.offload=auto")
    if stage == "tune" and model.remat not in ("auto", "full"):
        free.append("config.model.remat=auto")
    if model.attention == "xla":
        free.append("config.model.attention=auto")
    return free


def _refusal(found: Plan, config, frames: int, size, tried: tuple[int, ...]) -> str:
    """tried: windows that did not fit either."""
    need = found.lacking[0]
    advice = _ruled_out(need.stage, config)
    if need.stage == "tune":
        if config.tune.frames_per_step > 1:
            advice.append("config.tune.frames_per_step=1")
        advice.append(f"config.tune.window={2 * config.tune.window}")
    advice += ["a smaller config.video.short_side", "fewer config.video.num_frames"]
    if need.stage in _WINDOWED and frames > 8 and not tried:
        advice.append("config.model.window=8")
    either = f"; nor do windows of {tried[-1]} frames fit" if tried else ""
    return (
        f"{frames} frames of {size[1]}x{size[0]} need about {_gib(need.total)} to {need.stage} (weights "
        f"{_gib(need.weights)}), this device has {_gib(found.limit)}{either}; try {', or '.join(advice)}"
    )


def _gib(value: float) -> str:
    return f"{value / GIB:.1f} GiB" if value >= 0.1 * GIB else f"{value / 2**20:.0f} MiB"
