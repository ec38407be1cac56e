"""The loss of a batch, with the regularisers that a recipe uses, and its gradient."""

import functools
from typing import Any, NamedTuple

import jax
import optax
from jax import Array

from jax_mnist.nn.cnn import Dropout
from jax_mnist.training import losses, regularizers
from jax_mnist.training.mesh import DATA, example_keys, size
from jax_mnist.training.parts import Loss
from jax_mnist.training.recipe import Hyper, Recipe
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


def gradient(recipe: Recipe, hyper: Hyper, state: TrainState, batch: Batch) -> Result:
    """The gradient of a batch, or of a device's part of it, at the state's weights.

    Args:
      recipe: What the step is compiled for; static.
      hyper: The values of the config, scalars.
      state: The state before the step.
      batch: The examples.

    Returns:
      The means over these examples.
    """
    key = jax.random.fold_in(jax.random.fold_in(state.key, _REGULARISERS), state.step)
    of_network, of_dropout, of_mixup = jax.random.split(key, 3)
    images, labels = batch
    examples, share = len(images), None
    options: dict[str, Any] = {}
    if recipe.enabled("mixup"):
        images, share = regularizers.mixup(of_mixup, images, hyper["mixup"])
    if recipe.enabled("dropout"):
        keys = example_keys(recipe.mesh, of_dropout, examples)
        options["dropout"] = Dropout(keys, hyper["dropout"])
    loss = _loss(recipe, hyper)

    def loss_of(params: optax.Params) -> tuple[Array, tuple[Array, optax.Params]]:
        logits, updated = recipe.model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": of_network},
            **options,
        )
        value = loss(logits, labels)
        if share is not None:
            others = labels[regularizers.partners(examples)]
            value = share * value + (1 - share) * loss(logits, others)
        return value, (logits, updated.get("batch_stats", {}))

    differentiate = jax.value_and_grad(loss_of, has_aux=True)
    (value, (logits, batch_stats)), grads = differentiate(state.params)
    if recipe.enabled("sam"):
        whole = jax.lax.pmean(grads, DATA) if size(recipe.mesh, DATA) > 1 else grads
        nearby = regularizers.sam_perturbation(state.params, whole, hyper["sam"])
        _, grads = differentiate(nearby)
    return Result(grads, value, logits, batch_stats)


def _loss(recipe: Recipe, hyper: Hyper) -> Loss:
    if recipe.enabled("label_smoothing"):
        smoothed: Any = losses.smoothed_cross_entropy
        return functools.partial(smoothed, smoothing=hyper["label_smoothing"])
    return recipe.overrides.loss or losses.cross_entropy
