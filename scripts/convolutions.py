"""Times training with XLA's own convolutions against those of the default backend.

python scripts/convolutions.py              # for 1 and 32 replicas

Each of the two trains epochs of 104 steps on 128 images, in turns; the first is not counted.
"""

import argparse
import statistics
import time
from pathlib import Path

from jax_mnist import config as config_lib
from jax_mnist.nn.kernels import PLAIN, for_backend
from jax_mnist.runs import compiler, loop
from jax_mnist.runs.run import Run

ROUNDS = 5


def epochs(kernels, replicas, steps):
    """Yields the seconds of one epoch after another."""
    runs = []
    for seed in range(replicas):
        config = config_lib.base()
        config.update(seed=seed, epochs=1000, train_split=f"train[:{128 * steps}]")
        runs.append(Run("", config, Path()))
    program, begin = loop.build(runs)
    model = program.recipe.model.clone(kernels=kernels)
    program = program._replace(recipe=program.recipe._replace(model=model))
    start = time.perf_counter()
    for progress in loop.training(program, begin):
        if progress.step % program.steps_per_epoch == 0:
            yield time.perf_counter() - start
            start = time.perf_counter()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 32], help="(1 32)")
    parser.add_argument("--steps", type=int, default=104, help="training steps of an epoch (104)")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    arguments = parser.parse_args()
    compiler.configure()
    print("| replicas | XLA's own, s | the default, s | time relative to XLA's own |")
    print("| --- | --- | --- | --- |")
    for replicas in arguments.replicas:
        both = [epochs(k, replicas, arguments.steps) for k in (PLAIN, for_backend())]
        rounds = [[next(of_one) for of_one in both] for _ in range(ROUNDS + 1)][1:]
        plain, default = map(statistics.median, zip(*rounds, strict=True))
        ratio = statistics.median(b / a for a, b in rounds)
        print(f"| {replicas} | {plain:.3f} | {default:.3f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
