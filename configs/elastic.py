"""Ghost batch normalisation with L2 decay and elastic deformation."""

from ml_collections import ConfigDict

from jax_mnist.config import base


def get_config() -> ConfigDict:
    config = base()
    config.norm = "ghost"
    config.l2 = 5e-4
    config.elastic = 0.5
    return config
