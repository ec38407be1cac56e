"""What a config means: the network, the training step and its hyper-parameters."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jax_mnist.nn import cnn
from jax_mnist.nn.ghost_batch_norm import GhostBatchNorm
from jax_mnist.training.augment import MNIST, AugmentParams, Normalization
from jax_mnist.training.mesh import DATA, size
from jax_mnist.training.state import Hyperparameters, Recipe


def make_model(config: ConfigDict, axis_name: str | None = None) -> cnn.CNN:
    """The network that a config describes; `axis_name` is that of its norms."""
    norm: Callable[..., nn.Module] = functools.partial(
        nn.BatchNorm, momentum=config.norm_momentum, axis_name=axis_name
    )
    if config.norm == "ghost":
        norm = functools.partial(
            GhostBatchNorm,
            ghost_batch_size=config.ghost_batch_size,
            stats_update=config.stats_update,
            momentum=config.norm_momentum,
            axis_name=axis_name,
        )
    return cnn.CNN(norm=norm)


def make_recipe(
    config: ConfigDict,
    examples: int,
    normalization: Normalization = MNIST,
    mesh: Mesh | None = None,
) -> Recipe:
    """What the training step is compiled for, over `examples` training examples."""
    return Recipe(
        model=make_model(config, DATA if size(mesh, DATA) > 1 else None),
        schedule=config.schedule,
        steps=config.epochs * (examples // config.batch_size),
        nesterov=config.nesterov,
        average=config.ema > 0,
        normalization=normalization,
        mesh=mesh,
    )


def make_hyperparameters(config: ConfigDict) -> Hyperparameters:
    """The values that the compiled step takes: each is the config's field of the same name."""
    strengths = {f.name: config[f.name] for f in dataclasses.fields(AugmentParams)}
    others = (f.name for f in dataclasses.fields(Hyperparameters) if f.name != "augment")
    return Hyperparameters(
        augment=AugmentParams(**strengths), **{name: config[name] for name in others}
    )
