"""Ghost batch normalisation."""

from ml_collections import ConfigDict

from jax_mnist.config import base


def get_config() -> ConfigDict:
    config = base()
    config.norm = "ghost"
    return config
