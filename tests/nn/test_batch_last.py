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

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def reference(x, kernel, affine, relu):
    """`lax`'s convolution of a batch-last array, after the affine map and before the ReLU."""
    if affine is not None:
        x = x * affine[0] + affine[1]
    y = lax.conv_general_dilated(
        x.transpose(FIRST), kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return nn.relu(y.transpose(LAST)) if relu else y.transpose(LAST)


def check_convolution(
    height, width, channels, features, rows, columns, batch, *, affine=None, relu=False, seed=0
):
    """`affine` is None, or the number of examples that have an affine map of their own."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    x = normal(height, channels, width, batch)
    kernel = normal(rows, columns, channels, features)
    dy = normal(height - rows + 1, features, width - columns + 1, batch)
    maps = affine and (normal(1, channels, 1, affine), normal(1, channels, 1, affine))

    def results(convolve):
        @jax.jit
        def apply(x, kernel, maps, dy):
            y, pull = jax.vjp(lambda *args: convolve(*args, relu), x, kernel, maps)
            return jax.tree.leaves((y, pull(dy)))

        return apply(x, kernel, maps, dy)

    expected = results(reference)
    for got, want in zip(results(batch_last.convolve), expected, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=1e-5 * max(1, np.abs(want).max()))


@pytest.mark.parametrize(
    ("size", "channels", "features", "kernel", "affine", "relu"),
    [
        (26, 10, 16, 3, 1, True),  # layer 2, with batch norm
        (12, 10, 10, 3, 8, True),  # layer 4, with ghost batch norm
        (10, 10, 32, 1, 1, False),  # layer 5
        (6, 14, 16, 3, None, False),
    ],
)
def test_the_networks_convolutions(size, channels, features, kernel, affine, relu):
    shape = (size, size, channels, features, kernel, kernel, 8)
    check_convolution(*shape, affine=affine, relu=relu)


def test_any_convolution(thorough):
    @settings(max_examples=20 if thorough else 4, deadline=None)
    @given(
        st.integers(1, 4), st.integers(1, 4), st.integers(0, 13), st.integers(0, 13),
        st.integers(1, 24), st.integers(1, 5), st.integers(1, 19), st.booleans(),
        st.sampled_from(("no", "shared", "own")),
    )  # fmt: skip
    def check(rows, columns, more_rows, more_columns, channels, features, batch, relu, map_kind):
        height, width = rows + more_rows, columns + more_columns
        affine = {"no": None, "shared": 1, "own": batch}[map_kind]
        shape = (height, width, channels, features, rows, columns, batch)
        check_convolution(*shape, affine=affine, relu=relu)

    check()
