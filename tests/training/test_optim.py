"""The optimiser against NumPy and hand-computed schedules."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rounding import Rounded, assert_close

from jax_mnist import config
from jax_mnist.training import optim

PARAMS = {"w": np.array([[2.0, -3.0], [0.0, 0.5]], np.float32), "b": np.array([-1.0], np.float32)}
GRADS = {"w": np.array([[0.1, 0.2], [0.3, -0.4]], np.float32), "b": np.array([0.5], np.float32)}


def torch_sgd(params, grads, steps, lr, l1, l2, momentum, nesterov):
    """torch.optim.SGD as its documentation states it, with L1 added to the loss."""
    params = {k: Rounded(p) for k, p in params.items()}
    velocity = None
    for _ in range(steps):
        g = {k: grads[k] + l1 * np.sign(p.value) + l2 * p for k, p in params.items()}
        velocity = g if velocity is None else {k: momentum * velocity[k] + g[k] for k in g}
        direction = {k: g[k] + momentum * velocity[k] for k in g} if nesterov else velocity
        params = {k: p - lr * direction[k] for k, p in params.items()}
    return params


@pytest.mark.parametrize(("l1", "l2"), [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torchs_sgd_with_both_penalties(l1, l2, nesterov):
    @jax.jit
    def steps(params, grads, l1, l2):
        optimizer = optim.sgd(0.1, l1, l2, momentum=0.8, nesterov=nesterov)
        state = optimizer.init(params)
        for _ in range(4):
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params

    expected = torch_sgd(PARAMS, GRADS, 4, 0.1, l1, l2, 0.8, nesterov)
    assert_close(steps(PARAMS, GRADS, l1, l2), expected)


@pytest.mark.parametrize("mask", [None, {"w": True, "b": False}, lambda p: {"w": True, "b": False}])
def test_l1_decay_is_the_gradient_of_the_penalty_where_it_applies(mask):
    transform = optim.add_l1_decay(0.25, mask)
    updates, _ = transform.update(GRADS, transform.init(PARAMS), PARAMS)
    expected = {
        "w": GRADS["w"] + [[0.25, -0.25], [0.0, 0.25]],  # a zero weight is left alone
        "b": GRADS["b"] - (0.25 if mask is None else 0.0),
    }
    chex.assert_trees_all_close(updates, expected)


def test_l1_decay_with_a_schedule():
    transform = optim.add_l1_decay(lambda step: 0.1 * step)
    state = transform.init(PARAMS)
    for step in range(3):
        updates, state = transform.update(GRADS, state, PARAMS)
        np.testing.assert_allclose(updates["b"], [0.5 - 0.1 * step], rtol=1e-6)


def test_l1_decay_keeps_the_dtype_of_the_updates():
    grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.bfloat16), GRADS)
    transform = optim.add_l1_decay(jnp.float32(0.25))
    updates, _ = transform.update(grads, transform.init(PARAMS), PARAMS)
    assert {u.dtype for u in updates.values()} == {jnp.dtype(jnp.bfloat16)}


def test_l1_decay_needs_the_parameters():
    transform = optim.add_l1_decay(0.25)
    with pytest.raises(ValueError, match="needs the parameters"):
        transform.update(GRADS, transform.init(PARAMS))


SCHEDULES = {
    "constant": {0: 0.2, 500: 0.2, 1000: 0.2},
    "step": {0: 0.2, 499: 0.2, 501: 0.02, 749: 0.02, 751: 0.002, 1000: 0.002},
    "cosine": {0: 0.2, 500: 0.1, 250: 0.1 * (1 + np.sqrt(0.5)), 1000: 0.0},
    "one_cycle": {0: 0.2 / 25, 150: 0.104, 300: 0.2, 650: 0.1000004, 1000: 0.2 / 250_000},
}


@pytest.mark.parametrize("name", config.SCHEDULES)
@pytest.mark.usefixtures("in_float64")
def test_schedules_by_hand(name):
    schedule = jax.jit(lambda step, peak: optim.make_schedule(name, peak, 1000)(step))
    for step, value in SCHEDULES[name].items():
        np.testing.assert_allclose(schedule(step, 0.2), value, rtol=1e-4, atol=1e-8)


def test_unknown_schedule():
    with pytest.raises(ValueError, match="unknown schedule 'linear'"):
        optim.make_schedule("linear", 0.1, 10)
