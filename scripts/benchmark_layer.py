"""Times ghost batch normalisation against batch normalisation, as Markdown tables.

python scripts/benchmark_layer.py
python scripts/benchmark_layer.py --rounds 5      # fewer rounds, for a quick look

Each program is what a layer adds to a training step: it normalises, applies ReLU, updates the
running statistics, and returns the gradients of the input, scale and bias for a weighted sum of the
outputs. A column is one way of computing it: `flax.linen.BatchNorm`, `GhostBatchNorm`, and two that
are often written by hand, `BatchNorm` in a Python loop over the ghost batches and `BatchNorm` under
`jax.vmap` after a reshape. The number is the ghost batch size.

In each round every program is timed right after `BatchNorm`, and the ratio of the two is taken. The
tables give medians over rounds, and the middle half of the ratios.
"""

import argparse
import functools
import statistics
import time
import timeit

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

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
    """Returns a call of the compiled program, its temporary bytes, and seconds to compile."""
    x, weights = jax.random.normal(jax.random.key(0), (2, *shape), dtype)
    variables = nn.BatchNorm(use_running_average=False).init(jax.random.key(1), x)

    def step(variables, x, weights):
        def loss(params, x):
            y, updates = normalize(variables | {"params": params}, x)
            y = nn.relu(y)
            return (weights * y).sum(), (y, updates)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)

    jax.clear_caches()
    start = time.perf_counter()
    compiled = jax.jit(step).lower(variables, x, weights).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis().temp_size_in_bytes
    return lambda: jax.block_until_ready(compiled(variables, x, weights)), memory, seconds


def measure(ways, shape, dtype, rounds):
    """Returns, for each way, seconds per call and its ratio to the first way's in each round."""
    calls, memory, compilation = {}, {}, {}
    for name, normalize in ways.items():
        calls[name], memory[name], compilation[name] = prepare(normalize, shape, dtype)
        calls[name]()
    reference, *_ = calls.values()
    number = max(1, round(SECONDS / min(timeit.repeat(reference, number=1, repeat=5))))
    times = {name: [] for name in ways}
    ratios = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in calls.items():
            before = timeit.timeit(reference, number=number) / number
            times[name].append(timeit.timeit(call, number=number) / number)
            ratios[name].append(times[name][-1] / before)
    return {"times": times, "ratios": ratios, "memory": memory, "compilation": compilation}


def rows(result):
    """Returns the cells of one shape and dtype in each of the three tables."""
    (_, milliseconds), *others = (
        (name, 1e3 * statistics.median(times)) for name, times in result["times"].items()
    )
    ratios = []
    for name, _ in others:
        low, middle, high = statistics.quantiles(result["ratios"][name], method="inclusive")
        ratios.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
    return {
        "time": [f"{milliseconds:.2f} ms", *ratios],
        "memory": [f"{size / 1e6:.1f} MB" for size in result["memory"].values()],
        "compilation": [f"{seconds:.2f} s" for seconds in result["compilation"].values()],
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    parser.add_argument("--rounds", type=int, default=15, help="rounds (15), at least 2")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("argument --rounds: must be at least 2")
    jax.config.update("jax_enable_compilation_cache", False)
    device = jax.devices()[0].device_kind
    tables = {
        "time": f"Time; the others as a ratio to BatchNorm's (jax {jax.__version__}, flax "
        f"{flax.__version__}, {device})",
        "memory": "Temporary memory",
        "compilation": "Time to trace and compile",
    }
    cells = {}
    for shape in SHAPES:
        for dtype in DTYPES:
            key = f"{list(shape)} {dtype}"
            cells[key] = rows(measure(WAYS, shape, dtype, arguments.rounds))
    for table, title in tables.items():
        print(f"\n{title}:\n")
        print(f"| input | {' | '.join(WAYS)} |")
        print("|" + " --- |" * (1 + len(WAYS)))
        for key, of_input in cells.items():
            print(f"| {key} | {' | '.join(of_input[table])} |")


if __name__ == "__main__":
    main()
