"""From a config to what a training step is compiled for, its network, optimiser and schedule."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike
from ml_collections import ConfigDict, FrozenConfigDict

from jax_mnist import config as config_lib
from jax_mnist.config import ConfigError
from jax_mnist.nn.affine import BatchNorm, GhostNorm
from jax_mnist.nn.cnn import CNN
from jax_mnist.training import optim
from jax_mnist.training.augment import MNIST, Normalization
from jax_mnist.training.mesh import DATA, size
from jax_mnist.training.parts import AS_CONFIGURED, Overrides

# The fields of a config that replicas of one program may differ in, by name: arguments of a
# compiled step, scalars or `[replicas]`. A step for one config and one for another with the same
# static fields are the same program.
Hyper = dict[str, ArrayLike]


class Recipe(NamedTuple):
    """The static, hashable values that a step is compiled for.

    Attributes:
      settings: The fields of the config that replicas share, see `config.split`.
      model: The network, called as `model(images, train)`.
      steps: Steps of the whole run.
      normalization: Constants that normalise the images.
      mesh: See `mesh.make_mesh`. If it spreads the batch, norms must average over its axis `data`.
      overrides: What replaces parts that the config describes.
    """

    settings: FrozenConfigDict
    model: nn.Module
    steps: int
    normalization: Normalization = MNIST
    mesh: Mesh | None = None
    overrides: Overrides = AS_CONFIGURED

    def enabled(self, field: str) -> bool:
        """Whether an optional field of the config is above 0."""
        return field in self.settings.enabled


def make_model(config: ConfigDict | FrozenConfigDict, axis_name: str | None = None) -> CNN:
    """Returns the network that a config describes.

    Equal configs give equal networks, so that they share compiled programs. `axis_name` is the
    mapped axis over which the batch is spread, if it is.
    """
    common = {"momentum": config.norm_momentum, "axis_name": axis_name}
    if config.norm == "batch":
        return _make_model(BatchNorm, **common)
    ghosts = {"ghost_batch_size": config.ghost_batch_size, "stats_update": config.stats_update}
    return _make_model(GhostNorm, **ghosts, **common)


@functools.cache  # since a `functools.partial` is equal only to itself
def _make_model(norm: Callable[..., nn.Module], **arguments: Any) -> CNN:
    return CNN(norm=functools.partial(norm, **arguments))


def make_recipe(
    config: ConfigDict,
    examples: int,
    normalization: Normalization = MNIST,
    mesh: Mesh | None = None,
    overrides: Overrides = AS_CONFIGURED,
) -> Recipe:
    """Returns the recipe of a config for training on `examples` examples.

    Raises:
      ConfigError: `overrides` cannot be combined with the config or the mesh.
    """
    shared, _ = config_lib.split(config)
    spread = size(mesh, DATA) > 1
    _check(config, overrides, spread)
    model = overrides.model or make_model(shared, DATA if spread else None)
    steps = config.epochs * (examples // config.batch_size)
    return Recipe(shared, model, steps, normalization, mesh, overrides)


def _check(config: ConfigDict, overrides: Overrides, spread: bool) -> None:
    wrong = ""
    if spread and overrides.model is not None:  # its norms may not average over devices
        wrong = "a network of your own cannot spread a batch: set config.data_devices to 1"
    elif config.dropout > 0 and not isinstance(overrides.model, CNN | None):
        wrong = "config.dropout works only with this package's CNN: use nn.Dropout in your own"
    elif config.label_smoothing > 0 and overrides.loss is not None:
        wrong = "config.label_smoothing works only with cross entropy, not with your own loss"
    if wrong:
        raise ConfigError(wrong)


def make_optimizer(
    recipe: Recipe, hyper: Hyper, learning_rate: ArrayLike
) -> optax.GradientTransformation:
    """The optimiser of a step with the given learning rate, see `make_schedule`."""
    if recipe.overrides.optimizer is not None:
        return recipe.overrides.optimizer(learning_rate)
    l1, l2, momentum = hyper["l1"], hyper["l2"], hyper["momentum"]
    return optim.sgd(learning_rate, l1, l2, momentum, recipe.settings.nesterov)


def make_schedule(recipe: Recipe, hyper: Hyper) -> optax.Schedule:
    """The learning rate of a run at each of its steps, counted from 0."""
    return optim.make_schedule(recipe.settings.schedule, hyper["learning_rate"], recipe.steps)
