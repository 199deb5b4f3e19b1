"""Weights of others, as ours: `python -m converters.svd`, `python -m converters.fastdepth`."""
