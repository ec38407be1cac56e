"""What a config means: the network, and the training step with its hyper-parameters."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jax_mnist.nn.cnn import CNN, batch_norm
from jax_mnist.nn.ghost_batch_norm import GhostBatchNorm
from jax_mnist.training import augment
from jax_mnist.training import mesh as devices
from jax_mnist.training import step as training


def make_model(config: ConfigDict, axis_name: str | None = None) -> CNN:
    """The network that a config describes.

    Args:
      config: The config.
      axis_name: The mapped axis over which the batch is spread, if it is.

    Returns:
      The network. Equal configs give equal networks, so that they share compiled programs.
    """
    common = {"momentum": config.norm_momentum, "axis_name": axis_name}
    if config.norm == "batch":
        return _make_model(batch_norm, **common)
    ghosts = {"ghost_batch_size": config.ghost_batch_size, "stats_update": config.stats_update}
    return _make_model(GhostBatchNorm, **ghosts, **common)


@functools.cache  # because a `functools.partial` is equal to itself only
def _make_model(norm: Callable[..., nn.Module], **arguments: Any) -> CNN:
    return CNN(norm=functools.partial(norm, **arguments))


def make_recipe(
    config: ConfigDict,
    examples: int,
    normalization: augment.Normalization = augment.MNIST,
    mesh: Mesh | None = None,
) -> tuple[training.Recipe, training.Hyperparameters]:
    """What a config means for the training step, over `examples` training examples."""
    spread = devices.size(mesh, devices.DATA) > 1
    recipe = training.Recipe(
        model=make_model(config, devices.DATA if spread else None),
        schedule=config.schedule,
        steps=config.epochs * (examples // config.batch_size),
        nesterov=config.nesterov,
        average=config.ema > 0,
        normalization=normalization,
        mesh=mesh,
    )
    hyper = training.Hyperparameters(
        learning_rate=config.learning_rate,
        l1=config.l1,
        l2=config.l2,
        momentum=config.momentum,
        ema=config.ema,
        strengths=augment.Strengths(
            brightness=config.brightness,
            contrast=config.contrast,
            rotation=config.rotation,
            shift=config.shift,
            scale=config.scale,
            shear=config.shear,
        ),
    )
    return recipe, hyper
