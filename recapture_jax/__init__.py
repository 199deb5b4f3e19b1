"""recapture_jax: re-films a clip along a camera path of your own (ReCapture, arXiv 2411.05003, in JAX)."""

__version__ = "0.1.0"
