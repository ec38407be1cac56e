"""The regularisers of a batch against NumPy and SciPy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tiny
from rounding import Rounded, assert_close, log_softmax
from tiny import Tiny, config, wide

from jax_mnist import config as config_lib
from jax_mnist.config import ConfigError
from jax_mnist.runs import loop
from jax_mnist.runs.folder import Run
from jax_mnist.training import losses, objective, recipe, regularizers
from jax_mnist.training.mesh import make_mesh
from jax_mnist.training.parts import Overrides
from jax_mnist.training.state import init
from jax_mnist.training.step import train_steps

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (7, 10)).astype(np.float32)
LABELS = RNG.integers(0, 10, 7).astype(np.int32)
IMAGES = RNG.normal(size=(7, 28, 28, 1)).astype(np.float32)
BATCH = objective.Batch(IMAGES.astype(float), LABELS)

mixup = jax.jit(jax.vmap(regularizers.mixup, in_axes=(0, None, None)))

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothed_labels_are_the_labels_and_a_uniform_part(smoothing):
    targets = (1 - smoothing) * np.eye(10)[LABELS] + smoothing / 10
    expected = -(targets * log_softmax(Rounded(LOGITS))).sum(1).mean()
    assert_close(losses.smoothed_cross_entropy(LOGITS, LABELS, smoothing), expected)


def test_neighbours_are_partners_and_an_odd_last_one_is_its_own():
    assert regularizers.partners(7).tolist() == [1, 0, 3, 2, 5, 4, 6]
    assert regularizers.partners(2).tolist() == [1, 0]


def test_mixed_images_are_weighted_means_of_pairs():
    mixed, share = mixup(jax.random.split(jax.random.key(0), 2000), IMAGES, 0.4)
    mixed, share = mixed[5], share[5]
    share = float(share)
    assert 0.5 <= share < 1
    own, others = Rounded(IMAGES) * share, Rounded(IMAGES[[1, 0, 3, 2, 5, 4, 6]]) * (1 - share)
    assert_close(mixed, own + others)


def test_the_share_is_the_larger_part_of_a_beta_variable():
    keys = jax.random.split(jax.random.key(0), 2000)
    _, shares = mixup(keys, IMAGES, 0.4)
    expected = scipy.stats.beta(0.4, 0.4)
    found = scipy.stats.kstest(shares, lambda s: expected.cdf(s) - expected.cdf(1 - s))
    assert found.pvalue > 0.01


def test_the_sharpest_point_nearby_lies_along_the_gradient():
    params = {"a": np.array([1.0, 2.0]), "b": np.array(3.0)}
    gradient = {"a": np.array([3.0, 0.0]), "b": np.array(4.0)}
    moved = regularizers.sam_perturbation(params, gradient, 0.5)
    chex.assert_trees_all_close(moved, {"a": np.array([1.3, 2.0]), "b": np.array(3.4)}, rtol=1e-6)
    still = jax.tree.map(np.zeros_like, params)
    chex.assert_trees_all_equal(regularizers.sam_perturbation(params, still, 0.5), params)


def made(**strengths):
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
    of_step, hyper, state = made(sam=0.3)
    found = result(of_step, hyper, state, BATCH)
    value, first = plain(of_step, state, state.params)
    length = np.sqrt(sum((np.asarray(leaf) ** 2).sum() for leaf in jax.tree.leaves(first)))
    moved = jax.tree.map(lambda p, g: p + 0.3 * g / length, state.params, first)
    chex.assert_trees_all_close(found.gradient, plain(of_step, state, moved)[1], rtol=1e-9)
    # The loss and the running statistics are those of the weights themselves.
    np.testing.assert_allclose(found.loss, value, rtol=1e-9)
    of_plain, plain_hyper, _ = made()
    at_weights = result(of_plain, plain_hyper, state, BATCH)
    chex.assert_trees_all_close(found.batch_stats, at_weights.batch_stats, rtol=1e-9)
    kernels = [tree["Dense_0"]["kernel"] for tree in (found.gradient, first)]
    assert not np.allclose(*kernels, atol=1e-3)


@pytest.mark.usefixtures("in_float64")
def test_smoothed_labels_enter_the_gradient():
    of_step, hyper, state = made(label_smoothing=0.3)
    found = result(of_step, hyper, state, BATCH)
    np.testing.assert_allclose(
        found.loss, losses.smoothed_cross_entropy(found.logits, LABELS, 0.3), rtol=1e-9
    )
    # The gradient to the last bias is the mean of probabilities less targets.
    targets = 0.7 * np.eye(10)[LABELS] + 0.03
    expected = (scipy.special.softmax(found.logits, 1) - targets).mean(0)
    np.testing.assert_allclose(found.gradient["Dense_0"]["bias"], expected, rtol=1e-9)


@pytest.mark.usefixtures("in_float64")
def test_the_loss_of_a_mixed_batch_is_the_mean_of_both_labels_losses():
    of_step, hyper, state = made(mixup=0.5)
    found = result(of_step, hyper, state, BATCH)
    key = jax.random.fold_in(jax.random.fold_in(state.key, 2), 0)
    images, share = regularizers.mixup(jax.random.split(key, 3)[2], BATCH.images, 0.5)
    own, others = (
        plain(of_step, state, state.params, images, labels)
        for labels in (LABELS, LABELS[[1, 0, 3, 2, 5, 4, 6]])
    )
    expected = jax.tree.map(lambda a, b: share * a + (1 - share) * b, own, others)
    chex.assert_trees_all_close((found.loss, found.gradient), expected, rtol=1e-9)


def trained(**fields):
    """The losses of two epochs with every regulariser."""
    every = {"label_smoothing": 0.1, "dropout": 0.2, "mixup": 0.3, "sam": 0.05}
    every |= {"elastic": 1.0, "cutout": 8.0}
    with tiny.network():
        job, progress = loop.build([Run("all", config(**every | fields), None)])
        *_, last = loop.training(job, progress)
    return [epoch["train_loss"][0] for epoch in last.epochs]


def test_all_together_do_not_depend_on_how_devices_share_a_batch():
    np.testing.assert_allclose(trained(data_devices=2), trained(), rtol=1e-4)


def test_one_program_serves_all_strengths_above_zero():
    before = trained()
    compiled = train_steps._cache_size()
    strengths = {"label_smoothing": 0.2, "dropout": 0.1, "mixup": 1.0, "sam": 0.1, "elastic": 0.5}
    others = trained(**strengths, cutout=4.0)
    assert train_steps._cache_size() == compiled
    assert not np.allclose(before, others)


def test_pairs_are_not_split_over_devices():
    with pytest.raises(ConfigError, match="would cut a pair that is mixed; make it a multiple of"):
        make_mesh(config(mixup=0.2, norm="batch", batch_size=6, data_devices=2), 1)
    make_mesh(config(mixup=0.2, norm="batch", batch_size=8, data_devices=2), 1)


@pytest.mark.parametrize(
    ("field", "overrides"),
    [
        ("dropout", Overrides(model=Tiny("batch", 1, None))),
        ("label_smoothing", Overrides(loss=losses.cross_entropy)),
    ],
)
def test_what_an_own_part_cannot_do_is_refused(field, overrides):
    with pytest.raises(ConfigError, match=rf"config\.{field} works only with") as error:
        recipe.make_recipe(config(**{field: 0.1}), 300, overrides=overrides)
    assert "\n" not in str(error.value)
