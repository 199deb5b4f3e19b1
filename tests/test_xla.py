"""Compiler options of the device, and programs that ask for them late."""

import jax
import numpy as np
import pytest

from recapture_jax import xla


@pytest.fixture
def forgotten():
    """Nothing of the device is remembered, before and after."""
    xla.compiler_options.cache_clear()
    yield
    xla.compiler_options.cache_clear()


def test_options_are_accepted_by_this_jax(forgotten):
    compiled = xla.jit(lambda x: x * 2).lower(np.float32(1)).compile()
    assert compiled(np.float32(3)) == 6


def test_an_unknown_option_is_left_out(forgotten, monkeypatch):
    monkeypatch.setattr(xla, "_CPU_OPTIONS", {"xla_no_such_option": ""})
    assert xla.compiler_options() is None
    assert xla.jit(lambda x: x * 2)(3.0) == 6


def test_other_devices_get_no_cpu_options(forgotten, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert xla.compiler_options() is None


def test_a_program_looks_for_the_device_at_its_first_call(monkeypatch):
    asked = []
    monkeypatch.setattr(xla, "compiler_options", lambda: asked.append(1))

    @xla.jit(static_argnames="power")
    def raised(x, power):
        """Docstring."""
        return x**power

    assert not asked and raised.__doc__ == "Docstring."
    assert raised(3.0, power=2) == 9 and raised(2.0, power=3) == 8
    assert len(asked) == 1


def test_under_a_transformation_it_is_plain():
    """JAX takes compiler options for whole programs only."""
    double = xla.jit(lambda x: 2 * x)
    numbers = np.arange(3.0, dtype=np.float32)
    want = 2 * numbers
    np.testing.assert_array_equal(jax.lax.map(double, numbers), want)
    np.testing.assert_array_equal(jax.jit(double)(numbers), want)
    np.testing.assert_array_equal(jax.vmap(double)(numbers), want)
    assert jax.grad(double)(1.0) == 2
