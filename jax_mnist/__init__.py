"""A regularisation study of a tiny MNIST network, as one pure function per experiment."""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax_mnist.nn.ghost_batch_norm import GhostBatchNorm
    from jax_mnist.training.optim import add_l1_decay

__all__ = ["GhostBatchNorm", "__version__", "add_l1_decay"]

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
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
