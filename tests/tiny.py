"""A network that compiles in a moment, to test what is around the network.

`python tests/tiny.py scripts/train.py ...` runs a script with it, in worker processes too.
"""

import contextlib
import dataclasses
import os
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from norm_reference import inference
from rounding import Rounded

from jax_mnist import config as config_lib
from jax_mnist.nn.ghost_batch_norm import GhostBatchNorm
from jax_mnist.training import augment, recipe

ROOT = Path(__file__).parents[1]


class Tiny(nn.Module):
    """Averages over 4x4 parts of an image, normalises and classifies them."""

    norm: str
    ghost_batch_size: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x, train, dropout=None):
        x = x.reshape(len(x), 4, 7, 4, 7).mean((2, 4)).reshape(len(x), 16)
        common = {"use_running_average": not train, "momentum": 0.5, "axis_name": self.axis_name}
        if self.norm == "ghost":
            x = GhostBatchNorm(ghost_batch_size=self.ghost_batch_size, **common)(x)
        else:
            x = nn.BatchNorm(**common)(x)
        if dropout is not None:
            x *= dropout.factors(16)
        return nn.Dense(10)(x)


def rounded_logits(variables, images, normalization=augment.MNIST):
    """Those of `Tiny` with ghost batch norm in inference, of uint8 images, in float64."""
    x = (Rounded(images) / 255 - normalization.mean) / normalization.std
    x = x.rearranged(lambda a: a.reshape(len(a), 4, 7, 4, 7)).mean((2, 4))
    dense = variables["params"]["Dense_0"]
    of_norm = {kind: tree["GhostBatchNorm_0"] for kind, tree in variables.items()}
    x = inference(of_norm, x.rearranged(lambda a: a.reshape(len(a), 16)))
    return (x.rearranged(lambda a: a[:, :, None]) * dense["kernel"]).sum(1) + dense["bias"]


@contextlib.contextmanager
def network(quickly_compiled=True):
    """Makes the program train `Tiny`, compiled quickly if little is trained with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            recipe,
            "make_model",
            lambda config, axis_name=None: Tiny(config.norm, config.ghost_batch_size, axis_name),
        )
        with compiled_quickly(quickly_compiled):
            yield


@contextlib.contextmanager
def compiled_quickly(quickly=True):
    """Compiles without most of XLA's optimisations: for what runs little."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", quickly)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def config(**fields):
    """Two epochs of four steps."""
    small = config_lib.base()
    small.update(
        train_split="train[:300]",
        validation_split="test[:150]",
        epochs=2,
        batch_size=64,
        norm="ghost",
        ghost_batch_size=8,
        ema=0.5,
        data_devices=1,
    )
    small.update(**fields)
    return small


def wide(tree):
    """With float64 for float32: a step of such a state is computed in float64, where JAX may."""
    return jax.tree.map(lambda a: a.astype(float) if a.dtype == jnp.float32 else a, tree)


def copy_of(progress):
    """A copy of a `loop.Progress`: the next call of the program takes the state's own arrays."""
    return dataclasses.replace(progress, state=jax.tree.map(jnp.copy, progress.state))


def without_times(record):
    metrics = {k: v for k, v in record["metrics"].items() if k != "seconds"}
    return record | {"metrics": metrics}


if __name__ in ("__main__", "__mp_main__"):  # the latter in worker processes
    _used = network("QUICKLY_COMPILED" in os.environ)  # kept, or it would end at once
    _used.__enter__()
if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    exec(compile(Path(sys.argv[0]).read_text(), sys.argv[0], "exec"))
