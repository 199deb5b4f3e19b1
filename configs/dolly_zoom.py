"""The camera moves in while the lens widens: the subject keeps its size, the background recedes.

    python -m recapture_jax.main --config=configs/dolly_zoom.py --config.video.path=CLIP.mp4

Variants, after a colon: `small` (the shipped prior; the default), `smoke` (a few steps, to see that all works),
`svd` and `svd_xt` (converted weights: --config.model.path=FOLDER).
"""

from recapture_jax.config import default_config


def get_config(variant: str | None = None):
    config = default_config(variant)
    config.camera.moves = "dolly_zoom in 0.25 ease-in-out"
    return config
