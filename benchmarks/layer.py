"""Times ghost batch normalisation against batch normalisation, and prints CSV.

python benchmarks/layer.py

Each program is what a layer adds to a training step: it normalises, applies ReLU, updates the
running statistics, and returns the gradients of the input, scale and bias for a weighted sum of the
outputs. The ways of computing it are `flax.linen.BatchNorm`, `GhostBatchNorm`, and two that are
often written by hand, `BatchNorm` in a Python loop over the ghost batches and under `jax.vmap`
after a reshape. The number is the ghost batch size.

In each round every program is timed right after `BatchNorm`, and the ratio of the two is taken. The
columns are the median of the milliseconds, the median and the middle half of the ratios, and the
megabytes of temporary memory.
"""

import functools
import itertools
import timeit

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from terminal import parser, print_csv, say, whole

from jax_mnist import GhostBatchNorm

SHAPES = ((128, 28, 28, 16), (256, 8, 8, 256), (512, 1024), (64, 128, 256))
DTYPES = ("float32", "bfloat16")
SECONDS = 0.05  # that each program runs in a round


# Each takes the variables of a `flax.linen.BatchNorm`, and returns the output and the updates.


def batch(variables, x):
    norm = nn.BatchNorm(use_running_average=False, dtype=x.dtype)
    return norm.apply(variables, x, mutable=["batch_stats"])


def ghost(variables, x, size):
    norm = GhostBatchNorm(use_running_average=False, dtype=x.dtype, ghost_batch_size=size)
    return norm.apply(variables, x, mutable=["batch_stats"])


def loop(variables, x, size):
    parts = []
    for part in jnp.split(x, len(x) // size):
        y, updates = batch(variables, part)
        variables = variables | updates
        parts.append(y)
    return jnp.concatenate(parts), updates


def vmap(variables, x, size):
    y, updates = jax.vmap(batch, in_axes=(None, 0))(variables, x.reshape(-1, size, *x.shape[1:]))
    return y.reshape(x.shape), jax.tree.map(lambda s: s.mean(0), updates)


WAYS = {"BatchNorm": batch}
WAYS |= {f"ghosts of {n}": functools.partial(ghost, size=n) for n in (8, 16, 32, 64)}
WAYS |= {f"loop, {n}": functools.partial(loop, size=n) for n in (8, 32)}
WAYS |= {f"vmap, {n}": functools.partial(vmap, size=n) for n in (8, 32)}


def prepare(normalize, shape, dtype):
    """Returns a call of the compiled program, and the megabytes of its temporary memory."""
    x, weights = jax.random.normal(jax.random.key(0), (2, *shape), dtype)
    variables = nn.BatchNorm(use_running_average=False).init(jax.random.key(1), x)

    def step(variables, x, weights):
        def loss(params, x):
            y, updates = normalize(variables | {"params": params}, x)
            y = nn.relu(y)
            return (weights * y).sum(), (y, updates)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)

    compiled = jax.jit(step).lower(variables, x, weights).compile()
    megabytes = compiled.memory_analysis().temp_size_in_bytes / 1e6
    return lambda: jax.block_until_ready(compiled(variables, x, weights)), megabytes


def measure(ways, shape, dtype, rounds):
    """The rows of one shape and dtype; ratios are to the first of the ways."""
    programs = {name: prepare(normalize, shape, dtype) for name, normalize in ways.items()}
    for call, _ in programs.values():
        call()
    reference, _ = next(iter(programs.values()))
    number = max(1, round(SECONDS / min(timeit.repeat(reference, number=1, repeat=5))))
    times, ratios = ({name: [] for name in ways} for _ in range(2))
    for _ in range(rounds):
        for name, (call, _) in programs.items():
            before = timeit.timeit(reference, number=number) / number
            times[name].append(timeit.timeit(call, number=number) / number)
            ratios[name].append(times[name][-1] / before)
    rows = []
    for name, (_, megabytes) in programs.items():
        low, middle, high = np.quantile(ratios[name], (0.25, 0.5, 0.75))
        rows.append({
            "input": f"{list(shape)} {dtype}", "layer": name,
            "milliseconds": 1e3 * np.median(times[name]),
            "low": low, "relative_time": middle, "high": high, "megabytes": megabytes,
        })  # fmt: skip
    return rows


def main():
    flags = parser(__doc__)
    flags.add_argument("--rounds", type=whole(2), default=9, help="rounds (9)")
    rounds = flags.parse_args().rounds
    rows = []
    for shape, dtype in itertools.product(SHAPES, DTYPES):
        say(f"{list(shape)} {dtype}")
        rows += measure(WAYS, shape, dtype, rounds)
    print_csv(rows)


if __name__ == "__main__":
    main()
