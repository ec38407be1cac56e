"""Separate computations are compiled by themselves."""

import jax
import jax.numpy as jnp

from jax_mnist.nn import xla


def test_separate_is_computed_once_for_all_that_read_it():
    def function(x):
        return sum(x * i + x[::-1] for i in range(1, 20))

    def program(function):
        def program(x):
            y = function(x)
            return jnp.sin(y) + y, (y * y).sum()

        return jax.jit(program).lower(jnp.ones(1000)).compile().as_text()

    assert "call(" in program(xla.separate(function))
    assert "call(" not in program(jax.jit(function))


def test_functions_within_a_separate_one_are_merged():
    def function(x):
        return jnp.pad(jnp.where(x > 0, x, 0) * 2, 1)

    within = jax.jit(xla.separate(lambda x: function(x) + 1))
    text = within.lower(jnp.ones(1000)).compile().as_text()
    assert text.count("call(") == (jax.default_backend() == "cpu")
