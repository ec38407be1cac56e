"""Trains the same recipe in PyTorch and in this program, and compares the accuracies.

python scripts/parity.py                # needs pip install -e '.[benchmark]'

The recipe has batch norm, a one-cycle learning rate, warped images, L2 decay and averaged weights.
Random numbers differ between the two, so that accuracies agree only as far as seeds do. A run takes
one core. If interrupted, run the same command again: finished runs are kept.
"""

import csv
import functools
import io
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import scipy.stats
from absl import flags
from command_line import fail, run

from jax_mnist import config as config_lib
from jax_mnist import files
from jax_mnist.analysis import table
from jax_mnist.data import datasets
from jax_mnist.runs import study, workers

_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of each program.", lower_bound=2)
_EPOCHS = flags.DEFINE_integer("epochs", 10, "Length of the training.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", "runs/parity", "Folder of the results.")


def recipe(epochs):
    config = config_lib.base()
    config.update(epochs=epochs, l2=1e-4, ema=0.998)
    config.update(rotation=10.0, shift=2.0, scale=0.1, shear=8.0)
    return config


def torch_accuracy(epochs, seed, path):
    """The accuracy in per cent, from its file or by training on one core."""
    if not path.exists():
        import torch
        from peers import torch_recipe

        torch.set_num_threads(1)
        data = {}
        for split in ("train", "test"):
            data[f"{split}_images"], data[f"{split}_labels"] = datasets.load("mnist", split)
        accuracy = 100 * torch_recipe.train(data, recipe(epochs), seed)
        files.write_atomically(path, f"{accuracy}\n".encode())
    return float(path.read_text())


def main(arguments):
    if arguments:
        fail(f"takes flags only; got {' '.join(arguments)}")
    try:
        import torch  # noqa: F401
    except ImportError:
        fail("PyTorch is missing: python -m pip install -e '.[benchmark]'")
    folder, seeds, epochs = Path(_WORKDIR.value), range(_SEEDS.value), _EPOCHS.value
    records = study.train_all(study.paired_runs({"jax_mnist": recipe(epochs)}, len(seeds), folder))
    ours = [*table.of_records(records).accuracy_percent]
    paths = [folder / "torch" / f"seed-{seed}.txt" for seed in seeds]
    spawn = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    with ProcessPoolExecutor(len(workers.cores(len(seeds))), spawn) as pool:
        theirs = [*pool.map(functools.partial(torch_accuracy, epochs), seeds, paths)]
    text = io.StringIO()
    rows = [["seed", "jax_mnist", "torch"]]
    rows += [
        [seed, round(a, 4), round(b, 4)] for seed, a, b in zip(seeds, ours, theirs, strict=True)
    ]
    csv.writer(text, lineterminator="\n").writerows(rows)
    files.write_atomically(folder / "parity.csv", text.getvalue().encode())
    for name, values in (("jax_mnist", ours), ("torch", theirs)):
        mean, low, high, _ = table.estimate(values).values()
        each = ", ".join(f"{value:.2f}" for value in values)
        print(f"{name:9}  {mean:.3f} % (95 % interval {low:.3f} to {high:.3f}); {each}")
    test = scipy.stats.ttest_ind(ours, theirs, equal_var=False)
    low, high = test.confidence_interval()
    print(
        f"difference {sum(ours) / len(ours) - sum(theirs) / len(theirs):+.3f} percentage points "
        f"(95 % interval {low:+.3f} to {high:+.3f}, p = {test.pvalue:.3f}, Welch's t-test)"
    )


if __name__ == "__main__":
    run(main)
