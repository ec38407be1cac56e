"""`best` with a wider network as its teacher, which has to be trained first."""

from ml_collections import ConfigDict

from jax_mnist.config import base


def get_config() -> ConfigDict:
    config = base()
    config.epochs = 60
    config.norm = "ghost"
    config.l2 = 1e-4
    config.rotation = 10.0
    config.shift = 2.0
    config.scale = 0.1
    config.shear = 8.0
    config.ema = 0.998
    config.teacher = "runs/teacher"
    config.distillation = 0.9
    config.temperature = 3.0
    return config
