"""nnx.GhostBatchNorm against flax.nnx.BatchNorm, the linen layer, and both in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from norm_reference import Reference
from rounding import assert_close

from jax_mnist.nn import ghost_batch_norm as normalization
from jax_mnist.nn.nnx import GhostBatchNorm

SHAPE = (12, 4, 3, 6)
X = np.random.default_rng(0).normal(2.0, 3.0, SHAPE).astype(np.float32)


def with_values(norm):
    """The layer with parameters and statistics that are not 0 and 1."""
    rng = np.random.default_rng(1)
    state = nnx.state(norm)
    new = [jnp.asarray(rng.uniform(0.5, 2, a.shape), a.dtype) for a in jax.tree.leaves(state)]
    nnx.update(norm, jax.tree.unflatten(jax.tree.structure(state), new))
    return norm


def trained_once(norm, x, mask=None):
    """Output, gradients to the parameters and the input, and the state after a training step."""

    @nnx.jit
    def step(norm, x):
        def loss(norm, x):
            y = norm(x, mask=mask)
            return (y * jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)).sum(), y

        return nnx.grad(loss, argnums=(0, 1), has_aux=True)(norm, x)

    gradients, y = step(norm, x)
    return y, jax.tree.leaves(gradients), nnx.to_pure_dict(nnx.state(norm))


def expected_once(norm, x, mask):
    """What `trained_once` gives, in float64."""
    state = nnx.to_pure_dict(nnx.state(norm))
    order = [a for a in range(4) if a != norm.axis % 4] + [norm.axis % 4]
    x, mask, cotangent = (
        None if a is None else a.transpose(order)
        for a in (x, mask, jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape))
    )
    reference = Reference(
        {"params": {"scale": np.ones(6), "bias": np.zeros(6)} | state, "batch_stats": state},
        x, 12, norm.momentum, norm.epsilon, mask, norm.use_fast_variance,
    )  # fmt: skip
    dx, scale, bias = reference.gradients(cotangent)
    y, dx = (
        a.rearranged(lambda a: a.transpose(np.argsort(order))) for a in (reference.output(), dx)
    )
    gradients = [g for key, g in (("bias", bias), ("scale", scale)) if key in state]
    mean, var = reference.updated("mean")
    return y, [*gradients, dx], state | {"mean": mean, "var": var}


@pytest.mark.parametrize(
    ("arguments", "masked"),
    [
        ({}, False),
        ({"momentum": 0.7, "epsilon": 1e-3, "use_fast_variance": False}, True),
        ({"use_bias": False}, False),
        ({"use_scale": False, "axis": 1}, True),
        ({"dtype": jnp.bfloat16}, True),
        ({"param_dtype": jnp.bfloat16}, False),
    ],
)
def test_a_ghost_batch_of_the_whole_batch_is_nnx_batch_norm(arguments, masked):
    x = jnp.asarray(X.transpose(0, 3, 1, 2) if "axis" in arguments else X)
    mask = np.random.default_rng(3).random(x.shape) < 0.7 if masked else None
    theirs = with_values(nnx.BatchNorm(6, **arguments, rngs=nnx.Rngs(0)))
    ours = with_values(GhostBatchNorm(6, ghost_batch_size=12, **arguments, rngs=nnx.Rngs(0)))
    expected = expected_once(ours, x, mask)
    results = trained_once(ours, x, mask), trained_once(theirs, x, mask)
    chex.assert_trees_all_equal_shapes_and_dtypes(*results)
    if "dtype" in arguments:  # each term of a gradient is rounded to three digits
        chex.assert_trees_all_close(*results, rtol=2e-2, atol=2e-2)
    else:
        for found in results:
            assert_close(found, expected)
    ours.eval()
    theirs.eval()
    nnx.update(ours, nnx.state(theirs, nnx.BatchStat))  # which were close, but rounded differently
    chex.assert_trees_all_equal(ours(x[:1]), theirs(x[:1]))


@pytest.mark.parametrize(("rule", "size"), [("mean", 4), ("pooled", 5), ("sequential", 4)])
def test_several_ghost_batches_are_those_of_the_linen_layer(rule, size):
    norm = with_values(
        GhostBatchNorm(6, ghost_batch_size=size, stats_update=rule, momentum=0.8, rngs=nnx.Rngs(0))
    )
    state = nnx.to_pure_dict(nnx.state(norm))
    linen = normalization.GhostBatchNorm(
        use_running_average=False, ghost_batch_size=size, stats_update=rule, momentum=0.8
    )
    variables = {
        "params": {key: state[key] for key in ("scale", "bias")},
        "batch_stats": {key: state[key] for key in ("mean", "var")},
    }
    expected, updates = linen.apply(variables, X, mutable=["batch_stats"])
    chex.assert_trees_all_equal(norm(X), expected)
    after = nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat))
    chex.assert_trees_all_equal(after, updates["batch_stats"])
    reference = Reference(variables, X, size, momentum=0.8)
    mean, var = reference.updated(rule)
    assert_close((expected, after), (reference.output(), {"mean": mean, "var": var}))


class Network(nnx.Module):
    def __init__(self, norm, rngs):
        self.first = nnx.Linear(20, 32, rngs=rngs)
        self.norm = norm(32, momentum=0.9, rngs=rngs)
        self.last = nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


def test_a_model_trains_and_then_takes_any_batch_size():
    model = Network(lambda *a, **k: GhostBatchNorm(*a, ghost_batch_size=8, **k), nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(0), (30, 20))  # ghost batches of 8, 8, 8 and 6
    labels = (x[:, 0] > 0).astype(jnp.int32)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    losses = [step(model, optimizer) for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]

    model.eval()
    before = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    together = model(x)
    assert (together.argmax(-1) == labels).mean() > 0.9
    with jax.enable_x64(True):
        infer, wide = nnx.jit(lambda model, x: model(x)), np.float64(x)
        expected = infer(model, wide)
        for batch in (1, 7):
            np.testing.assert_allclose(infer(model, wide[:batch]), expected[:batch], rtol=1e-9)
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), before)
    model.train()
    assert not np.allclose(model(x), together)


def test_the_state_of_one_layer_loads_into_the_other():
    trained = Network(nnx.BatchNorm, nnx.Rngs(0))
    trained(jax.random.normal(jax.random.key(0), (30, 20)))
    ours = Network(GhostBatchNorm, nnx.Rngs(1))
    nnx.update(ours, nnx.state(trained))
    ours.eval()
    trained.eval()
    x = jax.random.normal(jax.random.key(1), (3, 20))
    chex.assert_trees_all_equal(ours(x), trained(x))


def test_without_a_mode_and_with_a_bad_size_it_refuses():
    with pytest.raises(ValueError, match="No `use_running_average` argument"):
        GhostBatchNorm(6, use_running_average=None, rngs=nnx.Rngs(0))(X)
    with pytest.raises(ValueError, match="integer of at least 1, got 0"):
        GhostBatchNorm(6, ghost_batch_size=0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="got 'median'"):
        GhostBatchNorm(6, stats_update="median", rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="given as ghost_batch_size="):
        GhostBatchNorm(6, rngs=nnx.Rngs(0))(X, 16)
    with pytest.raises(TypeError, match="got 16;"):
        GhostBatchNorm(6, use_running_average=16, rngs=nnx.Rngs(0))
