"""The network against the layer table of the original, and its kernels against float64."""

import functools
import itertools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jax_mnist.nn import cnn as model
from jax_mnist.nn import xla
from jax_mnist.nn.affine import BatchNorm, GhostNorm
from jax_mnist.nn.kernels import CPU, GPU, PLAIN, PORTABLE, for_backend

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
    network = model.CNN(kernels=PLAIN)
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


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.usefixtures("quickly_compiled")
def test_the_network_is_the_one_that_is_written_out(train):
    with jax.enable_x64(True):
        given, images = jax.tree.map(np.float64, (variables(), IMAGES))
        apply = functools.partial(model.CNN(kernels=PLAIN).apply, mutable=["batch_stats"])
        found, _ = jax.jit(apply, static_argnames="train")(given, images, train=train)
        expected = jax.jit(plain, static_argnames="train")(given, images, train=train)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_initial_kernels_are_uniform_as_pytorchs():
    key = jax.random.key(3)
    kernel = np.asarray(model.conv_init(key, (3, 3, 14, 1600), jnp.float32))
    bound = 1 / np.sqrt(3 * 3 * 14)
    assert np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.01)  # a uniform's
    np.testing.assert_allclose(np.quantile(kernel, 0.75), bound / 2, rtol=0.02)


# ---- Every kind of kernels against float64 -------------------------------------------------------


def results(network, train, given, images, weights, dropout):
    """Logits, running statistics, and gradients of parameters and images."""

    def loss(params, images):
        logits, updated = network.apply(
            given | {"params": params}, images, train, dropout, mutable=["batch_stats"]
        )
        return (logits * weights).sum(), (logits, updated)

    gradients, found = jax.grad(loss, (0, 1), has_aux=True)(given["params"], images)
    return *found, *gradients


