"""The batch-last operations against XLA's own convolution and pooling."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jax_mnist.nn import batch_last

FIRST, LAST = (3, 0, 2, 1), (1, 3, 2, 0)  # orders of axes


def reference(x, kernel):
    """`lax`'s convolution of a batch-last array."""
    y = lax.conv_general_dilated(
        x.transpose(FIRST), kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y.transpose(LAST)


def check_convolution(height, width, channels, features, rows, columns, batch, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(height, channels, width, batch)).astype(np.float32)
    kernel = rng.normal(size=(rows, columns, channels, features)).astype(np.float32)
    dy = rng.normal(size=(height - rows + 1, features, width - columns + 1, batch))

    def results(convolve):
        @jax.jit
        def apply(x, kernel, dy):
            y, pull = jax.vjp(convolve, x, kernel)
            return y, *pull(dy)

        return apply(x, kernel, dy.astype(np.float32))

    expected = results(reference)
    for got, want in zip(results(batch_last.convolve), expected, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=1e-5 * max(1, np.abs(want).max()))


@pytest.mark.parametrize(
    ("size", "channels", "features", "kernel"), [(26, 10, 16, 3), (24, 16, 10, 1), (6, 14, 16, 3)]
)
def test_the_networks_convolutions(size, channels, features, kernel):
    check_convolution(size, size, channels, features, kernel, kernel, batch=8)


def test_any_convolution(thorough):
    @settings(max_examples=20 if thorough else 4, deadline=None)
    @given(
        st.integers(1, 4), st.integers(1, 4), st.integers(0, 13), st.integers(0, 13),
        st.integers(1, 24), st.integers(1, 5), st.integers(1, 19),
    )  # fmt: skip
    def check(rows, columns, more_rows, more_columns, channels, features, batch):
        height, width = rows + more_rows, columns + more_columns
        check_convolution(height, width, channels, features, rows, columns, batch)

    check()


def test_max_pool_with_ties():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, (8, 3, 6, 50)).astype(np.float32)

    def expected_pool(x):
        return nn.max_pool(x.transpose(FIRST), (2, 2), (2, 2)).transpose(LAST)

    y, pull = jax.vjp(batch_last.max_pool, x)
    expected, expected_pull = jax.vjp(expected_pool, x)
    np.testing.assert_array_equal(y, expected)
    dy = rng.normal(size=y.shape).astype(np.float32)
    np.testing.assert_array_equal(pull(dy)[0], expected_pull(dy)[0])
