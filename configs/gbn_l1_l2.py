"""Ghost batch normalisation with L1 and L2 decay."""

from ml_collections import ConfigDict

from jax_mnist.config import base


def get_config() -> ConfigDict:
    config = base()
    config.norm = "ghost"
    config.l1 = 1e-5
    config.l2 = 5e-4
    return config
