"""The configuration of an experiment, defined by one table of fields.

`base()` returns the defaults, `check()` rejects invalid values, `split()` says what a program is
compiled for, and `table()` documents the fields. To add a field, add a row to `FIELDS` and use its
value.
"""

import difflib
import functools
import importlib.util
import math
import re
import runpy
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FrozenConfigDict

from jax_mnist.data import datasets

SCHEDULES = ("constant", "step", "cosine", "one_cycle")


class ConfigError(ValueError):
    """A config that cannot be trained. The message is one line."""


class Range(NamedTuple):
    """The numbers from `low` to `high`; `closed` says whether `high` itself is allowed."""

    low: float
    high: float = math.inf
    closed: bool = True

    def holds(self, value: float) -> bool:
        """Whether a value is finite and lies in the range."""
        return math.isfinite(value) and (
            self.low <= value < self.high or (self.closed and value == self.high)
        )

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"at least {self.low}"
        return f"at least {self.low} and {'at most' if self.closed else 'below'} {self.high:,}"


class Field(NamedTuple):
    """A field of a config.

    Attributes:
      name: Its name.
      default: Its value in `base()`; every value has the default's type.
      meaning: What it means, in one line.
      allowed: The range or the choices of its values; None if any value is valid.
      unit: The unit of a number.
      per_replica: Whether replicas in one compiled program may have different values.
      affects_results: Whether it affects results by more than rounding.
      optional: Whether programs are compiled without what it stands for if it is 0, since that
        costs time.
    """

    name: str
    default: Any
    meaning: str
    allowed: Range | Sequence[str] | None = None
    unit: str = ""
    per_replica: bool = False
    affects_results: bool = True
    optional: bool = False


_shared = Field
_traced = functools.partial(Field, per_replica=True)
_optional = functools.partial(Field, per_replica=True, optional=True)
_technical = functools.partial(Field, affects_results=False)
_STRENGTH = Range(0, 1e38)  # roughly the largest float32
_FRACTION = Range(0, 1, closed=False)
_LARGE = Range(1, 1_000_000)

