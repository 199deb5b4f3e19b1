"""The camera does not move: the result should give the clip back.

    python -m recapture_jax.main --config=configs/static.py --config.video.path=CLIP.mp4

Variants, after a colon: `small` (the shipped prior; the default), `smoke` (a few steps, to see that all works),
`svd` and `svd_xt` (converted weights: --config.model.path=FOLDER).
"""

from recapture_jax.config import default_config


def get_config(variant: str | None = None):
    config = default_config(variant)
    config.camera.moves = "static"
    return config
