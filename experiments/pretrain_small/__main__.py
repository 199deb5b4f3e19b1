"""Command line of the experiment; every stage resumes where it stopped.

python -m experiments.pretrain_small --workdir=/tmp/prior --stage=render
python -m experiments.pretrain_small --workdir=/tmp/prior --stage=photos --photos=FOLDER
python -m experiments.pretrain_small --workdir=/tmp/prior --stage=vae --minutes=25
python -m experiments.pretrain_small --workdir=/tmp/prior --stage=unet --minutes=80
python -m experiments.pretrain_small --workdir=/tmp/prior --stage=export --dst=recapture_jax/assets/prior_small
python -m experiments.pretrain_small --workdir=/tmp/prior --stage=evaluate
"""

import pathlib

import jax
import numpy as np
from absl import app, flags, logging

from experiments.pretrain_small import autoencoder, data, diffusion, export, photos
from experiments.pretrain_small.rebase import rebase
from recapture_jax.scenes.photos import load as load_textures
from recapture_jax.weights import load_model

_STAGES = ("render", "photos", "vae", "latents", "unet", "export", "evaluate")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where clips, states and curves live.", required=True
)
_STAGE = flags.DEFINE_enum("stage", None, _STAGES, "What to do.", required=True)
_CLIPS = flags.DEFINE_integer("clips", 3072, "Training clips to render.")
_GRADUAL = flags.DEFINE_integer(
    "gradual", 0, "render: training clips filmed by the protocol of experiments.kubric4d."
)
_HELD_OUT = flags.DEFINE_integer("held_out", 64, "Validation and test clips to render.")
_TEXTURES = flags.DEFINE_string(
    "textures", None, "render: folder of photographs for some surfaces; none: procedural ones only."
)
_PHOTOS = flags.DEFINE_string("photos", None, "photos: folder with images/ and videos/.")
_PHOTO_CLIPS = flags.DEFINE_integer("photo_clips", 512, "Clips to make of photos and videos.")
_SPLIT = flags.DEFINE_enum(
    "split", "train", data.TRAINING_SPLITS, "latents: clips to encode ahead of the stage unet."
)
_VAE_STEPS = flags.DEFINE_integer("vae_steps", 3000, "Length of the decoder's schedule; 0: none.")
_VAE_RATE = flags.DEFINE_float("vae_rate", 1e-5, "Learning rate of the decoder.")
_UNET_STEPS = flags.DEFINE_integer("unet_steps", 7000, "Length of the U-Net's schedule.")
_UNET_RATE = flags.DEFINE_float("unet_rate", 8e-4, "Highest learning rate of the U-Net.")
_BATCH = flags.DEFINE_integer("batch", 1, "Clips per U-Net step.")
_WINDOW = flags.DEFINE_integer(
    "window", 1, "unet: each step sees one part in `window` of each side."
)
_IMAGES = flags.DEFINE_integer(
    "images", 0, "unet: frames of a step's clip that are learnt as images, too."
)
_MINUTES = flags.DEFINE_float("minutes", 1e9, "Stop after so many minutes, with a snapshot.")
_START = flags.DEFINE_string(
    "start",
    None,
    "vae, unet: folder of a model to go on from; unet: whatever its latents. export: its U-Net, if none was trained.",
)
_DST = flags.DEFINE_string("dst", None, "export: folder of the finished model.")


def main(argv) -> None:
    del argv
    logging.set_verbosity(logging.INFO)
    workdir = pathlib.Path(_WORKDIR.value).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(workdir / "xla_cache"))
    if _STAGE.value == "render":
        textures = load_textures(pathlib.Path(_TEXTURES.value)) if _TEXTURES.value else None
        for split, clips in (
            ("validation", _HELD_OUT.value),
            ("test", _HELD_OUT.value),
            ("train", _CLIPS.value),
        ):
            data.render_split(workdir, split, clips, textures)
        data.render_gradual(workdir, _GRADUAL.value, textures)
    elif _STAGE.value == "photos":
        photos.write_clips(workdir, pathlib.Path(_PHOTOS.value or "."), _PHOTO_CLIPS.value)
    elif _STAGE.value == "vae":
        frames = data.load_training(workdir)
        path = workdir / "vae.npz"
        if path.exists():
            params = export.load_params(path)
        elif _START.value:
            params = load_model(pathlib.Path(_START.value)).params["vae"]
        else:
            params = autoencoder.start(frames)
        export.save_params(path, params)
        if _VAE_STEPS.value:
            length = {"steps": _VAE_STEPS.value, "minutes": _MINUTES.value}
            params = autoencoder.train(workdir, params, frames, rate=_VAE_RATE.value, **length)
            export.save_params(path, params)
        held_out, _ = data.load_split(workdir, "validation")
        logging.info(
            "validation PSNR %.2f dB", autoencoder.psnr(export.load_params(path), held_out[:16])
        )
    elif _STAGE.value == "latents":
        vae = export.load_params(workdir / "vae.npz")
        diffusion.cache_latents(workdir, vae, _SPLIT.value)
    elif _STAGE.value == "unet":
        vae = export.load_params(workdir / "vae.npz")
        cache = diffusion.load_latents(workdir, vae)
        scale = float(1.0 / np.std(cache["video"].astype(np.float32)))
        logging.info("%d clips, latent scale %.4f", len(cache["video"]), scale)
        start = {}
        if _START.value:
            model, frames = load_model(pathlib.Path(_START.value)), data.load_training(workdir)
            some = np.linspace(0, len(frames) - 1, 48).astype(int)
            start = rebase(model, frames[some], cache["video"][some], scale)
        params = diffusion.train(
            workdir,
            cache,
            scale,
            start,
            _UNET_STEPS.value,
            _MINUTES.value,
            _BATCH.value,
            _WINDOW.value,
            _IMAGES.value,
            _UNET_RATE.value,
        )
        export.save_params(workdir / "unet.npz", params | {"scaling_factor": np.float32(scale)})
    elif _STAGE.value == "export":
        start = pathlib.Path(_START.value) if _START.value else None
        export.write_model(workdir, pathlib.Path(_DST.value), start)
    else:
        from experiments.pretrain_small import evaluate

        evaluate.report(workdir, _DST.value)


if __name__ == "__main__":
    app.run(main)