# fmt: off
FIELDS = (
    # What is trained, on what.
    _traced("seed", 0, "Seed of everything random.", Range(0, 2**31, closed=False)),
    _shared("replicas", 1, "How many seeds to train: `seed`, `seed + 1`, …", Range(1, 10_000)),
    _technical("replica_devices", 0, "Devices to spread the replicas over; 0 in both this and the "
               "next: chosen automatically.", Range(0, 1_000_000)),
    _technical("data_devices", 0, "Devices to spread each batch over.", Range(0, 1_000_000)),
    _shared("dataset", "mnist", "A known data set, or a folder of pictures or of IDX files."),
    _shared("train_split", "train", "What to train on, in TFDS's words, such as `train[:50000]`."),
    _shared("validation_split", "test", "What to evaluate on after every epoch, likewise."),
    _shared("data_dir", "", "The TFDS data folder; empty for TFDS's default."),
    _shared("source_dir", "", "A folder with the data set's original files; empty to find them."),
    _shared("epochs", 15, "Length of the training.", Range(1, 100_000), "epochs"),
    _shared("batch_size", 128, "Size of a batch.", _LARGE, "examples"),

    # The network.
    _shared("norm", "batch", "Batch normalisation or ghost batch normalisation.",
            ("batch", "ghost")),
    _shared("norm_momentum", 0.9, "Decay of the running statistics per update.", _FRACTION),
    _shared("ghost_batch_size", 32, "Size of a ghost batch.", _LARGE, "examples"),
    _shared("stats_update", "mean", "How ghost batches update the running statistics; see "
            "`GhostBatchNorm`.", ("mean", "pooled", "sequential")),

    # The optimiser.
    _shared("schedule", "one_cycle", "The learning-rate schedule.", SCHEDULES),
    _traced("learning_rate", 0.2, "The schedule's peak.", _STRENGTH),
    _traced("momentum", 0.9, "Momentum of the optimiser.", _FRACTION),
    _shared("nesterov", True, "Whether momentum is Nesterov's."),

    # Regularisers.
    _traced("l1", 0.0, "L1 penalty: adds `l1 * sum abs(w)` to the loss.", _STRENGTH),
    _traced("l2", 0.0, "L2 penalty: adds `l2/2 * sum w^2`.", _STRENGTH),
    _optional("ema", 0.0, "Decay per step of a moving average of the weights, which is then "
              "evaluated; 0 for none.", _FRACTION),
    _optional("label_smoothing", 0.0, "Share of each label's probability that is spread over all "
              "classes.", _FRACTION),
    _optional("dropout", 0.0, "Probability of dropping a channel before the last layer.",
              _FRACTION),
    _optional("mixup", 0.0, "Mixes pairs of images with a share from Beta(mixup, mixup).",
              Range(0, 1000)),
    _optional("sam", 0.0, "Sharpness-aware minimisation: the distance at which the gradient is "
              "taken.", _STRENGTH),

    # Augmentation.
    _traced("brightness", 0.1, "Brightness factors are 1 ± this.", _STRENGTH),
    _traced("contrast", 0.1, "Contrast factors are 1 ± this.", _STRENGTH),
    _traced("rotation", 7.0, "Largest rotation.", Range(0, 180), "degrees"),
    _traced("shift", 0.0, "Largest shift along each axis.", Range(0, 28), "pixels"),
    _traced("scale", 0.0, "Scale factors are 1 ± this.", _FRACTION),
    _traced("shear", 0.0, "Largest shear along the x axis.", Range(0, 90, closed=False), "degrees"),
    _optional("elastic", 0.0, "Standard deviation of smooth random displacements of the pixels.",
              Range(0, 28), "pixels"),
    _optional("cutout", 0.0, "Side of a square that is blanked out in each image.", Range(0, 28),
              "pixels"),

    _technical("tensorboard", False, "Whether to write TensorBoard's file too."),
)
# fmt: on

# Fields of earlier versions, with the values that left training as it is now.
_REMOVED = {
    "width": 1,
    "final_rate": 0.0,
    "optimizer": "sgd",
    "dropout_position": "last",
    "teacher": "",
    "distillation": 0.0,
    "temperature": 1.0,
}

# Fields that do not affect results, except by rounding.
NO_EFFECT = tuple(field.name for field in FIELDS if not field.affects_results)


def base() -> ConfigDict:
    """Returns the default config: batch normalisation without decay.

    It is a locked `ConfigDict`: no field can be added, and every field keeps its type.
    """
    return ConfigDict({field.name: field.default for field in FIELDS}).lock()


def split(config: ConfigDict) -> tuple[FrozenConfigDict, dict[str, float]]:
    """Splits a config into what a program is compiled for, and the values that it takes.

    Returns:
      The fields that all replicas of a program share, hashable, with `enabled`: the names of the
      optional fields that are above 0. And the fields that replicas may differ in, but the seed.
    """
    shared = {field.name: config[field.name] for field in FIELDS if not field.per_replica}
    enabled = tuple(f.name for f in FIELDS if f.optional and config[f.name] > 0)
    values = {f.name: config[f.name] for f in FIELDS if f.per_replica and f.name != "seed"}
    return FrozenConfigDict(shared | {"enabled": enabled}), values


def no_field(name: str) -> str:
    """Says that there is no field of this name, and which one may be meant."""
    close = difflib.get_close_matches(name, [field.name for field in FIELDS], n=1)
    proposal = f", did you mean {close[0]!r}?" if close else ""
    return f"a config has no field {name!r:.64}{proposal}"


def _reason(error: Exception) -> str:
    """What went wrong in a config file, in one line."""
    if isinstance(error, KeyError) and error.args == ("get_config",):
        return "it defines no get_config()"
    if unknown := re.search(r'Key "(.*?)" does not exist', str(error)):
        return no_field(unknown[1])  # ml_collections lists all fields
    return f"{type(error).__name__}: {error}"


