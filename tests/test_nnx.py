"""The NNX layer: an `nnx.BatchNorm`, and the Linen layer's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jax_mnist import normalization
from jax_mnist.nnx import GhostBatchNorm

X = 2 + 3 * jax.random.normal(jax.random.key(0), (12, 5, 6))


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"use_scale": False}, {"axis": 1, "use_bias": False}])
def test_a_ghost_batch_of_the_whole_batch_is_batch_norm(options):
    features = X.shape[options.get("axis", -1)]
    layers = [
        kind(features, momentum=0.8, rngs=nnx.Rngs(0), **options, **own)
        for kind, own in ((nnx.BatchNorm, {}), (GhostBatchNorm, {"ghost_batch_size": 12}))
    ]
    assert isinstance(layers[1], nnx.BatchNorm)
    first, second = ({k: v.shape for k, v in nnx.state(layer).items()} for layer in layers)
    assert first == second

    def loss(layer, x):
        y = layer(x)
        return (jnp.sin(y) * y).sum(), y

    results = [nnx.value_and_grad(loss, has_aux=True)(layer, X) for layer in layers]
    jax.tree.map(close, *(jax.tree.leaves(result) for result in results))
    jax.tree.map(close, *(jax.tree.leaves(nnx.state(layer)) for layer in layers))
    for layer in layers:
        layer.eval()
    close(*(layer(X[:1]) for layer in layers))


@pytest.mark.parametrize("stats_update", ["mean", "sequential"])
def test_it_computes_what_the_linen_layer_does(stats_update):
    options = {"ghost_batch_size": 5, "stats_update": stats_update, "momentum": 0.7}
    layer = GhostBatchNorm(6, rngs=nnx.Rngs(0), **options)
    linen = normalization.GhostBatchNorm(**options)
    variables = linen.init(jax.random.key(0), X, use_running_average=True)
    mask = jnp.arange(12)[:, None, None] < 11
    expected, updates = linen.apply(
        variables, X, use_running_average=False, mask=mask, mutable=["batch_stats"]
    )
    close(layer(X, mask=mask), expected)
    for name, value in updates["batch_stats"].items():
        close(getattr(layer, name)[...], value)
    before = layer.mean[...]
    close(
        layer(X, use_running_average=True),
        linen.apply(variables | updates, X, use_running_average=True),
    )
    np.testing.assert_array_equal(layer.mean[...], before)


class Network(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 16, rngs=rngs)
        self.norm = GhostBatchNorm(16, ghost_batch_size=8, momentum=0.9, rngs=rngs)
        self.last = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


def test_a_model_with_it_trains():
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(1), (50, 4))
    labels = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)

    @nnx.jit
    def step(model, optimizer):
        def loss_of(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()

        loss, grads = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, grads)
        return loss

    model.train()
    losses = [float(step(model, optimizer)) for _ in range(40)]
    assert losses[-1] < 0.3 * losses[0]
    assert np.abs(model.norm.mean[...]).max() > 0.01

    model.eval()
    assert (model(x).argmax(-1) == labels).mean() > 0.8
    close(model(x)[:1], model(x[:1]))


def test_what_it_cannot_do_is_refused():
    with pytest.raises(TypeError, match="promote_dtype"):
        GhostBatchNorm(6, promote_dtype=None, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="rngs"):
        GhostBatchNorm(6)
    with pytest.raises(ValueError, match="ghost_batch_size must be at least 1"):
        GhostBatchNorm(6, ghost_batch_size=0, rngs=nnx.Rngs(0))(X)
