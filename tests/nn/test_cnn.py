"""The network against the layer table of the original and against plain convolutions."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jax_mnist.nn import cnn as model
from jax_mnist.nn.ghost_batch_norm import GhostBatchNorm
from jax_mnist.nn.operations import BATCH_FIRST, BATCH_LAST, PLAIN, fastest

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
    network = model.CNN(operations=PLAIN)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), IMAGES, train=False))
    rng = np.random.default_rng(1)

    def values(path, leaf):
        if path[-1].key == "kernel":
            return rng.uniform(-1, 1, leaf.shape) / np.sqrt(np.prod(leaf.shape[:3]))
        return rng.uniform(0, 0.2, leaf.shape) + (path[-1].key in ("scale", "var"))

    return jax.tree_util.tree_map_with_path(lambda *a: np.float32(values(*a)), shapes)


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


def results(forward):
    """Loss, logits of the inference and gradients; `forward` gives logits of both modes."""
    weights = np.random.default_rng(2).normal(size=(5, 10))

    def objective(params):
        logits, inference = forward(variables() | {"params": params})
        return (logits * weights).sum(), inference

    return jax.jit(jax.value_and_grad(objective, has_aux=True))(variables()["params"])


@pytest.fixture(scope="module")
def plain_results():
    return results(lambda v: (plain(v, IMAGES, True), plain(v, IMAGES, False)))


@pytest.mark.parametrize("operations", [BATCH_FIRST, BATCH_LAST], ids=["first", "last"])
def test_the_network_and_its_gradients_are_the_plain_ones(
    operations, plain_results, quickly_compiled
):
    network = model.CNN(operations=operations)

    def forward(v):
        logits, _ = network.apply(v, IMAGES, train=True, mutable=["batch_stats"])
        return logits, network.apply(v, IMAGES, train=False)

    (value, logits), gradients = results(forward)
    (expected_value, expected_logits), expected_gradients = plain_results
    chex.assert_shape(logits, (5, 10))
    chex.assert_trees_all_close(logits, expected_logits, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(
        (value, gradients), (expected_value, expected_gradients), rtol=1e-3, atol=2e-3
    )


def test_initial_kernels_are_uniform_as_pytorchs():
    key = jax.random.key(3)
    kernel = np.asarray(model.conv_init(key, (3, 3, 14, 1600), jnp.float32))
    bound = 1 / np.sqrt(3 * 3 * 14)
    assert np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.01)  # a uniform's
    np.testing.assert_allclose(np.quantile(kernel, 0.75), bound / 2, rtol=0.02)


# A small network, in which a norm precedes each operation that may follow one.
SMALL = (
    model.Layer(3, 3, model.RELU_NORM),
    model.Layer(1, 4, (*model.NORM_RELU, "max-pool 2x2")),
    model.Layer(3, 3, (*model.RELU_NORM, "average-pool 4x4")),
    model.Layer(1, 2, ()),
)


def flax_norm(*, batch_axis, **arguments):
    return nn.BatchNorm(**arguments)  # which has no affine map to hand on


@pytest.mark.parametrize(
    ("norm", "train"),
    [
        (model.BatchNorm, True),
        (functools.partial(GhostBatchNorm, ghost_batch_size=4), True),  # of 4, 3 and 3 examples
        (functools.partial(GhostBatchNorm, use_bias=False), False),
        (flax_norm, True),
    ],
)
@pytest.mark.usefixtures("quickly_compiled")
def test_the_operations_are_the_plain_ones_with_any_norm(norm, train):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(10, 10, 10, 1)).astype(np.float32)
    weights = rng.normal(size=(10, 2)).astype(np.float32)
    operations = (PLAIN, BATCH_FIRST, BATCH_LAST)
    networks = [model.CNN(norm=norm, operations=o, layers=SMALL) for o in operations]
    given = jax.eval_shape(lambda: networks[0].init(jax.random.key(0), images, train=True))
    given = jax.tree.map(lambda a: np.float32(rng.uniform(0.1, 0.9, a.shape)), given)
    params, others = given.pop("params"), given

    def results(network):
        def loss(params):
            variables = {"params": params, **others}
            logits, updated = network.apply(variables, images, train, mutable=["batch_stats"])
            return (logits * weights).sum(), (logits, updated)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    expected, *found = map(results, networks)
    chex.assert_shape(expected[0][1][0], (10, 2))
    assert len(expected[0][1][1]["batch_stats"]) == 3
    for got in found:
        chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "norm",
    [
        lambda use_running_average, axis, batch_axis, name: nn.GroupNorm(None, 2, name=name),
        lambda use_running_average, axis, batch_axis, name: nn.InstanceNorm(name=name),
    ],
)
def test_norms_without_modes_have_the_same_parameters(norm):
    network = model.CNN(norm=norm, operations=PLAIN)
    logits, found = jax.eval_shape(
        lambda: network.init_with_output(jax.random.key(0), IMAGES, train=True)
    )
    chex.assert_shape(logits, (5, 10))
    assert model.parameter_count(found["params"]) == 8546


def test_a_misspelt_operation_of_a_layer_is_an_error():
    layers = (model.Layer(3, 10, ("ReLU",)), model.Layer(3, 10, ("norm", "Relu")))
    with pytest.raises(ValueError, match="layer 2 has an unknown operation: 'Relu'"):
        jax.eval_shape(lambda: model.CNN(layers=layers).init(jax.random.key(0), IMAGES, train=True))


def test_the_width_multiplies_the_hidden_features():
    assert model.widened(1) == model.LAYERS
    assert [layer.features for layer in model.widened(3)] == [
        *(3 * layer.features for layer in model.LAYERS[:-1]), 10,
    ]  # fmt: skip


@pytest.mark.parametrize("operations", [PLAIN, BATCH_FIRST, BATCH_LAST])
@pytest.mark.parametrize(
    ("position", "then"),
    [
        ("last", (("ReLU", "average-pool 4x4"), ())),
        ("max-pool", (("max-pool 2x2",), ("average-pool 4x4",))),
    ],
)
@pytest.mark.usefixtures("quickly_compiled")
def test_dropout_multiplies_the_channels_that_the_position_says(operations, position, then):
    """Both layers are linear from there on."""
    dropout = model.Dropout(jax.random.split(jax.random.key(2), 5), 0.4)
    layers = (model.Layer(3, 6, then[0]), model.Layer(1, 10, then[1]))
    network = model.CNN(operations=operations, layers=layers, dropout_position=position)
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)
    given = network.init(jax.random.key(0), images, train=True)
    hidden = jax.lax.conv_general_dilated(
        images, given["params"]["conv1"]["kernel"], (1, 1), "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    if position == "last":
        hidden = np.maximum(hidden, 0).mean((1, 2))
    else:
        hidden = np.asarray(hidden).reshape(5, 3, 2, 3, 2, 6).max((2, 4)).mean((1, 2))
    factors = np.asarray(dropout.factors(6))
    assert {*np.round(factors.ravel(), 4)} == {0.0, np.float32(1.6667)}
    expected = (hidden * factors) @ given["params"]["conv2"]["kernel"][0, 0]
    found = jax.jit(functools.partial(network.apply, train=True))(given, images, dropout=dropout)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_channels_are_dropped_as_often_as_the_rate_says():
    keys = jax.random.split(jax.random.key(0), 2000)
    factors = np.asarray(model.Dropout(keys, 0.3).factors(6))
    np.testing.assert_allclose((factors == 0).mean(0), 0.3, atol=0.05)
    np.testing.assert_allclose(factors.mean(), 1, atol=0.02)


def test_the_default_operations_are_the_backends():
    of_backend = {"cpu": BATCH_LAST, "gpu": BATCH_FIRST}
    assert fastest() is of_backend.get(jax.default_backend(), PLAIN)
    x = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
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
