"""What the benchmarks call of jax_mnist: nothing else in this folder knows its internals."""

import contextlib
import sys

import numpy as np

from jax_mnist import config as config_lib
from jax_mnist.data import datasets
from jax_mnist.nn.kernels import PLAIN
from jax_mnist.runs import compiler, loop, study


def config(**fields):
    """The default config with other values of some fields."""
    base = config_lib.base()
    base.update(fields)
    return base


def mnist():
    """The images and labels of both splits: `train_images`, `train_labels` and so on."""
    return {
        f"{split}_{part}": np.asarray(array)
        for split in ("train", "test")
        for part, array in datasets.load("mnist", split)._asdict().items()
    }


def training(steps, replicas=1, xla_convolutions=False, **fields):
    """Trains epochs of some steps without an end, on the device that JAX chooses.

    Yields after each call of the compiled program: at the end of an epoch the accuracy of the first
    replica, else None.
    """
    compiler.configure()
    settings = config(epochs=1000, **fields)
    settings.train_split = f"train[:{steps * settings.batch_size}]"
    job, start = loop.build(study.paired_runs({"benchmark": study.Variant(settings)}, replicas, ""))
    if xla_convolutions:
        model = job.recipe.model.clone(kernels=PLAIN)
        job = job._replace(recipe=job.recipe._replace(model=model))
    for progress in loop.advance(job, start):
        ended = progress.step % job.steps_per_epoch == 0
        yield float(progress.epochs[-1]["validation_accuracy"][0]) if ended else None


def accuracies(settings, seeds, folder):
    """The accuracy in per cent of each seed, from the folder or by training on every core."""
    runs = study.paired_runs({"jax_mnist": study.Variant(settings)}, seeds, folder)
    with contextlib.redirect_stdout(sys.stderr):  # how far it is
        records = study.train_all(runs)
    return [100 * record["metrics"]["validation_accuracy"][-1] for record in records]
