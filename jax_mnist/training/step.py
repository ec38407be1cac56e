"""One training step, and many in one program: `state, data -> state, metrics`."""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from jax_mnist.data.datasets import Dataset
from jax_mnist.nn.xla import jit
from jax_mnist.training import augment, packing
from jax_mnist.training.mesh import DATA, REPLICA, example_keys, over_replicas, size, spread
from jax_mnist.training.objective import Batch, gradient
from jax_mnist.training.recipe import Hyper, Recipe, make_optimizer, make_schedule
from jax_mnist.training.state import TrainState


class StepMetrics(NamedTuple):
    """Mean loss and accuracy of a step on its augmented batch, and its learning rate."""

    loss: Array | np.ndarray
    accuracy: Array | np.ndarray
    learning_rate: Array | np.ndarray


StepResult = tuple[TrainState, StepMetrics]


def epoch_order(key: Array, epoch: ArrayLike, examples: int, batch_size: int) -> Array:
    """The order in which an epoch visits the examples: a fresh permutation every epoch.

    If the batch size does not divide the examples, the remainder is dropped, as in Flax's examples;
    each epoch drops different ones.

    Returns:
      int32 `[examples // batch_size, batch_size]`, indices of examples.
    """
    order = jax.random.permutation(jax.random.fold_in(jax.random.split(key)[0], epoch), examples)
    steps = examples // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)


@functools.partial(jit, static_argnames=("examples", "batch_size", "mesh"))
def epoch_orders(
    keys: Array, epoch: ArrayLike, examples: int, batch_size: int, mesh: Mesh | None = None
) -> Array:
    """`epoch_order` of each replica, given the key of each: `[replicas, steps, batch]`."""
    order = functools.partial(epoch_order, examples=examples, batch_size=batch_size)
    orders = jax.vmap(order, in_axes=(0, None))(keys, epoch)
    if mesh is None:
        return orders
    sharding = NamedSharding(mesh, P(REPLICA, None, DATA))
    return jax.lax.with_sharding_constraint(orders, sharding)


def train_step(
    recipe: Recipe,
    hyper: Hyper,
    state: TrainState,
    data: Dataset,
    index: ArrayLike,
) -> StepResult:
    """One step on the examples `index` of `data`.

    Args:
      recipe: What the step is compiled for; static.
      hyper: The values of the config, scalars.
      state: The state before the step.
      data: Images, uint8 `[n, 28, 28, 1]`, and labels, int32 `[n]`, on the device.
      index: Indices of the examples, int32 `[batch]`.

    Returns:
      The state after the step, and the step's metrics, which are scalars.
    """
    index = jnp.asarray(index)
    chex.assert_shape(data.images, (None, 28, 28, 1))
    chex.assert_equal_shape_prefix((data.images, data.labels), 1)
    chex.assert_type([data.images, data.labels, index], [jnp.uint8, jnp.int32, jnp.int32])
    chex.assert_rank([index, state.step], [1, 0])
    images = _augment(recipe, hyper, state, jnp.asarray(data.images)[index])
    labels = jnp.asarray(data.labels)[index]
    grads, loss, logits, batch_stats = gradient(recipe, hyper, state, Batch(images, labels))
    accuracy = (logits.argmax(-1) == labels).mean()
    if size(recipe.mesh, DATA) > 1:
        grads, loss, accuracy = jax.lax.pmean((grads, loss, accuracy), DATA)
    learning_rate = make_schedule(recipe, hyper)(state.step)
    optimizer = make_optimizer(recipe, hyper, learning_rate)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
        _, average = optax.ema(hyper["ema"]).update((params, batch_stats), average)
    metrics = StepMetrics(loss, accuracy, jnp.asarray(learning_rate, jnp.float32))
    after = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        average=average,
    )
    return after, metrics


def _augment(recipe: Recipe, hyper: Hyper, state: TrainState, images: Array) -> Array:
    """Augments and normalises uint8 images, each with a key of its own."""
    key = jax.random.fold_in(jax.random.split(state.key)[1], state.step)
    own, normalization = recipe.overrides.augment, recipe.normalization

    def augment_one(key: Array, image: Array) -> Array:
        if own is None:
            enabled = recipe.settings.enabled
            return augment.augment(key, image, hyper, normalization, enabled)
        return augment.normalize(own(key, image.astype(jnp.float32) / 255), *normalization)

    return jax.vmap(augment_one)(example_keys(recipe.mesh, key, len(images)), images)


@functools.partial(jit, static_argnames="recipe", donate_argnames="state")
def train_steps(
    recipe: Recipe,
    hyper: Hyper,
    state: TrainState,
    data: Dataset,
    order: ArrayLike,
) -> StepResult:
    """Many steps of several replicas, in one program.

    Args:
      recipe: What the step is compiled for; static.
      hyper: The values of the config, each `[replicas]`.
      state: The state before the first step, each leaf with a leading axis of replicas; see
        `state.init_replicas`. It is donated: its arrays cannot be used again.
      data: The examples, on the device, common to all replicas.
      order: Indices of examples, int32 `[replicas, steps, batch]`; see `epoch_order`.

    Returns:
      The states after the last step, and the metrics, each `[replicas, steps]`.
    """
    order = jnp.asarray(order)
    chex.assert_rank(order, 3)
    chex.assert_tree_shape_prefix((hyper, state.step), order.shape[:1])
    scan = jax.lax.scan if jax.default_backend() == "cpu" else packing.scan

    def train_replicas(hyper: Hyper, state: TrainState, data: Dataset, order: Array) -> StepResult:
        def train_one(hyper: Hyper, state: TrainState, order: Array) -> StepResult:
            return scan(lambda s, index: train_step(recipe, hyper, s, data, index), state, order)

        return over_replicas(train_one)(hyper, state, order)

    specs = (P(REPLICA), P(REPLICA), P(), P(REPLICA, None, DATA))
    train = spread(recipe.mesh, train_replicas, specs, P(REPLICA))
    result: StepResult = train(hyper, state, data, order)
    return result
