"""Command line of the experiment; every stage resumes where it stopped.

python -m experiments.pretrain_small --workdir=/tmp/prior --stage=render
python -m experiments.pretrain_small --workdir=/tmp/prior --stage=vae --minutes=25
python -m experiments.pretrain_small --workdir=/tmp/prior --stage=unet --minutes=80
python -m experiments.pretrain_small --workdir=/tmp/prior --stage=export --dst=recapture_jax/assets/prior_small
python -m experiments.pretrain_small --workdir=/tmp/prior --stage=evaluate
"""

import pathlib

import jax
import numpy as np
from absl import app, flags, logging

from experiments.pretrain_small import autoencoder, data, diffusion, export

_STAGES = ("render", "vae", "unet", "export", "evaluate")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where clips, states and curves live.", required=True
)
_STAGE = flags.DEFINE_enum("stage", None, _STAGES, "What to do.", required=True)
_CLIPS = flags.DEFINE_integer("clips", 3072, "Training clips to render.")
_HELD_OUT = flags.DEFINE_integer("held_out", 64, "Validation and test clips to render.")
_VAE_STEPS = flags.DEFINE_integer("vae_steps", 3000, "Length of the autoencoder's schedule.")
_UNET_STEPS = flags.DEFINE_integer("unet_steps", 7000, "Length of the U-Net's schedule.")
_BATCH = flags.DEFINE_integer("batch", 1, "Clips per U-Net step.")
_MINUTES = flags.DEFINE_float("minutes", 1e9, "Stop after so many minutes, with a snapshot.")
_START = flags.DEFINE_string(
    "start", None, "unet: folder of a model to go on from, its autoencoder included."
)
_DST = flags.DEFINE_string("dst", None, "export: folder of the finished model.")


def main(argv) -> None:
    del argv
    logging.set_verbosity(logging.INFO)
    workdir = pathlib.Path(_WORKDIR.value).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(workdir / "xla_cache"))
    if _STAGE.value == "render":
        for split, clips in (
            ("validation", _HELD_OUT.value),
            ("test", _HELD_OUT.value),
            ("train", _CLIPS.value),
        ):
            data.render_split(workdir, split, clips)
    elif _STAGE.value == "vae":
        frames, _ = data.load_split(workdir, "train")
        params = autoencoder.train(workdir, frames, _VAE_STEPS.value, _MINUTES.value)
        export.save_params(workdir / "vae.npz", params)
        held_out, _ = data.load_split(workdir, "validation")
        logging.info("validation PSNR %.2f dB", autoencoder.psnr(params, held_out[:16]))
    elif _STAGE.value == "unet":
        frames, motion = data.load_split(workdir, "train")
        start = export.read_model(pathlib.Path(_START.value)) if _START.value else {}
        if start:
            export.save_params(workdir / "vae.npz", start.pop("vae"))
        vae = export.load_params(workdir / "vae.npz")
        cache = diffusion.cache_latents(workdir, vae, frames, motion)
        scale = float(start.pop("scaling_factor", 1.0 / np.std(cache["video"].astype(np.float32))))
        logging.info("%d clips, latent scale %.4f", len(frames), scale)
        params = diffusion.train(
            workdir, cache, scale, start, _UNET_STEPS.value, _MINUTES.value, _BATCH.value
        )
        export.save_params(workdir / "unet.npz", params | {"scaling_factor": np.float32(scale)})
    elif _STAGE.value == "export":
        export.write_model(workdir, pathlib.Path(_DST.value))
    else:
        from experiments.pretrain_small import evaluate

        evaluate.report(workdir, _DST.value)


if __name__ == "__main__":
    app.run(main)
