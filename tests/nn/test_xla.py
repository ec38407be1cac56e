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


def test_compiled_functions_have_full_precision_and_the_options_of_their_backend():
    product = xla.Compiled(lambda a, b: a @ b, donate_argnums=0)
    x = jnp.ones((4, 4))
    assert "precision = [HIGHEST, HIGHEST]" in product.lower(x, x).as_text()
    assert (product(x, jnp.eye(4)) == 1).all() and x.is_deleted()
    for options in xla.COMPILER_OPTIONS.values():  # XLA knows all of them on every backend
        with_options = jax.jit(lambda a: a + 1, compiler_options=options)
        assert with_options(1) == 2
