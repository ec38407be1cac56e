"""Pooling against flax.linen's, in both orders of the axes."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from jax_mnist.nn.pooling import max_pool


@pytest.mark.parametrize(
    ("order", "axes"), [((0, 1, 2, 3), (1, 2)), ((1, 3, 2, 0), (0, 2))], ids=["first", "last"]
)
def test_max_pool_with_ties(order, axes):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, (50, 8, 6, 3)).astype(np.float32)
    expected, expected_pull = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
    y, pull = jax.vjp(lambda x: max_pool(x, axes), x.transpose(order))
    np.testing.assert_array_equal(y, expected.transpose(order))
    dy = rng.normal(size=expected.shape).astype(np.float32)
    (dx,), (expected_dx,) = pull(dy.transpose(order)), expected_pull(dy)
    np.testing.assert_array_equal(dx, expected_dx.transpose(order))
