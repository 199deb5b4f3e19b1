"""Strict settings for every test: rank promotion raises, float32 matmuls are exact."""

import atexit
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Several tests and their child processes compile the same programs: once is enough.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="recapture_jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
if _worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # A folder for each: entries are written in place, and a half-written one warns who reads it.
    _caches = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_caches / _worker)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


_MAPS = pathlib.Path("/proc/self/maps")


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    """Every compiled program maps memory, and Linux allows a process 65530 maps: XLA crashes beyond."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 25_000:
        from programs import forget

        forget()


@pytest.fixture(scope="session")
def tiny_params():
    from tiny import random_params

    return random_params()


@pytest.fixture(scope="session")
def tiny_model(tiny_params):
    from tiny import video_model

    return video_model(tiny_params)
