"""Tells what recomputed statistics of the norms are worth, as CSV.

python scripts/recompute_statistics.py runs/gbn runs/study/*

Each folder holds one finished run, or several seeds; it is only read. Running
statistics come from augmented images and from the weights of earlier steps, and
those of ghost norm from ghost batches. Here each network is evaluated on its
validation images with these, and with the statistics of 10,000 of its training
images as they are ("Rethinking 'Batch' in BatchNorm", arXiv:2105.07576,
section 3).
"""

import csv
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from command_line import fail, run
from jax import Array

from jax_mnist.data import datasets
from jax_mnist.nn.cnn import CNN, BatchNorm
from jax_mnist.nn.xla import jit
from jax_mnist.runs import compiler, trained
from jax_mnist.training import evaluation
from jax_mnist.training.augment import Normalization, normalize

IMAGES, BATCH = 10_000, 200
COLUMNS = ("run", "seed", "accuracy_percent", "recomputed", "loss", "recomputed_loss")


@functools.partial(jit, static_argnames=("model", "normalization"))
def recomputed(
    model: CNN, variables: dict[str, Any], images: Array, normalization: Normalization
) -> dict[str, Any]:
    """The variables with the mean and variance of each norm's inputs, over all images.

    Within a batch of at most `BATCH` images, each norm uses the statistics of that batch.

    Args:
      model: The network. Its norms are taken for batch norms.
      variables: `{"params": ..., "batch_stats": ...}`.
      images: uint8 `[n, 28, 28, 1]`; what is left of the last batch is not used.
      normalization: The constants used in training.
    """
    # Without momentum, the running statistics become those of the batch.
    model = model.clone(norm=functools.partial(BatchNorm, momentum=0.0))
    size = min(BATCH, len(images))
    steps = len(images) // size
    images = images[: steps * size].reshape(steps, size, 28, 28, 1)
    found = jax.lax.map(functools.partial(_of_batch, model, variables, normalization), images)
    pooled = {
        name: {
            "mean": norm["mean"].mean(0),
            "var": norm["var"].mean(0) + norm["mean"].var(0),
        }
        for name, norm in found.items()
    }
    return {**variables, "batch_stats": pooled}


def _of_batch(
    model: CNN, variables: dict[str, Any], normalization: Normalization, images: Array
) -> dict[str, Any]:
    x = normalize(images.astype(jnp.float32) / 255, *normalization)
    _, changed = model.apply(variables, x, train=True, mutable=["batch_stats"])
    return changed["batch_stats"]


def rows(folder):
    """The row of each network in a folder."""
    network = trained.load(folder)
    config = network.records[0]["config"]
    train, validation = (
        datasets.load(config["dataset"], split, config["data_dir"], config["source_dir"])
        for split in (config["train_split"], config["validation_split"])
    )
    number = min(IMAGES, len(train.images))
    spread = np.arange(number) * len(train.images) // number  # over all training images
    images = train.images[spread]
    for place, record in enumerate(network.records):
        variables = jax.tree.map(lambda leaf, at=place: leaf[at], network.variables)
        new = recomputed(network.model, variables, images, network.normalization)
        found = [
            evaluation.evaluate(network.model, v, validation, normalization=network.normalization)
            for v in (variables, new)
        ]
        accuracies = [f"{100 * one.accuracy:.6g}" for one in found]
        yield [folder, record["seed"], *accuracies, *(f"{one.loss:.6g}" for one in found)]


def main(arguments):
    if not arguments:
        fail("name one or more folders of finished runs")
    compiler.configure()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for folder in arguments:
        try:
            writer.writerows(rows(folder))
        except ValueError as error:
            fail(error)
        sys.stdout.flush()


if __name__ == "__main__":
    run(main)
