"""Parts of a training recipe that a caller may replace by own ones."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import optax
from jax import Array

from jax_mnist.config import ConfigError

Loss = Callable[[Array, Array], Array]
MakeOptimizer = Callable[[Any], optax.GradientTransformation]
Augment = Callable[[Array, Array], Array]


class Overrides(NamedTuple):
    """What takes the place of a part that a config describes; None keeps that part.

    Compiled programs depend on these objects: equal ones share a program.

    Attributes:
      model: A network, called as `model(images, train)` with normalised images, float
        `[batch, 28, 28, 1]`, which returns logits `[batch, classes]`. It may have variables of the
        collection `batch_stats`, and draw random numbers from `dropout`.
      loss: Maps logits `[batch, classes]` and labels, int32 `[batch]`, to a scalar.
      optimizer: Makes the optimiser of one step, given the learning rate of that step, a scalar.
        The config's decay and momentum are not added to it.
      augment: Changes an image at random, `augment(key, image)`, before it is normalised: float32
        `[28, 28, 1]` in [0, 1]. The config's strengths of augmentation have no part in it.
    """

    model: nn.Module | None = None
    loss: Loss | None = None
    optimizer: MakeOptimizer | None = None
    augment: Augment | None = None

    def check(self) -> None:
        """Validates the parts.

        Raises:
          ConfigError: One of them is of the wrong kind, or cannot be hashed; the message names it.
        """
        for name, part in self._asdict().items():
            if part is None:
                continue
            if name == "model" and not isinstance(part, nn.Module):
                raise ConfigError(f"model must be a Flax module, such as CNN(); got {part!r:.64}")
            if not callable(part):
                raise ConfigError(f"{name} must be a function; got {part!r:.64}")
            try:
                hash(part)
            except TypeError as error:
                raise ConfigError(
                    f"{name} must be hashable; got a {type(part).__name__}"
                ) from error

    def names(self) -> dict[str, str]:
        """Names of the parts that are given: the same in every process, without addresses.

        A module is named after its class and the fields that differ from their defaults, and a
        function after itself: two functions of one name are not told apart.
        """
        return {name: _name(part) for name, part in self._asdict().items() if part is not None}


AS_CONFIGURED = Overrides()


def make_overrides(parts: Mapping[str, Any]) -> Overrides:
    """The overrides of these names, as a config file's `get_parts()` returns them.

    Raises:
      ConfigError: There is no such part, or see `Overrides.check`.
    """
    if unknown := sorted(parts.keys() - set(Overrides._fields)):
        known = ", ".join(Overrides._fields)
        raise ConfigError(f"there is no part {unknown[0]!r:.64}: get_parts() may return {known}")
    overrides = Overrides(**parts)
    overrides.check()
    return overrides


def _name(part: Any) -> str:
    text = getattr(part, "__qualname__", None) or repr(part)
    if isinstance(part, nn.Module):
        fields = [f for f in dataclasses.fields(part) if f.name not in ("parent", "name")]
        values = {f.name: getattr(part, f.name) for f in fields}
        changes = [f"{f.name}={values[f.name]!r}" for f in fields if values[f.name] != f.default]
        text = f"{type(part).__name__}({', '.join(changes)})"
    return " ".join(re.sub(r" at 0x[0-9a-f]+", "", text).split())
