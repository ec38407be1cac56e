"""The network against the layer table of the original and against plain convolutions."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from jax import lax

from jax_mnist.nn import cnn as model
from jax_mnist.nn.ghost_batch_norm import GhostBatchNorm

IMAGES = np.random.default_rng(0).normal(size=(5, 28, 28, 1)).astype(np.float32)

# Kernel size, input and output channels, parameters of the convolution and of the norm after it.
ORIGINAL = [
    (3, 1, 10, 90, 20), (3, 10, 16, 1440, 32), (1, 16, 10, 160, 20), (3, 10, 10, 900, 20),
    (1, 10, 32, 320, 64), (1, 32, 10, 320, 20), (3, 10, 10, 900, 20), (1, 10, 32, 320, 64),
    (1, 32, 10, 320, 20), (3, 10, 14, 1260, 28), (3, 14, 16, 2016, 32), (1, 16, 10, 160, 0),
]  # fmt: skip


@functools.cache
def variables():
    """Parameters and running statistics that are all different from their initial values."""
    init = jax.jit(functools.partial(model.CNN().init, train=False))(jax.random.key(0), IMAGES)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: np.asarray(a) + rng.uniform(0, 0.2, a.shape), init)


def plain(variables, x, train):
    """The network written out, with XLA's own convolution everywhere."""
    params, stats = variables["params"], variables["batch_stats"]

    def norm(x, n):
        mean, var = stats[f"norm{n}"]["mean"], stats[f"norm{n}"]["var"]
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        p = params[f"norm{n}"]
        return (x - mean) / jnp.sqrt(var + 1e-5) * p["scale"] + p["bias"]

    for n in range(1, 13):
        kernel = params[f"conv{n}"]["kernel"]
        x = lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        if n in (3, 5, 8):
            x = jnp.maximum(norm(x, n), 0)
        elif n < 12:
            x = norm(jnp.maximum(x, 0), n)
        if n == 3:
            x = x.reshape(len(x), 12, 2, 12, 2, 10).max((2, 4))
        if n == 11:
            x = x.mean((1, 2), keepdims=True)
    return x[:, 0, 0]


def test_parameters_are_those_of_the_original():
    params = variables()["params"]
    for n, (size, fan_in, features, conv, norm) in enumerate(ORIGINAL, start=1):
        kernel = params[f"conv{n}"]["kernel"]
        assert kernel.shape == (size, size, fan_in, features)
        assert kernel.size == conv
        assert sum(a.size for a in jax.tree.leaves(params.get(f"norm{n}", {}))) == norm
    assert model.parameter_count(params) == 8546


class OutputTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(False, True)
    def test_inference_is_the_plain_network(self, batch_last):
        network = model.CNN(batch_last=batch_last)
        logits = self.variant(functools.partial(network.apply, train=False))(variables(), IMAGES)
        chex.assert_shape(logits, (5, 10))
        chex.assert_trees_all_close(logits, plain(variables(), IMAGES, False), rtol=1e-4)

    @chex.variants(with_jit=True)
    @parameterized.parameters(False, True)
    def test_training_is_the_plain_network_with_its_gradients(self, batch_last):
        network = model.CNN(batch_last=batch_last)
        weights = np.random.default_rng(2).normal(size=(5, 10))

        def ours(params):
            v = variables() | {"params": params}
            logits, _ = network.apply(v, IMAGES, train=True, mutable=["batch_stats"])
            return (logits * weights).sum()

        def theirs(params):
            return (plain(variables() | {"params": params}, IMAGES, True) * weights).sum()

        params = variables()["params"]
        got = self.variant(jax.value_and_grad(ours))(params)
        expected = jax.jit(jax.value_and_grad(theirs))(params)
        chex.assert_trees_all_close(got, expected, rtol=1e-3, atol=2e-3)


def test_initial_kernels_are_uniform_as_pytorchs():
    key = jax.random.key(3)
    kernel = np.asarray(model.conv_init(key, (3, 3, 14, 1600), jnp.float32))
    bound = 1 / np.sqrt(3 * 3 * 14)
    assert np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.01)  # a uniform's
    np.testing.assert_allclose(np.quantile(kernel, 0.75), bound / 2, rtol=0.02)


@pytest.mark.parametrize(
    "norm",
    [
        functools.partial(nn.BatchNorm, momentum=0.9),
        functools.partial(GhostBatchNorm, ghost_batch_size=2),
        nn.LayerNorm,
    ],
)
def test_any_norm_and_either_order_of_axes(norm):
    """One network, whatever the order of its axes: outputs and running statistics."""
    first, last = (model.CNN(norm=norm, batch_last=b) for b in (False, True))
    found = jax.jit(functools.partial(first.init, train=False))(jax.random.key(0), IMAGES)
    assert model.parameter_count(found["params"]) == 8546

    def trained(network):
        apply = functools.partial(network.apply, train=True, mutable=["batch_stats"])
        return jax.jit(apply)(found, IMAGES)

    (logits, stats), expected = trained(last), trained(first)
    chex.assert_shape(logits, (5, 10))
    chex.assert_trees_all_close((logits, stats), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "norm",
    [
        functools.partial(GhostBatchNorm, ghost_batch_size=2),
        nn.LayerNorm,
        functools.partial(nn.GroupNorm, num_groups=None, group_size=2),
        nn.InstanceNorm,
    ],
)
def test_any_norm_constructor(norm):
    network = model.CNN(norm=norm)
    logits, found = jax.eval_shape(
        lambda: network.init_with_output(jax.random.key(0), IMAGES, train=True)
    )
    chex.assert_shape(logits, (5, 10))
    assert model.parameter_count(found["params"]) == 8546


def test_the_default_order_of_axes_is_the_backends():
    x = jax.eval_shape(lambda: jnp.zeros((1, 28, 28, 1)))
    lowered = jax.jit(functools.partial(model.CNN().apply, train=False)).lower(variables(), x)
    assert ("convolution" in lowered.as_text()) == (jax.default_backend() != "cpu")


def test_layer_table_is_the_originals():
    table = model.layer_table(model.CNN())
    rows = table.splitlines()
    assert rows[-1] == "Parameters: 8,546"
    for row, (size, _, _, conv, norm) in zip(rows[1:-1], ORIGINAL, strict=True):
        assert f"conv {size}x{size}" in row
        assert f" {conv:,}" in row
        assert (f"BatchNorm ({norm})" in row) == (norm > 0)
    shapes = [row.split()[3] for row in rows[1:-1]]
    assert shapes == [
        "26x26x10", "24x24x16", "24x24x10", "10x10x10", "10x10x32", "10x10x10",
        "8x8x10", "8x8x32", "8x8x10", "6x6x14", "4x4x16", "1x1x10",
    ]  # fmt: skip
    for number, row in enumerate(rows[1:-1], start=1):
        if number < 12:
            norm_first = row.index("BatchNorm") < row.index("ReLU")
            assert norm_first == (number in (3, 5, 8))
    assert "max-pool" in rows[3] and "average-pool" in rows[11]