def check(config: ConfigDict) -> None:
    """Validates a config.

    Raises:
      ConfigError: A value is invalid, or a field is missing or unknown; the message names it.
    """
    if not isinstance(config, ConfigDict) or isinstance(config, FrozenConfigDict):
        raise ConfigError(
            f"a config must be a ConfigDict made from config.base(); got a {type(config).__name__}"
        )
    known = {field.name for field in FIELDS}
    for name in sorted(known ^ set(config)):
        what = "is missing" if name in known else "does not exist"
        raise ConfigError(f"config.{name:.64} {what}: make a config from config.base()")
    for field in FIELDS:
        _check_value(field, config[field.name])
    if config.seed + config.replicas > 2**31:
        raise ConfigError(f"config.seed + config.replicas must be at most {2**31:,}")
    try:
        datasets.check_name(config.dataset)
    except datasets.DatasetError as error:
        raise ConfigError(f"config.dataset must be available: {error}") from None
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "config.tensorboard needs a library: python -m pip install -e '.[tensorboard]'"
        )


def _check_value(field: Field, value: Any) -> None:
    kind, allowed = type(field.default), field.allowed
    if type(value) is not kind:
        raise ConfigError(f"config.{field.name} must be of type {kind.__name__}; got {value!r:.64}")
    if isinstance(allowed, Range):
        if not allowed.holds(value):
            raise ConfigError(f"config.{field.name} must be {allowed}; got {value}")
    elif allowed is not None and value not in allowed:
        raise ConfigError(
            f"config.{field.name} must be one of {', '.join(allowed)}; got {value!r:.64}"
        )


def with_defaults(older: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an older config as those of today.

    It gets the defaults of the fields that it lacks. Fields that no longer exist are left out if
    their values changed nothing.
    """
    values = {k: v for k, v in older.items() if k not in _REMOVED or v != _REMOVED[k]}
    return {field.name: field.default for field in FIELDS} | values


def load_file(file: Path) -> tuple[ConfigDict, dict[str, Any]]:
    """Runs a config file, which defines `get_config()` and may define `get_parts()`.

    Returns:
      The config, and the parts of the program that the file replaces; see `training.parts`.

    Raises:
      ConfigError: The file raises an error, or it defines no `get_config`.
    """
    try:
        names = runpy.run_path(str(file))
        config, parts = names["get_config"](), names.get("get_parts", dict)()
    except Exception as error:  # a config file may raise anything
        raise ConfigError(f"{file}: {_reason(error)}") from error
    if config is None:
        raise ConfigError(f"{file}: get_config() returns nothing: end it with `return config`")
    if type(parts) is not dict:
        raise ConfigError(f"{file}: get_parts() must return a dict; got a {type(parts).__name__}")
    return config, parts


def table() -> str:
    """The fields as a Markdown table."""
    rows = ["| field | default | values | meaning |", "| --- | --- | --- | --- |"]
    for field in FIELDS:
        cells = (f"`{field.name}`", f"`{field.default!r}`", _values(field), field.meaning)
        rows.append(" | ".join(["", *cells, ""]).strip())
    return "\n".join(rows)


def plain_table() -> str:
    """The fields as plain text, for the scripts' help: defaults, meanings, units, choices."""
    lines = []
    for field in FIELDS:
        default, notes = f"  {field.name}={field.default}", field.unit
        if field.allowed and not isinstance(field.allowed, Range):
            notes = ", ".join(field.allowed)
        meaning = f"{field.meaning} ({notes})" if notes else field.meaning
        first, *more = textwrap.wrap(meaning, 52)
        lines += [f"{default:26}  {first}", *(f"{'':28}{line}" for line in more)]
    return "\n".join(lines)


def _values(field: Field) -> str:
    if field.allowed is None:
        return "True or False" if isinstance(field.default, bool) else "any text"
    if isinstance(field.allowed, Range):
        return f"{field.allowed} {field.unit}".strip()
    return ", ".join(field.allowed)
