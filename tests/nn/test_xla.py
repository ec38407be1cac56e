"""How programs are compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mnist.nn import xla


def test_compiled_functions_have_full_precision():
    product = xla.jit(lambda a, b: a @ b, donate_argnums=0)
    x = jnp.ones((4, 4))
    assert "precision = [HIGHEST, HIGHEST]" in product.lower(x, x).as_text()
    assert (product(x, jnp.eye(4)) == 1).all() and x.is_deleted()


def test_every_backend_knows_the_options_of_all():
    """XLA refuses an option that it does not know, whatever it compiles for."""
    options = xla.jit(lambda a: a + 1, compiler_options=xla.COMPILE_QUICKLY)
    assert options(1) == 2


def test_what_is_compiled_quickly_gives_the_same():
    def draw(key):
        return jax.random.uniform(key, (100,)) / 3

    quick = xla.jit(draw, compiler_options=xla.COMPILE_QUICKLY)
    np.testing.assert_array_equal(quick(jax.random.key(0)), xla.jit(draw)(jax.random.key(0)))


def test_no_processor_computes_with_instructions_of_its_own():
    """A reciprocal square root is a root and a division: estimates differ between vendors."""
    if jax.default_backend() != "cpu" or jax.__version_info__ < (0, 10):
        pytest.skip("an option for CPUs, which XLA lacks before JAX 0.10")
    x = np.linspace(0.1, 3, 1000, dtype=np.float32)
    np.testing.assert_array_equal(xla.jit(jax.lax.rsqrt)(x), np.float32(1) / np.sqrt(x))
