"""A run on the host: its folder, the loop, checkpoints, the record, everything that it writes."""

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax_mnist.runs.trainer import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    """Imports `train` and modules on first use, so that importing one of them stays cheap."""
    if name == "train":
        from jax_mnist.runs.trainer import train

        return train
    if name in __dir__():
        return import_module(f"jax_mnist.runs.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *(module.name for module in pkgutil.iter_modules(__path__))])
