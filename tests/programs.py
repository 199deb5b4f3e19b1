"""Compiled programs of the test process."""

import gc

import jax

from recapture_jax.tuning import loop


def forget():
    """Lets them go, as a new process has none."""
    jax.clear_caches()
    loop._compile.cache_clear()
    gc.collect()
