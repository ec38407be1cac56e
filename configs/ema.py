"""Ghost batch normalisation with L2 decay and an average of the weights."""

from ml_collections import ConfigDict

from jax_mnist.config import base


def get_config() -> ConfigDict:
    config = base()
    config.norm = "ghost"
    config.l2 = 5e-4
    config.ema = 0.99
    return config
