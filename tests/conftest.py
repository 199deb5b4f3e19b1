"""Strict settings for every test: rank promotion raises, float32 matmuls are exact."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def tiny_params():
    from tiny import random_params

    return random_params()


@pytest.fixture(scope="session")
def tiny_model(tiny_params):
    from tiny import video_model

    return video_model(tiny_params)
