"""The regularisers of a batch against NumPy and SciPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from rounding import Rounded, assert_close
from tiny import Tiny, config, wide

from jax_mnist import config as config_lib
from jax_mnist.training import objective, recipe, regularizers
from jax_mnist.training.parts import Overrides
from jax_mnist.training.state import init

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 10, 7).astype(np.int32)
IMAGES = RNG.normal(size=(7, 28, 28, 1)).astype(np.float32)
PARTNERS = [1, 0, 3, 2, 5, 4, 6]
BATCH = objective.Batch(IMAGES.astype(float), LABELS)

mixup = jax.jit(jax.vmap(regularizers.mixup, in_axes=(0, None, None)))

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_mixed_images_are_weighted_means_of_pairs():
    """Of which an odd last one is its own partner; the share is the larger part of a beta draw."""
    mixed, shares = mixup(jax.random.split(jax.random.key(0), 2000), IMAGES, 0.4)
    share = float(shares[5])
    expected = Rounded(IMAGES) * share + Rounded(IMAGES[PARTNERS]) * (1 - share)
    assert_close(mixed[5], expected)
    beta = scipy.stats.beta(0.4, 0.4)
    actual = scipy.stats.kstest(shares, lambda s: beta.cdf(s) - beta.cdf(1 - s))
    assert actual.pvalue > 0.01


def test_a_gradient_of_zero_has_no_sharpest_point():
    params = {"a": np.array([1.0, 2.0]), "b": np.array(3.0)}
    still = jax.tree.map(np.zeros_like, params)
    chex.assert_trees_all_equal(regularizers.sam_perturbation(params, still, 0.5), params)


def small_step(**strengths):
    """A recipe, its values and a state, in float64 where JAX may use it."""
    model = Tiny(norm="batch", ghost_batch_size=1, axis_name=None)
    of_run = config(ema=0.0, **strengths)
    of_step = recipe.make_recipe(of_run, 300, overrides=Overrides(model))
    hyper = config_lib.split(of_run)[1]
    return of_step, hyper, wide(init(of_step, hyper, 0))


@functools.partial(jax.jit, static_argnums=0)
def result(*args):
    return objective.gradient(*args)


def plain(of_step, state, params, images=BATCH.images, labels=LABELS):
    """The loss and its gradient by the model's own operations, and NumPy's arithmetic on top."""

    @jax.value_and_grad
    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, _ = of_step.model.apply(variables, images, train=True, mutable=["batch_stats"])
        return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()

    return jax.jit(loss)(params)


@pytest.mark.usefixtures("in_float64")
def test_sharpness_aware_minimisation_takes_the_gradient_at_the_sharpest_point_nearby():
    of_step, hyper, state = small_step(sam=0.3)
    actual = result(of_step, hyper, state, BATCH)
    value, first = plain(of_step, state, state.params)
    length = np.sqrt(sum((np.asarray(leaf) ** 2).sum() for leaf in jax.tree.leaves(first)))
    nearby = jax.tree.map(lambda p, g: p + 0.3 * g / length, state.params, first)
    chex.assert_trees_all_close(actual.gradient, plain(of_step, state, nearby)[1], rtol=1e-9)
    # The loss and the running statistics are those of the weights themselves.
    np.testing.assert_allclose(actual.loss, value, rtol=1e-9)
    of_plain, plain_hyper, _ = small_step()
    at_weights = result(of_plain, plain_hyper, state, BATCH)
    chex.assert_trees_all_close(actual.batch_stats, at_weights.batch_stats, rtol=1e-9)
    kernels = [tree["Dense_0"]["kernel"] for tree in (actual.gradient, first)]
    assert not np.allclose(*kernels, atol=1e-3)


@pytest.mark.usefixtures("in_float64")
def test_smoothed_labels_enter_the_gradient():
    of_step, hyper, state = small_step(label_smoothing=0.3)
    actual = result(of_step, hyper, state, BATCH)
    targets = 0.7 * np.eye(10)[LABELS] + 0.03
    loss = -(targets * scipy.special.log_softmax(actual.logits, 1)).sum(1).mean()
    np.testing.assert_allclose(actual.loss, loss, rtol=1e-9)
    # The gradient to the last bias is the mean of probabilities less targets.
    expected = (scipy.special.softmax(actual.logits, 1) - targets).mean(0)
    np.testing.assert_allclose(actual.gradient["Dense_0"]["bias"], expected, rtol=1e-9)


@pytest.mark.usefixtures("in_float64")
def test_the_loss_of_a_mixed_batch_is_the_mean_of_both_labels_losses():
    of_step, hyper, state = small_step(mixup=0.5)
    actual = result(of_step, hyper, state, BATCH)
    key = jax.random.fold_in(jax.random.fold_in(state.key, 2), 0)
    images, share = regularizers.mixup(jax.random.split(key, 3)[2], BATCH.images, 0.5)
    own, others = (
        plain(of_step, state, state.params, images, labels) for labels in (LABELS, LABELS[PARTNERS])
    )
    expected = jax.tree.map(lambda a, b: share * a + (1 - share) * b, own, others)
    chex.assert_trees_all_close((actual.loss, actual.gradient), expected, rtol=1e-9)
