"""The state that a training step changes, and its initialisation."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from jax_mnist.nn.xla import COMPILE_QUICKLY, jit
from jax_mnist.training import mesh as mesh_lib
from jax_mnist.training.recipe import Hyper, Recipe, make_optimizer


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


def init(recipe: Recipe, hyper: Hyper, seed: ArrayLike) -> TrainState:
    """The state before the first step. Everything random in the run follows from `seed`."""
    init_key, key = jax.random.split(jax.random.key(seed))
    variables = recipe.model.init(init_key, jnp.zeros((1, 28, 28, 1)), train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    average = optax.ema(hyper["ema"]) if recipe.enabled("ema") else None
    return TrainState(
        step=jnp.zeros([], jnp.int32),
        key=key,
        params=params,
        batch_stats=batch_stats,
        opt_state=make_optimizer(recipe, hyper, 0.0).init(params),
        average=average and average.init((params, batch_stats)),
    )


@functools.partial(jit, static_argnames="recipe", compiler_options=COMPILE_QUICKLY)
def _init_all(recipe: Recipe, hyper: Hyper, seeds: ArrayLike) -> TrainState:
    state: TrainState = jax.vmap(functools.partial(init, recipe))(hyper, seeds)
    return state


def init_replicas(
    recipe: Recipe, hypers: Sequence[Mapping[str, float]], seeds: Sequence[int]
) -> tuple[Hyper, TrainState]:
    """`init` for several replicas.

    Returns:
      The values of the config and the states; each leaf has a leading axis of replicas, which is
      spread over the mesh's axis `replica`.
    """
    hyper = jax.tree.map(lambda *values: np.array(values, np.float32), *hypers)
    hyper, seeds = mesh_lib.put(recipe.mesh, (hyper, np.array(seeds)), mesh_lib.REPLICA)
    return hyper, _init_all(recipe, hyper, seeds)


def inference_variables(hyper: Hyper, state: TrainState) -> dict[str, Any]:
    """Returns `{"params": ..., "batch_stats": ...}` for inference: the average if there is one."""
    params, batch_stats = state.params, state.batch_stats
    if state.average is not None:
        params, batch_stats = optax.tree.bias_correction(
            state.average.ema, hyper["ema"], state.average.count
        )
    return {"params": params, "batch_stats": batch_stats}
