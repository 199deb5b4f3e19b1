"""The compiled tuning step: two LoRAs, two losses, one AdamW.

    L = w_t L_temporal(anchor; temporal LoRA, stop_gradient(spatial LoRA))
      + w_s L_spatial(source frames; spatial LoRA, temporal layers skipped)          (ReCapture, sec. 3.2)

Neither LoRA receives a gradient from the other's loss and AdamW works leaf by leaf, so the spatial LoRA
is the same whether both are tuned in one joint step or it alone: what is fitted once per clip can be
reused for every camera path.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from recapture_jax.diffusion import edm
from recapture_jax.diffusion.guidance import Conditioning
from recapture_jax.lora.adapter import adapters
from recapture_jax.tuning.losses import joint_loss, v_loss

KINDS = ("spatial", "temporal")
# (U-Net parameters, image_only) -> F(c_in x, c_noise, cond)
NetworkOf = Callable[[Any, bool], edm.Network]
# Puts the arrays of a batch where they belong on the mesh, given the batch size.
Place = Callable[[Any, int], Any]


def _anywhere(batch: Any, size: int) -> Any:
    return batch


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("latents", "mask", "cond"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class AnchorData:
    """What the temporal loss reads.

    Attributes:
      latents: `[K, T, h, w, c]`, scaled latents of the anchor, or of K windows of it.
      mask: `[K, T, h, w]` bool, True where the anchor is known, or weights in [0, 1].
      cond: conditioning of each window on its first frame, batch K.
    """

    latents: jax.Array
    mask: jax.Array
    cond: Conditioning


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("latents", "cond"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class SourceData:
    """What the spatial loss reads: A augmented versions of the T source frames.

    Attributes:
      latents: `[A, T, h, w, c]`, scaled.
      cond: conditioning of each version, batch A, or of each of its frames, batch A T in the order
        of `latents`; its own `latents` have one frame.
    """

    latents: jax.Array
    cond: Conditioning


@dataclasses.dataclass(frozen=True)
class Settings:
    """Numbers of the step; see `config.tune`.

    Attributes:
      spatial_rate: of the spatial LoRA, as a share of `learning_rate`.
      draws: noise draws of the anchor in one temporal step.
      frames: source frames in one spatial step.
      window: a temporal step sees one part in `window` of each side of the anchor, elsewhere in each
        draw; 1: all of it.
      stride: of the U-Net; the sides of a window are multiples of it.
    """

    learning_rate: float = 5e-4
    spatial_rate: float = 1.0
    weight_decay: float = 1e-2
    loss: str = "v"
    normalise: str = "all"
    temporal_weight: float = 1.0
    spatial_weight: float = 1.0
    sigma_mean: float = edm.SIGMA_MEAN
    sigma_std: float = edm.SIGMA_STD
    draws: int = 1
    frames: int = 1
    window: int = 1
    stride: int = 8

    def sigmas(self, key: jax.Array, count: int) -> jax.Array:
        return edm.sample_sigma(key, (count,), mean=self.sigma_mean, std=self.sigma_std)


def temporal_loss(
    network: edm.Network,
    data: AnchorData,
    key: jax.Array,
    settings: Settings,
    place: Place = _anywhere,
) -> jax.Array:
    """Masked loss of `settings.draws` noised copies of the anchor, or of windows of it."""
    sigma_key, noise_key = jax.random.split(key)
    n, count = settings.draws, len(data.latents)
    picked = jax.random.randint(jax.random.fold_in(key, 3), (n,), 0, count)
    copies = jax.tree.map(lambda x: x[picked], (data.latents, data.mask, data.cond))
    if settings.window > 1:
        copies = _windows(*copies, jax.random.fold_in(key, 2), settings)
    noise = jax.random.normal(noise_key, copies[0].shape)
    sigma, noise, (z, mask, cond) = place((settings.sigmas(sigma_key, n), noise, copies), n)
    prediction = edm.predict_v(network, edm.add_noise(z, noise, sigma), sigma, cond)
    return v_loss(
        prediction, z, noise, sigma, mask, form=settings.loss, normalise=settings.normalise
    )


def _windows(latents, mask, cond: Conditioning, key: jax.Array, settings: Settings):
    """A window of each draw's latents, mask and conditioning latents, the same of all three.

    Most of what a temporal layer learns of a motion is local, and a window costs a share of the time
    and memory of the whole.
    """
    n, _, height, width, _ = latents.shape
    sides = [window_side(length, settings) for length in (height, width)]
    corners = jax.random.uniform(key, (n, 2))
    room = jnp.array([[height - sides[0] + 1, width - sides[1] + 1]])
    corners = jnp.floor(corners * room).astype(jnp.int32)

    def cut(x, corner):
        """x: `[T, h, w, ...]`."""
        for axis in (0, 1):
            x = jax.lax.dynamic_slice_in_dim(x, corner[axis], sides[axis], axis=1 + axis)
        return x

    latents, mask, images = (jax.vmap(cut)(x, corners) for x in (latents, mask, cond.latents))
    return latents, mask, dataclasses.replace(cond, latents=images)


def window_side(length: int, settings: Settings) -> int:
    """Latents along a side of `length` that a step sees: at least its share, whole strides."""
    share = -(-length // settings.window)
    return min(length, -(-share // settings.stride) * settings.stride)


def spatial_loss(
    network: edm.Network,
    data: SourceData,
    key: jax.Array,
    settings: Settings,
    place: Place = _anywhere,
) -> jax.Array:
    """Loss of `settings.frames` random frames, each a clip of one frame to the image-only network."""
    version_key, frame_key, sigma_key, noise_key = jax.random.split(key, 4)
    n = settings.frames
    versions, frames = data.latents.shape[:2]
    version = jax.random.randint(version_key, (n,), 0, versions)
    frame = jax.random.randint(frame_key, (n,), 0, frames)
    z = data.latents[version, frame][:, None]
    images = len(data.cond.context) // versions  # of one version
    image = version * images + jnp.minimum(frame, images - 1)
    cond = jax.tree.map(lambda x: x[image], data.cond)
    noise = jax.random.normal(noise_key, z.shape)
    sigma, noise, z, cond = place((settings.sigmas(sigma_key, n), noise, z, cond), n)
    prediction = edm.predict_v(network, edm.add_noise(z, noise, sigma), sigma, cond)
    return v_loss(prediction, z, noise, sigma, form=settings.loss)


def make_loss(
    network_of: NetworkOf,
    settings: Settings,
    trained: tuple[str, ...],
    place: Place = _anywhere,
):
    """`loss(loras, frozen, base, data, key) -> (total, {name: loss})` of the LoRAs in `trained`.

    `loras` and `frozen` map 'spatial' and 'temporal' to deltas; `data` maps 'source' and 'anchor' to what
    the two losses read. The temporal loss runs with the spatial LoRA wherever it comes from.
    """

    def loss(loras: Mapping, frozen: Mapping, base: Any, data: Mapping, key: jax.Array):
        parts = {}
        if "spatial" in trained:
            network = network_of(base, True)
            with adapters(loras["spatial"]):
                parts["spatial"] = spatial_loss(
                    network, data["source"], jax.random.fold_in(key, 1), settings, place
                )
        if "temporal" in trained:
            network = network_of(base, False)
            spatial = jax.lax.stop_gradient(loras.get("spatial") or frozen.get("spatial") or {})
            with adapters(spatial), adapters(loras["temporal"]):
                parts["temporal"] = temporal_loss(
                    network, data["anchor"], jax.random.fold_in(key, 0), settings, place
                )
        total = joint_loss(
            parts.get("temporal", 0.0),
            parts.get("spatial", 0.0),
            temporal_weight=settings.temporal_weight,
            spatial_weight=settings.spatial_weight,
        )
        return total, parts

    return loss


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """AdamW at a constant rate, `spatial_rate` of it for the spatial LoRA; float32 state."""
    rates = {"spatial": settings.spatial_rate, "temporal": 1.0}

    def scale(updates, _):
        return {kind: optax.tree.scale(rates[kind], part) for kind, part in updates.items()}

    adamw = optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay)
    return optax.chain(adamw, optax.stateless(scale))


def init_state(loras: Mapping, settings: Settings, seed: int = 0) -> dict:
    """Training state of the LoRAs in `loras`: `{"lora", "opt_state", "step", "seed"}`.

    The seed is data: as a constant of the step it would be compiled anew for every seed.
    """
    loras = dict(loras)
    return {
        "lora": loras,
        "opt_state": optimizer(settings).init(loras),
        "step": jnp.zeros((), jnp.int32),
        "seed": jnp.asarray(seed, jnp.int32),
    }


def make_step(
    network_of: NetworkOf,
    settings: Settings,
    trained: tuple[str, ...],
    place: Place = _anywhere,
):
    """`step(state, frozen, base, data) -> (state, metrics)`, to be jitted with `state` donated.

    The randomness of step n is a function of the state's (seed, n) alone, so a resumed run repeats it exactly.
    """
    loss = make_loss(network_of, settings, trained, place)
    update = optimizer(settings).update

    def step(state: dict, frozen: Mapping, base: Any, data: Mapping):
        key = jax.random.fold_in(jax.random.key(state["seed"]), state["step"])
        grad = jax.grad(loss, has_aux=True)
        grads, parts = grad(state["lora"], frozen, base, data, key)
        updates, opt_state = update(grads, state["opt_state"], state["lora"])
        lora = optax.apply_updates(state["lora"], updates)
        metrics = {f"loss_{name}": value for name, value in parts.items()}
        metrics["grad_norm"] = optax.global_norm(grads)
        return state | {"lora": lora, "opt_state": opt_state, "step": state["step"] + 1}, metrics

    return step


def batched(step, over: str | None = None):
    """`step` for R trajectories of one clip at once, each tuned as it would be alone, noise included.

    `state["lora"]`, `state["opt_state"]`, `state["seed"]` and all of `data` have a leading axis R (`stack_states`);
    the base, `frozen` and the count of steps are those of all. The base weights are read once for all of them.

    Args:
      step: from `make_step`.
      over: axis of the mesh that the trajectories are split over.

    Returns:
      A step as `make_step` has it, its metrics the means over the trajectories.
    """
    axes = {"lora": 0, "opt_state": 0, "step": None, "seed": 0}
    several = jax.vmap(step, in_axes=(axes, None, None, 0), out_axes=(axes, 0), spmd_axis_name=over)

    def run(state: dict, frozen: Mapping, base: Any, data: Mapping):
        state, metrics = several(state, frozen, base, data)
        return state, jax.tree.map(jnp.mean, metrics)

    return run


def stack_states(states: Sequence[dict]) -> dict:
    """The states of trajectories that are equally far, as one for `batched`."""
    own = [{name: state[name] for name in ("lora", "opt_state", "seed")} for state in states]
    return states[0] | jax.tree.map(lambda *x: jnp.stack(x), *own)
