"""Few epochs: ten reach a mean above 99.4 %."""

from ml_collections import ConfigDict

from jax_mnist.config import base


def get_config() -> ConfigDict:
    config = base()
    config.epochs = 10
    config.batch_size = 64
    config.norm = "ghost"
    config.l2 = 1e-4
    config.ema = 0.998
    return config
