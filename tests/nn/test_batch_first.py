"""The batch-first operations against XLA's own convolution and pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mnist.nn import batch_first
from jax_mnist.nn.deferred import Affine, compute
from jax_mnist.nn.operations import BATCH_FIRST, PLAIN

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def check_convolution(size, channels, features, kernel, mapped=None):
    """`mapped` examples have a map of their own, or share one, or there is none."""
    rng = np.random.default_rng(0)
    x, k, dy, *affine = (
        rng.normal(size=shape).astype(np.float32)
        for shape in (
            (4, size, size, channels),
            (kernel, kernel, channels, features),
            (4, size - kernel + 1, size - kernel + 1, features),
            *([(mapped, 1, 1, channels)] * 2 if mapped else []),
        )
    )

    def results(convolve):
        @jax.jit
        def apply(x, k, *affine):
            y, pull = jax.vjp(convolve, x, k, *affine)
            return y, *pull(dy)

        return apply(x, k, *affine)

    got = results(lambda x, k, *a: batch_first.convolve(Affine(x, *a) if a else x, k))
    expected = results(lambda x, k, *a: PLAIN.convolve(compute(Affine(x, *a)) if a else x, k))
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1, np.abs(other).max()))


@pytest.mark.parametrize(
    ("size", "channels", "features", "kernel"),
    [(28, 1, 10, 3), (26, 10, 16, 3), (24, 16, 10, 1), (12, 10, 10, 3), (6, 14, 16, 3)],
)
def test_the_networks_convolutions(size, channels, features, kernel):
    check_convolution(size, channels, features, kernel)


@pytest.mark.parametrize("mapped", [1, 4], ids=["shared", "per example"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_absorbs_an_affine_map(kernel, mapped):
    check_convolution(8, 5, 6, kernel, mapped)


def test_the_mean_of_an_affine_map_is_the_map_of_the_mean():
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(4, 5, 5, 3)), *rng.normal(size=(2, 4, 1, 1, 3))
    x = Affine(*map(jnp.asarray, parts))
    pool = BATCH_FIRST.average_pool
    np.testing.assert_allclose(compute(pool(x)), pool(compute(x)), atol=1e-6)
