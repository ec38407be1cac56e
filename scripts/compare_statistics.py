"""Compares the rules for the running statistics of ghost batch norm, as a Markdown table.

python scripts/compare_statistics.py

The rules change inference alone. So each network is trained once, while running statistics are kept
by every rule, and then classifies the 10,000 training images that were held out with each of them.
The dense network has no spatial axes, so the variance of its small ghost batches is far too small
on average; a channel of the convolutional one has at least 16 positions an image.
"""

import argparse
import functools
import statistics
from collections.abc import Callable
from typing import get_args

import flax.linen as nn
import jax
import numpy as np
import optax

from jax_mnist import GhostBatchNorm
from jax_mnist.data import datasets
from jax_mnist.nn.cnn import CNN
from jax_mnist.nn.ghost_batch_norm import StatsUpdate

RULES = get_args(StatsUpdate)


class Dense(nn.Module):
    """Two hidden layers of 256 units, with a norm before each ReLU."""

    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, train):
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(self.norm(use_running_average=not train)(nn.Dense(256)(x)))
        return nn.Dense(10)(x)


def trained(models, images, labels, *, seed, epochs, batch_size):
    """Trains once; returns parameters, and running statistics by every rule."""
    steps = epochs * (len(images) // batch_size)
    optimizer = optax.sgd(optax.cosine_onecycle_schedule(steps, 0.1), momentum=0.9, nesterov=True)
    variables = models["mean"].init(jax.random.key(seed), images[:2], train=False)
    params, start = variables["params"], variables["batch_stats"]

    def loss(params, stats, images, labels):
        def forward(rule):  # XLA computes what the rules have in common once
            inputs = {"params": params, "batch_stats": stats[rule]}
            return models[rule].apply(inputs, images, train=True, mutable=["batch_stats"])

        results = {rule: forward(rule) for rule in RULES}
        losses = optax.softmax_cross_entropy_with_integer_labels(results["mean"][0], labels)
        return losses.mean(), {
            rule: updates["batch_stats"] for rule, (_, updates) in results.items()
        }

    @jax.jit
    def step(params, stats, state, images, labels):
        gradient, stats = jax.grad(loss, has_aux=True)(params, stats, images, labels)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), stats, state

    stats, state = dict.fromkeys(RULES, start), optimizer.init(params)
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        for batch in rng.permutation(len(images))[: steps // epochs * batch_size].reshape(
            -1, batch_size
        ):
            params, stats, state = step(params, stats, state, images[batch], labels[batch])
    return params, stats


def evaluated(model, params, stats, images, labels):
    """The mean loss, and the share of images that are misclassified, in per cent."""
    logits = model.apply({"params": params, "batch_stats": stats}, images, train=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return float(losses.mean()), 100 * float((logits.argmax(-1) != labels).mean())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32])
    flags = parser.parse_args()
    train, held_out = (
        (np.float32(data.images / 255 - 0.1307) / 0.3081, np.asarray(data.labels))
        for data in (
            datasets.load("mnist", split) for split in ("train[:-10000]", "train[-10000:]")
        )
    )
    print(f"| network | ghost batch | {' | '.join(f'{r}: loss | error, %' for r in RULES)} |")
    print("| --- | --- |" + " --- | --- |" * len(RULES))
    for name, network in (("dense", Dense), ("convolutional", CNN)):
        for size in flags.sizes:
            models = {
                rule: network(
                    norm=functools.partial(GhostBatchNorm, ghost_batch_size=size, stats_update=rule)
                )
                for rule in RULES
            }
            results = {rule: [] for rule in RULES}
            for seed in range(flags.seeds):
                params, stats = trained(
                    models, *train, seed=seed, epochs=flags.epochs, batch_size=flags.batch_size
                )
                for rule in RULES:
                    results[rule].append(evaluated(models[rule], params, stats[rule], *held_out))
            cells = [
                f"{statistics.mean(losses):.4f} | {statistics.mean(errors):.2f}"
                for losses, errors in (zip(*results[rule], strict=True) for rule in RULES)
            ]
            print(f"| {name} | {size} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
