"""The base config that every experiment is a difference from, and the check of a config."""

import importlib.util
import re

from ml_collections import ConfigDict, FrozenConfigDict

from jax_mnist.data import datasets


class ConfigError(ValueError):
    """A config value that cannot be trained; the message is one line."""


def base() -> ConfigDict:
    """The base: batch normalisation, no decay, the augmentation of the original system.

    Returns:
      A locked `ConfigDict`: fields cannot be added, and keep their types.
    """
    config = ConfigDict(
        {
            # Replica r of `replicas` is the run of seed + r.
            "seed": 0,
            "replicas": 1,
            # Devices: "replica=2,data=4"; empty is a default, see training.mesh.make_mesh.
            "mesh": "",
            # Data: a name in jax_mnist.data.datasets, or a folder of IDX files. Splits are TFDS's:
            # "train[:50000]". No data_dir means TFDS's default.
            "dataset": "mnist",
            "train_split": "train",
            "validation_split": "test",
            "data_dir": "",
            "source_dir": "",
            # Length.
            "epochs": 15,
            "batch_size": 128,
            # Normalisation: "batch" or "ghost"; the last two are GhostBatchNorm's.
            "norm": "batch",
            "norm_momentum": 0.9,
            "ghost_batch_size": 32,
            "stats_update": "mean",
            # Optimiser.
            "schedule": "one_cycle",
            "learning_rate": 0.2,
            "momentum": 0.9,
            "nesterov": True,
            "l1": 0.0,
            "l2": 0.0,
            # Decay per step of the averaged weights, which are then the ones evaluated; 0 is off.
            "ema": 0.0,
            # Augmentation; units and ranges in jax_mnist.training.augment.Strengths.
            "brightness": 0.1,
            "contrast": 0.1,
            "rotation": 7.0,
            "shift": 0.0,
            "scale": 0.0,
            "shear": 0.0,
            # Whether to write a file for TensorBoard too; needs the extra "tensorboard".
            "tensorboard": False,
        }
    )
    return config.lock()


_LARGEST = 1e38  # of a float32, about

# Of each number: its least and greatest value, and whether the greatest is itself allowed.
_RANGES = {
    "seed": (0, 2**31, False),
    "replicas": (1, 10_000, True),
    "epochs": (1, 100_000, True),
    "batch_size": (1, 1_000_000, True),
    "norm_momentum": (0, 1, False),
    "ghost_batch_size": (1, 1_000_000, True),
    "learning_rate": (0, _LARGEST, True),
    "momentum": (0, 1, False),
    "l1": (0, _LARGEST, True),
    "l2": (0, _LARGEST, True),
    "ema": (0, 1, False),
    "brightness": (0, _LARGEST, True),
    "contrast": (0, _LARGEST, True),
    "rotation": (0, 180, True),
    "shift": (0, 28, True),
    "scale": (0, 1, False),
    "shear": (0, 90, False),
}

SCHEDULES = ("constant", "step", "cosine", "one_cycle")

_CHOICES = {
    "norm": ("batch", "ghost"),
    "stats_update": ("mean", "sequential"),
    "schedule": SCHEDULES,
}


# What has no part in the results, but for rounding.
NO_PART = ("mesh", "tensorboard")

# What may differ between replicas of one compiled program.
PER_REPLICA = (
    *("seed", "learning_rate", "momentum", "l1", "l2", "ema"),
    *("brightness", "contrast", "rotation", "shift", "scale", "shear"),
)


def check(config: ConfigDict) -> None:
    """Raises `ConfigError`, naming the field, unless every value can be trained with."""
    if not isinstance(config, ConfigDict) or isinstance(config, FrozenConfigDict):
        raise ConfigError(
            f"a config must be a ConfigDict made from config.base(); got a {type(config).__name__}"
        )
    known = base()
    for name in sorted(set(known) ^ set(config)):
        what = "is missing" if name in known else "is none that there is"
        raise ConfigError(f"config.{name:.64} {what}: make a config from config.base()")
    for name in known:
        kind, value = type(known[name]), config[name]
        if type(value) is not kind:
            raise ConfigError(f"config.{name} must be of type {kind.__name__}; got {value!r:.64}")
    for name, (low, high, closed) in _RANGES.items():
        value = config[name]
        if not (low <= value < high or (closed and value == high)):  # so written, NaN fails too
            greatest = f"{'at most' if closed else 'below'} {high:{',' if high < 1e10 else 'g'}}"
            raise ConfigError(f"config.{name} must be at least {low} and {greatest}; got {value}")
    if config.seed + config.replicas > 2**31:
        raise ConfigError(f"config.seed + config.replicas must be at most {2**31:,}")
    axis = r"(replica|data)=[1-9]\d{0,5}"
    if not re.fullmatch(rf"({axis}(,(?!\2){axis})?)?", config.mesh):
        raise ConfigError(
            f"config.mesh must be empty or such as 'replica=2,data=4'; got {config.mesh!r}"
        )
    try:
        datasets.check_name(config.dataset)
    except datasets.DatasetError as error:
        raise ConfigError(f"config.dataset must be one that can be had: {error}") from None
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "config.tensorboard needs a library: python -m pip install -e '.[tensorboard]'"
        )
    for name, choices in _CHOICES.items():
        if config[name] not in choices:
            raise ConfigError(
                f"config.{name} must be one of {', '.join(choices)}; got {config[name]!r}"
            )
