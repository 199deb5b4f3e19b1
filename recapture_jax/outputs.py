"""What a run leaves in its folder: clips, cameras, LoRAs, losses and `run.json`."""

import importlib.metadata
import json
import pathlib
import platform
import time
from typing import Any

import jax
import numpy as np

import recapture_jax
from recapture_jax.camera.formats import nerfstudio_camera_path
from recapture_jax.stages import anchor as anchor_stage
from recapture_jax.stages.anchor import Anchor
from recapture_jax.video.write import side_by_side, write_video


def fill(folder: pathlib.Path, run, anchor: Anchor, loras: dict, frames: np.ndarray) -> None:
    """Puts everything that a run leaves into an empty folder.

    Args:
        folder: on disk.
        run: `pipeline.Run`, with its stages done.
        anchor: of the run.
        loras: by kind.
        frames: the result, `[T, H, W, 3]` in [0, 1].
    """
    fps = run.clip.fps
    rough = np.where(anchor.raw_mask[..., None], anchor.frames, 0.0)
    mask = np.repeat(anchor.mask[..., None], 3, axis=-1).astype(np.float32)
    source = np.asarray(run.clip.frames)
    write_video(folder / "result.mp4", frames, fps, run.clip.audio)
    write_video(folder / "anchor.mp4", rough, fps)
    write_video(folder / "mask.mp4", mask, fps)
    write_video(folder / "comparison.mp4", side_by_side([source, rough, frames]), fps)
    cameras = nerfstudio_camera_path(anchor.trajectory, *run.clip.size, fps)
    (folder / "cameras.json").write_text(json.dumps(cameras, indent=1) + "\n")
    (folder / "lora").mkdir()
    metrics = []
    for kind, lora in loras.items():
        run.save_lora(folder / "lora" / f"{kind}.safetensors", kind, lora)
        entry = run.cache.entry(kind, run.lora_keys[kind])
        metrics.append((entry / "metrics.jsonl").read_text())
    # Fitted in one step they have the same records.
    (folder / "metrics.jsonl").write_text("".join(dict.fromkeys(metrics)))
    (folder / "run.json").write_text(json.dumps(report(run, anchor), indent=1) + "\n")


def report(run, anchor: Anchor) -> dict[str, Any]:
    """What `run.json` says: settings, inputs, versions, device, lens, depth, stages, seconds, holes, memory, losses."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    device = jax.devices()[0]
    return {
        "config": run.groups,
        "inputs": run.inputs,
        "seed": run.config.seed,
        "versions": {
            "recapture_jax": recapture_jax.__version__,
            "python": platform.python_version(),
        }
        | {name: importlib.metadata.version(name) for name in packages},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": len(jax.devices()),
            "processes": jax.process_count(),
        },
        "size": list(run.clip.size),
        "fps": float(run.clip.fps),
        "source_frames": run.shown.tolist(),
        "lens": run.camera.said,
        "intrinsics": np.asarray(run.clip.intrinsics).round(3).tolist(),
        "depth": run.depth_report,
        "pivot_depth": anchor.trajectory.pivot_depth,
        "stages": run.stages,
        "seconds": run.watch.seconds,
        "hole_share": anchor_stage.hole_shares(anchor),
        "memory": run.plan_of_memory.report(),
        "tuning": run.records,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
