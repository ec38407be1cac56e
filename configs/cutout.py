"""Ghost batch normalisation with L2 decay and cutout."""

from ml_collections import ConfigDict

from jax_mnist.config import base


def get_config() -> ConfigDict:
    config = base()
    config.norm = "ghost"
    config.l2 = 5e-4
    config.cutout = 3.0
    return config
