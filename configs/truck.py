"""The camera moves right by 0.12 of the pivot depth: what is near moves left faster.

    python -m recapture_jax.main --config=configs/truck.py --config.video.path=CLIP.mp4

Variants, after a colon: `small` (the shipped prior; the default), `smoke` (a few steps, to see that all works),
`svd` and `svd_xt` (converted weights: --config.model.path=FOLDER).
"""

from recapture_jax.config import default_config


def get_config(variant: str | None = None):
    config = default_config(variant)
    config.camera.moves = "truck right 0.12 ease-in-out"
    return config
