"""Ghost batch normalisation with L1 decay."""

from ml_collections import ConfigDict

from jax_mnist.config import base


def get_config() -> ConfigDict:
    config = base()
    config.norm = "ghost"
    config.l1 = 1e-5
    return config
