"""The training step: what it computes, and that it compiles once."""

import functools
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Tiny, wide

from jax_mnist import config as config_lib
from jax_mnist.data.datasets import Dataset
from jax_mnist.training import augment, step
from jax_mnist.training.evaluation import predict
from jax_mnist.training.parts import Overrides
from jax_mnist.training.recipe import make_recipe
from jax_mnist.training.state import inference_variables, init, init_replicas
from jax_mnist.training.step import epoch_order, train_steps

BATCH, EXAMPLES = 8, 44
STEPS = EXAMPLES // BATCH
CONFIG = config_lib.base()
CONFIG.update(epochs=24, batch_size=BATCH, learning_rate=0.05, l1=1e-4, l2=1e-3, ema=0.6)
HYPER = config_lib.split(CONFIG)[1]
TINY = Overrides(model=Tiny(norm="ghost", ghost_batch_size=3, axis_name=None))
RECIPE = make_recipe(CONFIG, EXAMPLES, overrides=TINY)

train_step = jax.jit(step.train_step, static_argnums=0)


def without_key(after):
    state, metrics = after
    return state.replace(key=jax.random.key_data(state.key)), metrics


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (EXAMPLES, 28, 28, 1)).astype(np.uint8)
    return jax.device_put(Dataset(images, rng.integers(0, 10, EXAMPLES).astype(np.int32)))


def test_an_epoch_visits_each_example_at_most_once_and_drops_the_remainder():
    left_out = []
    for epoch in range(2):
        order = np.asarray(epoch_order(jax.random.key(0), epoch, EXAMPLES, BATCH))
        assert order.shape == (STEPS, BATCH) and len(np.unique(order)) == STEPS * BATCH
        left_out.append(set(range(EXAMPLES)) - set(order.ravel()))
    assert len(left_out[0]) == len(left_out[1]) == EXAMPLES - STEPS * BATCH == 4
    assert left_out[0] != left_out[1]


@pytest.mark.usefixtures("in_float64", "quickly_compiled")
def test_the_step_is_what_its_definition_says(data):
    """Loss, gradient with both penalties, Nesterov momentum, statistics, average: by hand."""
    state = wide(init(RECIPE, HYPER, 3))
    index = np.arange(BATCH, dtype=np.int32)
    after, metrics = train_step(RECIPE, HYPER, state, data, index)

    step_key = jax.random.fold_in(jax.random.split(state.key)[1], 0)
    keys = jax.random.split(step_key, BATCH)
    augmented = jax.jit(jax.vmap(augment.augment, (0, 0, None)))
    images = augmented(keys, data.images[:BATCH], HYPER)
    one_hot = np.eye(10)[np.asarray(data.labels[:BATCH])]

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_of(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = RECIPE.model.apply(variables, images, train=True, mutable=["batch_stats"])
        exp = jnp.exp(logits)
        probabilities = exp / exp.sum(1, keepdims=True)
        return -jnp.log((probabilities * one_hot).sum(1)).mean(), (logits, updated)

    (loss, (logits, updated)), grads = loss_of(state.params)
    rate = 0.05 / 25
    expected = jax.tree.map(
        lambda p, g: p - rate * 1.9 * (g + 1e-4 * jnp.sign(p) + 1e-3 * p), state.params, grads
    )
    chex.assert_trees_all_close(after.params, expected, rtol=1e-9)
    chex.assert_trees_all_close(after.batch_stats, updated["batch_stats"], rtol=1e-9)
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-9)
    np.testing.assert_allclose(metrics.learning_rate, rate, rtol=1e-7)  # always float32
    right = np.asarray(logits).argmax(1) == np.asarray(data.labels[:BATCH])
    np.testing.assert_allclose(metrics.accuracy, right.mean(), rtol=1e-6)
    assert after.step == 1


@pytest.mark.usefixtures("in_float64", "quickly_compiled")
def test_an_epoch_is_its_steps_and_the_average_is_a_bias_corrected_mean_of_their_weights(data):
    hyper = {name: np.array([value]) for name, value in HYPER.items()}
    state = wide(init_replicas(RECIPE, [HYPER], [0])[1])
    first = functools.partial(jax.tree.map, operator.itemgetter(0))
    looped, order = jax.tree.map(jnp.copy, first(state)), np.arange(3 * BATCH, dtype=np.int32)
    metrics, weights = [], []
    for index in order.reshape(3, BATCH):
        looped, of_step = train_step(RECIPE, HYPER, looped, data, index)
        metrics.append(of_step)
        weights.append(looped.params)
    scanned = first(train_steps(RECIPE, hyper, state, data, order.reshape(1, 3, BATCH)))
    expected = looped, jax.tree.map(lambda *steps: np.stack(steps), *metrics)
    chex.assert_trees_all_close(without_key(scanned), without_key(expected), rtol=1e-9)

    factors = np.array([0.6**2, 0.6, 1]) / (0.6**2 + 0.6 + 1)
    mean = jax.tree.map(lambda *w: sum(map(operator.mul, factors, w)), *weights)
    chex.assert_trees_all_close(inference_variables(HYPER, looped)["params"], mean, rtol=1e-9)
    plain = inference_variables(HYPER, looped.replace(average=None))
    chex.assert_trees_all_equal(plain["params"], looped.params)


@pytest.mark.usefixtures("quickly_compiled")
def test_one_compilation_serves_every_step_and_every_strength(data):
    def run(recipe=RECIPE, **strengths):
        hyper, state = init_replicas(recipe, [HYPER | strengths], [0])
        for epoch in range(2):
            order = np.asarray(epoch_order(state.key[0], epoch, EXAMPLES, BATCH))
            state, metrics = train_steps(recipe, hyper, state, data, order[None])
        return metrics.loss

    before = train_steps._cache_size()
    losses = run(), run(l1=0.0, l2=0.5, learning_rate=0.01, momentum=0.5, ema=0.1)
    assert not np.array_equal(*losses)
    run(RECIPE._replace(model=RECIPE.model.clone()))
    assert train_steps._cache_size() == before + 1


def test_arrays_of_the_wrong_shape_or_type_are_refused_when_traced(data):
    hyper, state = init_replicas(RECIPE, [HYPER], [0])
    order = np.zeros((1, 2, BATCH), np.int32)
    flat = data._replace(images=data.images[..., 0])
    floats = data._replace(images=data.images / 255)
    for wrong in (
        lambda: train_steps(RECIPE, hyper, state, flat, order),
        lambda: train_steps(RECIPE, hyper, state, floats, order),
        lambda: train_steps(RECIPE, hyper, state, data, order[0]),
        lambda: train_steps(RECIPE, hyper, state, data, np.zeros((2, 2, BATCH), np.int32)),
        lambda: train_step(RECIPE, HYPER, init(RECIPE, HYPER, 0), data, order),
        lambda: predict(RECIPE.model, inference_variables(hyper, state), flat.images),
    ):
        with pytest.raises(AssertionError):
            wrong()
