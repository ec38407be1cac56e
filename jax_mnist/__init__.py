"""A regularisation study of a tiny MNIST network, as one pure function per experiment."""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax_mnist.nn.ghost_batch_norm import GhostBatchNorm
    from jax_mnist.training.optim import add_l1_decay

__all__ = ["GhostBatchNorm", "__version__", "add_l1_decay"]

_FOLDERS = ("analysis", "config", "data", "inference", "nn", "runs", "training")
_HOMES = {
    "GhostBatchNorm": "jax_mnist.nn.ghost_batch_norm",
    "add_l1_decay": "jax_mnist.training.optim",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that `import jax_mnist` imports nothing else."""
    if name == "__version__":
        return metadata.version("jax_mnist")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _FOLDERS:
        return import_module(f"jax_mnist.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_FOLDERS])
