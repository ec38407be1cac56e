"""nnx.GhostBatchNorm against flax.nnx.BatchNorm and the linen layer."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

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
    results = trained_once(ours, x, mask), trained_once(theirs, x, mask)
    chex.assert_trees_all_equal_shapes_and_dtypes(*results)
    near = 2e-2 if "dtype" in arguments else 1e-4  # bfloat16 has three digits
    chex.assert_trees_all_close(*results, rtol=near, atol=near)
    ours.eval()
    theirs.eval()
    nnx.update(ours, nnx.state(theirs, nnx.BatchStat))  # which were close, but rounded differently
    chex.assert_trees_all_equal(ours(x[:1]), theirs(x[:1]))


@pytest.mark.parametrize(("rule", "size"), [("mean", 4), ("pooled", 5), ("sequential", 4)])
def test_several_ghost_batches_are_those_of_the_linen_layer(rule, size):
    options = {"ghost_batch_size": size, "stats_update": rule, "momentum": 0.8}
    norm = with_values(GhostBatchNorm(6, **options, rngs=nnx.Rngs(0)))
    state = nnx.to_pure_dict(nnx.state(norm))
    variables = {
        "params": {key: state[key] for key in ("scale", "bias")},
        "batch_stats": {key: state[key] for key in ("mean", "var")},
    }
    linen = normalization.GhostBatchNorm(use_running_average=False, **options)
    expected, updates = linen.apply(variables, X, mutable=["batch_stats"])
    chex.assert_trees_all_equal(norm(X), expected)
    after = nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat))
    chex.assert_trees_all_equal(after, updates["batch_stats"])


def test_inference_takes_any_batch_size_and_changes_nothing():
    norm = with_values(GhostBatchNorm(6, ghost_batch_size=8, rngs=nnx.Rngs(0)))
    training = norm(X)  # ghost batches of 6
    norm.eval()
    before = nnx.to_pure_dict(nnx.state(norm))
    together = norm(X)
    chex.assert_trees_all_close(norm(X[:1]), together[:1], rtol=1e-6)
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(norm)), before)
    norm.train()
    assert not np.allclose(training, together)
    assert not np.allclose(norm(X), together)


def test_the_state_of_batch_norm_loads_into_the_layer():
    theirs, ours = (layer(6, rngs=nnx.Rngs(0)) for layer in (nnx.BatchNorm, GhostBatchNorm))
    theirs(X)
    nnx.update(ours, nnx.state(theirs))
    chex.assert_trees_all_equal(ours(X, True), theirs(X, True))


def test_without_a_mode_and_with_a_bad_size_it_refuses():
    with pytest.raises(ValueError, match="No `use_running_average` argument"):
        GhostBatchNorm(6, use_running_average=None, rngs=nnx.Rngs(0))(X)
    for bad, error, message in (
        ({"ghost_batch_size": 0}, ValueError, "integer of at least 1, got 0"),
        ({"stats_update": "median"}, ValueError, "got 'median'"),
        ({"use_running_average": 16}, TypeError, "got 16;"),
    ):
        with pytest.raises(error, match=message):
            GhostBatchNorm(6, **bad, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="given as ghost_batch_size="):
        GhostBatchNorm(6, rngs=nnx.Rngs(0))(X, 16)
