"""The loss of a batch, with the regularisers that a recipe uses, and its gradient."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jax_mnist.nn.cnn import Dropout
from jax_mnist.training import losses, regularizers
from jax_mnist.training.mesh import DATA, example_keys, over_replicas, size
from jax_mnist.training.parts import Loss
from jax_mnist.training.recipe import Hyperparameters, Recipe
from jax_mnist.training.state import TrainState

# `jax.random.split` of a run's key makes the keys 0, of orders, and 1, of augmentation.
_REGULARISERS = 2


class Batch(NamedTuple):
    """Normalised images, `[batch, 28, 28, 1]`, and labels, int32 `[batch]`."""

    images: Array
    labels: Array


class Result(NamedTuple):
    """The gradient of a batch, its loss, its logits and the norms' new running statistics."""

    gradient: optax.Updates
    loss: Array
    logits: Array
    batch_stats: optax.Params


def gradient(
    recipe: Recipe, hyper: Hyperparameters, state: TrainState, batch: Batch, teacher: Any = None
) -> Result:
    """The gradient of a batch, or of a device's part of it, at the state's weights.

    Args:
      recipe: What the step is compiled for; static.
      hyper: The hyper-parameters, scalars.
      state: The state before the step.
      batch: The examples.
      teacher: The variables of `recipe.teacher`, each leaf with a leading axis of teachers, if the
        recipe uses distillation. They see the same images as the network.

    Returns:
      The means over these examples.
    """
    key = jax.random.fold_in(jax.random.fold_in(state.key, _REGULARISERS), state.step)
    of_network, of_dropout, of_mixup = jax.random.split(key, 3)
    images, labels = batch
    examples, share = len(images), None
    options: dict[str, Any] = {}
    if "mixup" in recipe.uses:
        images, share = regularizers.mixup(of_mixup, images, hyper.mixup)
    if "dropout" in recipe.uses:
        keys = example_keys(recipe.mesh, of_dropout, examples)
        options["dropout"] = Dropout(keys, hyper.dropout)
    loss = _loss(recipe, hyper)
    taught = None
    if "distillation" in recipe.uses:
        taught = _logits_of_teachers(recipe, teacher, images)

    def loss_of(params: optax.Params) -> tuple[Array, tuple[Array, optax.Params]]:
        logits, updated = recipe.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": of_network},
            **options,
        )
        found = loss(logits, labels)
        if share is not None:
            others = labels[regularizers.partners(examples)]
            found = share * found + (1 - share) * loss(logits, others)
        if taught is not None:
            soft = losses.distilled_cross_entropy(logits, taught, hyper.temperature)
            weight = jnp.asarray(hyper.distillation)
            found = (1 - weight) * found + weight * soft
        return found, (logits, updated.get("batch_stats", {}))

    differentiate = jax.value_and_grad(loss_of, has_aux=True)
    (value, (logits, batch_stats)), grads = differentiate(state.params)
    if "sam" in recipe.uses:
        whole = jax.lax.pmean(grads, DATA) if size(recipe.mesh, DATA) > 1 else grads
        nearby = regularizers.sharpest_nearby(state.params, whole, hyper.sam)
        _, grads = differentiate(nearby)
    return Result(grads, value, logits, batch_stats)


def _logits_of_teachers(recipe: Recipe, variables: Any, images: Array) -> Array:
    def of_one(variables: Any) -> Any:
        return recipe.teacher.apply(variables, images, train=False)  # type: ignore[union-attr]

    logits: Array = over_replicas(of_one)(variables)
    return logits


def _loss(recipe: Recipe, hyper: Hyperparameters) -> Loss:
    if "label_smoothing" not in recipe.uses:
        return recipe.loss
    smoothed: Any = losses.smoothed_cross_entropy
    return functools.partial(smoothed, smoothing=hyper.label_smoothing)
