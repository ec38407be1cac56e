"""The training step: what it computes, that it repeats, that it compiles once."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rounding import Rounded, assert_close, cross_entropy, log_softmax
from tiny import Tiny, rounded_logits, wide

from jax_mnist import config as config_lib
from jax_mnist.data.datasets import Dataset
from jax_mnist.training import augment
from jax_mnist.training.evaluation import evaluate, predict
from jax_mnist.training.parts import Overrides
from jax_mnist.training.recipe import make_recipe
from jax_mnist.training.state import inference_variables, init, init_replicas
from jax_mnist.training.step import epoch_order, train_step, train_steps

BATCH, EXAMPLES = 8, 44
STEPS = EXAMPLES // BATCH
LONG = 24  # epochs
CONFIG = config_lib.base()
CONFIG.update(epochs=LONG, batch_size=BATCH, learning_rate=0.05, l1=1e-4, l2=1e-3, ema=0.6)
HYPER = config_lib.split(CONFIG)[1]
TINY = Overrides(model=Tiny(norm="ghost", ghost_batch_size=3, axis_name=None))
RECIPE = make_recipe(CONFIG, EXAMPLES, overrides=TINY)


@pytest.fixture(scope="module")
def data():
    """Blots in one of ten places: the label is the place."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, EXAMPLES).astype(np.int32)
    images = rng.integers(0, 40, (EXAMPLES, 28, 28, 1))
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 5)
        image[12 * row + 2 : 12 * row + 10, 5 * column + 1 : 5 * column + 6] += 200
    return jax.device_put(Dataset(images.astype(np.uint8), labels))


def run(data, recipe=RECIPE, hyper=HYPER, seed=0, epochs=2):
    hyper, state = init_replicas(recipe, [hyper], [seed])
    losses = []
    for epoch in range(epochs):
        order = epoch_order(state.key[0], epoch, EXAMPLES, BATCH)
        state, metrics = train_steps(recipe, hyper, state, data, np.asarray(order)[None])
        losses.append(metrics.loss[0])
    return jax.tree.map(lambda leaf: leaf[0], state), np.concatenate(losses)


def test_an_epoch_visits_each_example_at_most_once_and_drops_the_remainder():
    key = jax.random.key(0)
    first = np.asarray(epoch_order(key, 0, EXAMPLES, BATCH))
    second = np.asarray(epoch_order(key, 1, EXAMPLES, BATCH))
    for order in (first, second):
        assert order.shape == (STEPS, BATCH)
        assert len(np.unique(order)) == STEPS * BATCH
        assert order.min() >= 0 and order.max() < EXAMPLES
    left_out = [set(range(EXAMPLES)) - set(order.ravel()) for order in (first, second)]
    assert len(left_out[0]) == EXAMPLES - STEPS * BATCH == 4
    assert left_out[0] != left_out[1]
    exact = np.asarray(epoch_order(key, 0, 40, BATCH))
    assert sorted(exact.ravel()) == list(range(40))


@pytest.mark.usefixtures("in_float64", "quickly_compiled")
def test_the_step_is_what_its_definition_says(data):
    """Loss, gradient with both penalties, Nesterov momentum, statistics, average: by hand."""
    state = wide(init(RECIPE, HYPER, 3))
    index = np.arange(BATCH, dtype=np.int32)
    after, metrics = train_step(RECIPE, HYPER, state, data, index)

    step_key = jax.random.fold_in(jax.random.split(state.key)[1], 0)
    keys = jax.random.split(step_key, BATCH)
    images = jax.vmap(augment.augment, (0, 0, None))(keys, data.images[:BATCH], HYPER)
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


def test_the_average_is_a_bias_corrected_mean_of_the_weights(data):
    state, weights = init(RECIPE, HYPER, 0), []
    for index in np.arange(3 * BATCH).reshape(3, BATCH):
        state, _ = train_step(RECIPE, HYPER, state, data, index)
        weights.append(state.params)
    factors = np.array([0.6**2, 0.6, 1])
    factors /= factors.sum()
    expected = jax.tree.map(
        lambda *w: sum(f * Rounded(a) for f, a in zip(factors, w, strict=True)), *weights
    )
    averaged = inference_variables(HYPER, state)
    assert_close(averaged["params"], expected)
    plain = inference_variables(HYPER, state.replace(average=None))
    chex.assert_trees_all_equal(plain["params"], state.params)


def test_training_repeats_and_depends_on_the_seed(data):
    (first, losses), (second, again) = run(data), run(data)
    chex.assert_trees_all_equal(first.params, second.params)
    np.testing.assert_array_equal(losses, again)
    assert not np.array_equal(losses, run(data, seed=1)[1])


@pytest.mark.usefixtures("in_float64", "quickly_compiled")
def test_an_epoch_is_its_steps_one_by_one(data):
    hyper, state = wide(init_replicas(RECIPE, [HYPER], [0]))
    of_one, looped = jax.tree.map(lambda leaf: jnp.copy(leaf[0]), (hyper, state))
    order = np.int32(epoch_order(looped.key, 0, EXAMPLES, BATCH))[:2]
    metrics = []
    for index in order:
        looped, step_metrics = train_step(RECIPE, of_one, looped, data, index)
        metrics.append(step_metrics)
    scanned, scan_metrics = jax.tree.map(
        lambda leaf: leaf[0], train_steps(RECIPE, hyper, state, data, order[None])
    )
    metrics = jax.tree.map(lambda *steps: np.stack(steps), *metrics)
    chex.assert_trees_all_close(metrics, scan_metrics, rtol=1e-9)
    chex.assert_trees_all_close(looped.params, scanned.params, rtol=1e-9)
    assert scanned.step == looped.step == 2


def test_one_compilation_serves_every_step_and_every_strength(data):
    run(data, epochs=1)
    compiled = train_steps._cache_size()
    run(data, epochs=2)
    run(
        data, hyper=HYPER | {"l1": 0.0, "l2": 0.5, "learning_rate": 0.01, "momentum": 0.5}, epochs=1
    )
    same = RECIPE._replace(model=RECIPE.model.clone())
    run(data, recipe=same, epochs=1)
    assert train_steps._cache_size() == compiled


def test_training_learns(data):
    gentle = {"learning_rate": 0.1, "l1": 0.0, "l2": 0.0, "rotation": 0.0}
    _, losses = run(data, hyper=HYPER | gentle, epochs=LONG)
    assert losses[:STEPS].mean() > 2
    assert losses[-STEPS:].mean() < 0.5


def test_evaluation_by_hand_over_a_short_last_batch(data):
    state, _ = run(data, epochs=1)
    variables = inference_variables(HYPER, state)
    result = evaluate(RECIPE.model, variables, data, batch_size=10)
    labels = np.asarray(data.labels)
    logits = rounded_logits(jax.device_get(variables), data.images)
    assert_close(result.probabilities, log_softmax(logits).exp())
    assert_close(result.loss, cross_entropy(logits, labels))
    assert result.accuracy == (logits.value.argmax(1) == labels).mean()
    assert result.probabilities.dtype == np.float32


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
