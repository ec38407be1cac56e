"""Trains the same recipe in PyTorch and in this program, and compares the accuracies.

python benchmarks/parity.py                 # needs pip install -e '.[benchmark]'

The recipe has batch norm, a one-cycle learning rate, warped images, L2 decay and averaged weights.
Random numbers differ between the two, so that accuracies agree only as far as seeds do. A run takes
one core. If interrupted, run the same command again: finished runs are in the folder.
"""

import functools
import importlib.util
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import package
import scipy.stats
from terminal import parser, print_csv, say, whole

RECIPE = {"l2": 1e-4, "ema": 0.998, "rotation": 10.0, "shift": 2.0, "scale": 0.1, "shear": 8.0}


def torch_accuracy(config, folder, seed):
    """The accuracy in per cent, from its file or by training on one core."""
    file = folder / "torch" / f"seed-{seed}.txt"
    if not file.exists():
        import torch
        from peers import torch_recipe

        torch.set_num_threads(1)
        accuracy = 100 * torch_recipe.train(package.mnist(), config, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{accuracy}\n")
    return float(file.read_text())


def main():
    flags = parser(__doc__)
    flags.add_argument("--seeds", type=whole(2), default=3, help="of each program (3)")
    flags.add_argument("--epochs", type=whole(1), default=10, help="of each training (10)")
    flags.add_argument("--workdir", type=Path, default="runs/parity", help="(runs/parity)")
    arguments = flags.parse_args()
    if importlib.util.find_spec("torch") is None:
        flags.error("PyTorch is missing: python -m pip install -e '.[benchmark]'")
    config = package.config(epochs=arguments.epochs, **RECIPE)
    folder, seeds = arguments.workdir, range(arguments.seeds)
    ours = package.accuracies(config, len(seeds), folder)
    spawn = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), spawn) as pool:
        theirs = [*pool.map(functools.partial(torch_accuracy, config, folder), seeds)]
    pairs = zip(seeds, ours, theirs, strict=True)
    print_csv([{"seed": seed, "jax_mnist": a, "torch": b} for seed, a, b in pairs])
    test = scipy.stats.ttest_ind(ours, theirs, equal_var=False)
    low, high = test.confidence_interval()
    say(
        f"difference {sum(ours) / len(ours) - sum(theirs) / len(theirs):+.3f} percentage points "
        f"(95 % interval {low:+.3f} to {high:+.3f}, p = {test.pvalue:.3f}, Welch's t-test)"
    )


if __name__ == "__main__":
    main()
