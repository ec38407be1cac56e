"""From a config to the network, the recipe of the training step, and its hyper-parameters."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from jax_mnist import config as config_lib
from jax_mnist.config import ConfigError
from jax_mnist.nn import cnn
from jax_mnist.nn.affine import BatchNorm, GhostNorm
from jax_mnist.nn.cnn import CNN
from jax_mnist.training import optim
from jax_mnist.training.augment import MNIST, AugmentParams, Normalization
from jax_mnist.training.losses import cross_entropy
from jax_mnist.training.mesh import DATA, size
from jax_mnist.training.parts import AS_CONFIGURED, Loss, MakeOptimizer, Parts


@flax.struct.dataclass
class Hyperparameters:
    """Arguments of a compiled step: variants that differ only in these share a program.

    Attributes:
      learning_rate: The schedule's peak.
      l1: See `optim.sgd`.
      l2: See `optim.sgd`.
      momentum: See `optim.sgd`.
      ema: Decay of the weight average per step.
      final_rate: See `optim.make_schedule`.
      label_smoothing: See `losses.smoothed_cross_entropy`.
      dropout: See `cnn.Dropout`.
      mixup: See `regularizers.mixup`.
      sam: See `regularizers.sharpest_nearby`.
      distillation: The weight of the teachers' part of the loss, in [0, 1].
      temperature: See `losses.distilled_cross_entropy`.
      augment: Strengths of the augmentation.
    """

    learning_rate: ArrayLike
    l1: ArrayLike = 0.0
    l2: ArrayLike = 0.0
    momentum: ArrayLike = 0.9
    ema: ArrayLike = 0.0
    final_rate: ArrayLike = 0.0
    label_smoothing: ArrayLike = 0.0
    dropout: ArrayLike = 0.0
    mixup: ArrayLike = 0.0
    sam: ArrayLike = 0.0
    distillation: ArrayLike = 0.0
    temperature: ArrayLike = 1.0
    augment: AugmentParams = AugmentParams()


class Recipe(NamedTuple):
    """The static, hashable values that a step is compiled for.

    Attributes:
      model: The network, called as `model(images, train)`.
      schedule: One of `config.SCHEDULES`.
      steps: Steps of the whole run.
      nesterov: Whether momentum is Nesterov's.
      uses: The hyper-parameters that a step is compiled for, of those that cost time; see
        `config.used`.
      normalization: Constants that normalise the images.
      mesh: See `mesh.make_mesh`. If it spreads the batch, norms must average over its axis `data`.
      loss: The loss of a batch, see `Parts`.
      optimizer: One of `config.OPTIMIZERS`, with the hyper-parameters; or see `Parts`.
      teacher: The network of the teachers, if the recipe uses distillation.
    """

    model: nn.Module
    schedule: str
    steps: int
    nesterov: bool = False
    uses: tuple[str, ...] = ()
    normalization: Normalization = MNIST
    mesh: Mesh | None = None
    loss: Loss = cross_entropy
    optimizer: str | MakeOptimizer = "sgd"
    teacher: nn.Module | None = None


def make_model(config: ConfigDict, axis_name: str | None = None) -> CNN:
    """Returns the network that a config describes.

    Equal configs give equal networks, so that they share compiled programs. `axis_name` is the
    mapped axis over which the batch is spread, if it is.
    """
    common = {
        "layers": cnn.LAYERS,
        "momentum": config.norm_momentum,
        "axis_name": axis_name,
    }
    if config.norm == "batch":
        return _make_model(BatchNorm, **common)
    ghosts = {"ghost_batch_size": config.ghost_batch_size, "stats_update": config.stats_update}
    return _make_model(GhostNorm, **ghosts, **common)


@functools.cache  # since a `functools.partial` is equal only to itself
def _make_model(
    norm: Callable[..., nn.Module], layers: tuple[cnn.Layer, ...], **arguments: Any
) -> CNN:
    return CNN(norm=functools.partial(norm, **arguments), layers=layers)


def make_recipe(
    config: ConfigDict,
    examples: int,
    normalization: Normalization = MNIST,
    mesh: Mesh | None = None,
    parts: Parts = AS_CONFIGURED,
) -> Recipe:
    """Returns the recipe of a config for training on `examples` examples.

    Raises:
      ConfigError: `parts` cannot be combined with the config or the mesh.
    """
    spread = size(mesh, DATA) > 1
    _check_parts(config, parts, spread)
    return Recipe(
        model=parts.model or make_model(config, DATA if spread else None),
        schedule=config.schedule,
        steps=config.epochs * (examples // config.batch_size),
        nesterov=config.nesterov,
        uses=config_lib.used(config),
        normalization=normalization,
        mesh=mesh,
        loss=parts.loss or cross_entropy,
        optimizer=parts.optimizer or config.optimizer,
    )


def _check_parts(config: ConfigDict, parts: Parts, spread: bool) -> None:
    wrong = ""
    if spread and parts.model is not None:  # its norms may not average over devices
        wrong = "a network of your own cannot spread a batch: set config.data_devices to 1"
    elif config.dropout > 0 and not isinstance(parts.model, cnn.CNN | None):
        wrong = "config.dropout works only with this package's CNN: use nn.Dropout in your own"
    elif config.label_smoothing > 0 and parts.loss is not None:
        wrong = "config.label_smoothing works only with cross entropy, not with your own loss"
    if wrong:
        raise ConfigError(wrong)


def make_hyperparameters(config: ConfigDict) -> Hyperparameters:
    """Returns the hyper-parameters: each is the config's field of the same name."""
    strengths = {f.name: config[f.name] for f in dataclasses.fields(AugmentParams)}
    others = (f.name for f in dataclasses.fields(Hyperparameters) if f.name != "augment")
    return Hyperparameters(
        augment=AugmentParams(**strengths), **{name: config[name] for name in others}
    )


def make_optimizer(
    recipe: Recipe, hyper: Hyperparameters, learning_rate: ArrayLike
) -> optax.GradientTransformation:
    """The optimiser of a step with the given learning rate, see `make_schedule`."""
    if callable(recipe.optimizer):
        return recipe.optimizer(learning_rate)
    make = {"sgd": optim.sgd, "muon": optim.muon}[recipe.optimizer]
    return make(learning_rate, hyper.l1, hyper.l2, hyper.momentum, recipe.nesterov)


def make_schedule(recipe: Recipe, hyper: Hyperparameters) -> optax.Schedule:
    """The learning rate of a run at each of its steps, counted from 0."""
    return optim.make_schedule(recipe.schedule, hyper.learning_rate, recipe.steps, hyper.final_rate)
