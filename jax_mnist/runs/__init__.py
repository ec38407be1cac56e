"""A run on the host: its folder, the loop, checkpoints, the record, everything that it writes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax_mnist.runs.trainer import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    """Imports `train` on first use, so that importing a module of this package stays cheap."""
    if name == "train":
        from jax_mnist.runs.trainer import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