def relative_error(found, expected):
    """The largest difference in a tree, relative to its largest entry."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), found, expected)
    return max(jax.tree.leaves(differences)) / largest


# Relative to a number: 64 roundings. XLA before JAX 0.10 adds thousands of numbers one by one if it
# compiles quickly.
NOISE = 2.0**-18 if jax.__version_info__ >= (0, 10) else 2.0**-14


def check_kinds(norm, layers, train, images, classes, kinds, dropout=None):
    """Float32 is as near to float64 as float64 is to itself with noise in all that is given."""
    network = model.CNN(norm=norm, layers=layers, kernels=PLAIN)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), images, train=True))
    run = xla.jit(results, static_argnums=(0, 1))
    for seed in itertools.count():
        rng = np.random.default_rng(seed)

        def draw(leaf, rng=rng):
            """Kernels of both signs; scales, biases and running statistics that are positive.

            Had a bias ten times its scale, the fast variance after it would lose two digits.
            """
            return np.float32(rng.uniform(-0.9 if leaf.ndim > 1 else 0.5, 0.9, leaf.shape))

        def noisy(leaf, rng=rng):
            return leaf * (1 + NOISE * rng.uniform(-1, 1, leaf.shape))

        weights = rng.normal(size=(len(images), classes)).astype(np.float32)
        given = jax.tree.map(draw, shapes), images, weights
        with jax.enable_x64(True):
            wide = jax.tree.map(np.float64, given)
            expected, near = (
                jax.device_get(run(network, train, *arguments, dropout))
                for arguments in (wide, jax.tree.map(noisy, wide))
            )
        limit = relative_error(near, expected)
        if limit < 1e-3:  # else a ReLU or a max-pool is near a tie, and sends gradients elsewhere
            break
    for kind in kinds:
        found = jax.device_get(run(network.clone(kernels=kind), train, *given, dropout))
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found))
        chex.assert_trees_all_equal_shapes(found, expected)
        error = relative_error(found, expected)
        assert error <= limit, (kind, error, limit)


SMALL = (
    model.Layer(3, 3, model.RELU_NORM),
    model.Layer(1, 4, (*model.NORM_RELU, "max-pool 2x2")),
    model.Layer(3, 3, (*model.RELU_NORM, "average-pool 4x4")),
    model.Layer(1, 2, ()),
)
ODD = (  # each operation where the network has none
    model.Layer(2, 3, ("max-pool 2x2", "norm", "ReLU", "ReLU")),
    model.Layer(1, 4, ("norm", "max-pool 2x2")),
    model.Layer(2, 3, ("ReLU", "ReLU", "norm")),
    model.Layer(1, 3, ("norm", "ReLU", "average-pool 4x4", "ReLU")),
    model.Layer(1, 2, ("norm",)),
)


def flax_norm(*, batch_axis, **arguments):
    return nn.BatchNorm(**arguments)  # which has no affine map to hand on


def group_norm(*, use_running_average, axis, batch_axis, name):
    return nn.GroupNorm(None, 1, name=name)


@pytest.mark.parametrize(
    ("norm", "layers", "train", "dropout"),
    [
        (BatchNorm, SMALL, True, False),
        (BatchNorm, SMALL, False, True),
        (functools.partial(GhostNorm, ghost_batch_size=4), SMALL, True, True),  # of 4, or 3
        (functools.partial(GhostNorm, ghost_batch_size=6, use_bias=False), ODD, True, False),
        (flax_norm, SMALL, True, True),
        (group_norm, ODD, True, False),
    ],
)
@pytest.mark.usefixtures("quickly_compiled")
def test_every_kind_of_kernels_computes_what_float64_does(norm, layers, train, dropout):
    size = (11, 10) if layers is SMALL else (15, 14)
    images = np.random.default_rng(0).normal(size=(17, *size, 1)).astype(np.float32)
    if dropout:
        dropout = model.Dropout(jax.random.split(jax.random.key(2), len(images)), np.float32(0.4))
    check_kinds(norm, layers, train, images, 2, kinds()[1:], dropout or None)


@pytest.mark.usefixtures("quickly_compiled")
def test_the_default_kernels_train_the_network_as_float64_does():
    norm = functools.partial(GhostNorm, ghost_batch_size=2)
    check_kinds(norm, model.LAYERS, True, IMAGES[:3], 10, [for_backend()])


def kinds():
    own = for_backend()
    return [PLAIN, GPU] + [CPU] * (own is CPU)


@pytest.mark.parametrize(
    "norm",
    [
        lambda use_running_average, axis, batch_axis, name: nn.GroupNorm(None, 2, name=name),
        lambda use_running_average, axis, batch_axis, name: nn.InstanceNorm(name=name),
    ],
)
def test_norms_without_modes_have_the_same_parameters(norm):
    network = model.CNN(norm=norm, kernels=PLAIN)
    logits, found = jax.eval_shape(
        lambda: network.init_with_output(jax.random.key(0), IMAGES, train=True)
    )
    chex.assert_shape(logits, (5, 10))
    assert model.parameter_count(found["params"]) == 8546


def test_a_misspelt_operation_of_a_layer_is_an_error():
    layers = (model.Layer(3, 10, ("ReLU",)), model.Layer(3, 10, ("norm", "Relu")))
    with pytest.raises(ValueError, match="layer 2 has an unknown operation: 'Relu'"):
        jax.eval_shape(lambda: model.CNN(layers=layers).init(jax.random.key(0), IMAGES, train=True))


@pytest.mark.usefixtures("quickly_compiled")
def test_dropout_multiplies_the_channels_before_the_last_layer():
    """Which is linear."""
    dropout = model.Dropout(jax.random.split(jax.random.key(2), 5), 0.4)
    layers = (model.Layer(3, 6, ("ReLU", "average-pool 4x4")), model.Layer(1, 10, ()))
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)
    given = model.CNN(layers=layers).init(jax.random.key(0), images, train=True)
    hidden = jax.lax.conv_general_dilated(
        images, given["params"]["conv1"]["kernel"], (1, 1), "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    factors = np.asarray(dropout.factors(6))
    assert {*np.round(factors.ravel(), 4)} == {0.0, np.float32(1.6667)}
    hidden = np.maximum(hidden, 0).mean((1, 2)) * factors
    expected = hidden @ given["params"]["conv2"]["kernel"][0, 0]
    for kernels in kinds():
        network = model.CNN(kernels=kernels, layers=layers)
        apply = jax.jit(functools.partial(network.apply, train=True))
        np.testing.assert_allclose(apply(given, images, dropout=dropout), expected, atol=1e-5)


def test_channels_are_dropped_as_often_as_the_rate_says():
    keys = jax.random.split(jax.random.key(0), 2000)
    factors = np.asarray(model.Dropout(keys, 0.3).factors(6))
    np.testing.assert_allclose((factors == 0).mean(0), 0.3, atol=0.05)
    np.testing.assert_allclose(factors.mean(), 1, atol=0.02)


def test_the_default_kernels_are_the_backends():
    expected = {"cpu": CPU if CPU in kinds() else PORTABLE, "gpu": GPU}
    assert for_backend() is expected.get(jax.default_backend(), PLAIN)
    x = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    lowered = jax.jit(functools.partial(model.CNN().apply, train=False)).lower(variables(), x)
    assert ("convolution" in lowered.as_text()) == (for_backend() is PLAIN)


def test_images_of_other_types_are_convolved_by_xla():
    for dtype in (jnp.float64, jnp.bfloat16):
        assert for_backend(dtype) is (GPU if jax.default_backend() == "gpu" else PLAIN)
    given, x = jax.tree.map(jnp.bfloat16, (variables(), IMAGES))
    logits = jax.eval_shape(functools.partial(model.CNN().apply, train=False), given, x)
    assert logits.dtype == jnp.bfloat16 or logits.dtype == jnp.float32


def test_the_layer_table_is_the_originals():
    first, *rows, last = model.layer_table(model.CNN()).splitlines()
    assert first.split() == ["layer", "output", "parameters", "then"]
    assert last == "Parameters: 8,546"
    for row, (size, _, features, conv, norm) in zip(rows, ORIGINAL, strict=True):
        _, _, kernel, shape, count, *then = row.split()
        assert (kernel, shape.split("x")[2]) == (f"{size}x{size}", str(features))
        assert int(count.replace(",", "")) == conv
        assert (f"BatchNorm ({norm})" in row) == bool(then)
    assert "24x24x10         160  BatchNorm (20), ReLU, max-pool 2x2" in rows[2]
