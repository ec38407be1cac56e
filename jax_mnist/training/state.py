"""What a training step needs and changes: hyper-parameters, the recipe, the state."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike

from jax_mnist.training import mesh as mesh_lib
from jax_mnist.training import optim
from jax_mnist.training.augment import MNIST, AugmentParams, Normalization


@flax.struct.dataclass
class Hyperparameters:
    """Values that a compiled step takes: variants that differ only in these share a program.

    Attributes:
      learning_rate: The schedule's peak.
      l1: See `optim.make_optimizer`.
      l2: See `optim.make_optimizer`.
      momentum: See `optim.make_optimizer`.
      ema: Decay of the weight average per step; used if `Recipe.average` is set.
      augment: Strengths of the augmentation.
    """

    learning_rate: ArrayLike
    l1: ArrayLike = 0.0
    l2: ArrayLike = 0.0
    momentum: ArrayLike = 0.9
    ema: ArrayLike = 0.0
    augment: AugmentParams = AugmentParams()


class Recipe(NamedTuple):
    """What a step is compiled for: static and hashable.

    Attributes:
      model: The network, called as `model(images, train)`.
      schedule: One of `config.SCHEDULES`.
      steps: Steps of the whole run.
      nesterov: Whether momentum is Nesterov's.
      average: Whether an exponential moving average of the weights is kept, and evaluated.
      normalization: Constants that normalise the images.
      mesh: See `mesh.make_mesh`. If it spreads the batch, norms must average over its axis `data`.
    """

    model: nn.Module
    schedule: str
    steps: int
    nesterov: bool = False
    average: bool = False
    normalization: Normalization = MNIST
    mesh: Mesh | None = None


@flax.struct.dataclass
class TrainState:
    """Everything that a training step changes.

    Attributes:
      step: Steps taken so far, an int32 scalar.
      key: The run's key. Each step derives its own from it, so that a run can resume at any step.
      params: The network's parameters.
      batch_stats: The norms' running statistics.
      opt_state: The optimiser's state.
      average: An `optax.EmaState` of the parameters and running statistics, or None.
    """

    step: Array
    key: Array
    params: optax.Params
    batch_stats: optax.Params
    opt_state: optax.OptState
    average: optax.EmaState | None


def make_optimizer(recipe: Recipe, hyper: Hyperparameters) -> optax.GradientTransformation:
    """The optimiser of a run."""
    schedule = optim.make_schedule(recipe.schedule, hyper.learning_rate, recipe.steps)
    return optim.make_optimizer(schedule, hyper.l1, hyper.l2, hyper.momentum, recipe.nesterov)


@functools.partial(jax.jit, static_argnames="recipe")
def init(recipe: Recipe, hyper: Hyperparameters, seed: ArrayLike) -> TrainState:
    """The state before the first step. Everything random in the run follows from `seed`."""
    init_key, key = jax.random.split(jax.random.key(seed))
    variables = recipe.model.init(init_key, jnp.zeros((1, 28, 28, 1)), train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros([], jnp.int32),
        key=key,
        params=params,
        batch_stats=batch_stats,
        opt_state=make_optimizer(recipe, hyper).init(params),
        average=optax.ema(hyper.ema).init((params, batch_stats)) if recipe.average else None,
    )


def init_replicas(
    recipe: Recipe, hypers: Sequence[Hyperparameters], seeds: Sequence[int]
) -> tuple[Hyperparameters, TrainState]:
    """`init` for several replicas.

    Returns:
      The hyper-parameters and the states; each leaf has a leading axis of replicas, which is
      spread over the mesh's axis `replica`.
    """
    hyper = jax.tree.map(lambda *values: np.array(values, np.float32), *hypers)
    placed = mesh_lib.put(recipe.mesh, (hyper, np.array(seeds)), mesh_lib.REPLICA)
    return placed[0], jax.vmap(functools.partial(init, recipe))(*placed)


def inference_variables(hyper: Hyperparameters, state: TrainState) -> dict[str, Any]:
    """The variables to evaluate and to keep: the weight average if the state has one.

    Returns:
      `{"params": ..., "batch_stats": ...}` for `model.apply`.
    """
    params, batch_stats = state.params, state.batch_stats
    if state.average is not None:
        params, batch_stats = optax.tree.bias_correction(
            state.average.ema, hyper.ema, state.average.count
        )
    return {"params": params, "batch_stats": batch_stats}
