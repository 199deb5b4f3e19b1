"""The camera turns clockwise about the lens axis: the content turns the other way.

    python -m recapture_jax.main --config=configs/roll.py --config.video.path=CLIP.mp4

Variants, after a colon: `small` (the shipped prior; the default), `smoke` (a few steps, to see that all works),
`svd` and `svd_xt` (converted weights: --config.model.path=FOLDER).
"""

from recapture_jax.config import default_config


def get_config(variant: str | None = None):
    config = default_config(variant)
    config.camera.moves = "roll cw 10 ease-in-out"
    return config
