"""Digests of training: 20 steps of several recipes, from real MNIST.

python tests/training/golden.py              # prints them for this version of JAX
python tests/training/golden.py --write      # puts them into golden.json
python tests/training/golden.py bn all       # some of the recipes
python tests/training/golden.py --steps=2    # after fewer steps

They are to be the same on every x86-64 processor with AVX2 and FMA, whatever its number of cores.
"""

import argparse
import hashlib
import json
import runpy
from pathlib import Path

import jax
import numpy as np

from jax_mnist import config as config_lib
from jax_mnist.runs import compiler, loop
from jax_mnist.runs.folder import Run
from jax_mnist.training.step import train_steps

FILE = Path(__file__).with_suffix(".json")
BEST = Path(__file__).parents[2] / "configs/best.py"
STEPS = 20
REGULARIZERS = {
    "l1": {"l1": 1e-5},
    "l2": {"l2": 5e-4},
    "dropout": {"dropout": 0.05},
    "label_smoothing": {"label_smoothing": 0.05},
    "mixup": {"mixup": 0.1},
    "cutout": {"cutout": 6.0},
    "elastic": {"elastic": 1.4},
    "sam": {"sam": 0.05},
    "ema": {"ema": 0.99},
}
RECIPES = {
    "bn": {},
    "gbn": {"norm": "ghost"},
    "best": runpy.run_path(str(BEST))["get_config"](),
    "all": {"norm": "ghost"} | {k: v for row in REGULARIZERS.values() for k, v in row.items()},
    **REGULARIZERS,
}


def digest(recipe, steps):
    """SHA-256 of the weights, statistics, optimiser and losses after the steps."""
    config = config_lib.base()
    config.update(RECIPES[recipe])
    config.update(train_split=f"train[:{STEPS * config.batch_size}]", epochs=1)
    job, begin = loop.build([Run("", config, Path())])
    order = np.arange(steps * config.batch_size, dtype=np.int32).reshape(1, steps, -1)
    after = train_steps(job.recipe, job.hyper, begin.state, job.train, order)
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(after):
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            sha.update(np.asarray(leaf).tobytes())
    return sha.hexdigest()[:16]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", nargs="*", default=[*RECIPES])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    if arguments.write and arguments.steps != STEPS:
        parser.error(f"golden.json holds digests after {STEPS} steps")
    compiler.configure()
    digests = {name: digest(name, arguments.steps) for name in arguments.recipes}
    print(json.dumps(digests, indent=2))
    if arguments.write:
        known = json.loads(FILE.read_text()) if FILE.exists() else {}
        known[jax.__version__] = known.get(jax.__version__, {}) | digests
        FILE.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
