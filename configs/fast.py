"""About 99.4 % in eight epochs."""

from ml_collections import ConfigDict

from jax_mnist.config import base


def get_config() -> ConfigDict:
    config = base()
    config.epochs = 8
    config.batch_size = 64
    config.norm = "ghost"
    config.l2 = 1e-4
    config.ema = 0.998
    return config
