"""Times this program and its PyTorch peers in turns, on the same images, and prints CSV.

python benchmarks/benchmark.py              # the peers need pip install -e '.[benchmark]'
python benchmarks/benchmark.py --study      # a run on each core at the same time, as in a study

Each program runs in a process of its own, which is idle while another is measured. An epoch is 468
training steps on 128 augmented images, and the evaluation of the 10,000 test images. The first
epoch of each program is not counted.

Columns: the median, fastest and slowest seconds of an epoch; images trained on in a second; the
median of the ratios to the first program's time in the same round; the seconds from the start of
the process to the end of the first steps, with nothing compiled before and with the caches of the
first run; the most memory of a process; the accuracy after the last epoch.
"""

import functools
import importlib
import importlib.util
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from terminal import parser, print_csv, say, whole

BATCH = 128
COLUMNS = ("seconds", "accuracy", "megabytes")  # of an epoch: in per cent, the most until then


# The programs. Each is a function of the arrays of MNIST (None if it loads its own) and the number
# of training steps in an epoch. It returns two functions: the first takes one step (ours those of
# one call), the second trains an epoch, evaluates and returns the accuracy.


def ours(**options):
    def prepare(data, steps):
        import package

        training = package.training(steps, batch_size=BATCH, **options)
        return lambda: next(training), lambda: next(a for a in training if a is not None)

    return prepare


def peer(name, **options):
    def prepare(data, steps):
        return importlib.import_module(f"peers.{name}").prepare(data, steps, **options)

    return prepare


PROGRAMS = {
    "jax_mnist, bn": ours(norm="batch"),
    "jax_mnist, gbn": ours(norm="ghost"),
    "torch, compiled": peer("torch_resident", compiled=True),
    "torch, compiled, channels last": peer("torch_resident", compiled=True, channels_last=True),
    "torch, eager": peer("torch_resident"),
    "torch, DataLoader": peer("torch_loader"),
}
REPLICAS = {}
if shutil.which("nvidia-smi"):  # where replicas train at once, and cuDNN could convolve
    for replicas, xla_convolutions in ((1, True), (32, True), (32, False), (160, False)):
        name = f"jax_mnist, bn, replicas: {replicas}" + ", cuDNN" * xla_convolutions
        PROGRAMS[name] = ours(replicas=replicas, xla_convolutions=xla_convolutions)
        REPLICAS[name] = replicas


def peak_megabytes(name):
    """The most memory of a GPU, or of the process and its largest child."""
    if name.startswith("torch"):
        import torch

        on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    else:
        import jax

        on_gpu = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return on_gpu / 1e6 or sum(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1e3


# What the process of a program is told to do.


@functools.cache
def prepared(name, steps, data_file):
    """The two functions of a program."""
    sys.stdout = sys.stderr  # the table alone goes to standard output
    data = dict(np.load(data_file)) if name.startswith("torch") else None
    return PROGRAMS[name](data, steps)


def first_step(*program):
    prepared(*program)[0]()


def epoch(*program):
    """Trains an epoch and returns what `COLUMNS` says."""
    start = time.perf_counter()
    accuracy = prepared(*program)[1]()
    return time.perf_counter() - start, 100 * accuracy, peak_megabytes(program[0])


class Team:
    """The processes of a program, which work at the same time: one, or one on each core."""

    def __init__(self, *program, cores):
        say(f"starting {program[0]}")
        spawn = multiprocessing.get_context("spawn")
        self.program, self.processes = program, []
        for core in cores:  # to be set before anything counts the cores
            pin = () if core is None else (os.sched_setaffinity, (0, {core}))
            self.processes.append(ProcessPoolExecutor(1, spawn, *pin))
        start = time.perf_counter()
        self.do(first_step)
        self.first_step = time.perf_counter() - start

    def do(self, function):
        """The results of all processes."""
        results = [process.submit(function, *self.program) for process in self.processes]
        try:
            return [result.result() for result in results]
        except Exception as error:
            error.add_note(f"The program that failed is {self.program[0]!r}.")
            raise

    def close(self):
        """Ends the processes, and returns the seconds of their first step."""
        for process in self.processes:
            process.shutdown()
        return self.first_step


def measure(names, steps, rounds, data_file, cores):
    """The seconds of each program's first step and of its second run's, and its epochs' numbers."""
    teams = {name: Team(name, steps, data_file, cores=cores) for name in names}
    epochs = {name: [] for name in names}
    for number in range(rounds + 1):
        say(f"round {number} of {rounds}" if number else "warming up")
        for name, team in teams.items():
            epochs[name].append(np.max(team.do(epoch), axis=0))
    first_steps = {name: team.close() for name, team in teams.items()}
    second_runs = {name: Team(name, steps, data_file, cores=cores).close() for name in names}
    return first_steps, second_runs, {name: epochs[name][1:] for name in names}


def table(first_steps, second_runs, epochs, images):
    """The table, of what `measure` returns and of the images in an epoch."""
    epochs = {name: pd.DataFrame(rows, columns=COLUMNS) for name, rows in epochs.items()}
    epochs = pd.concat(epochs, axis="columns").swaplevel(axis="columns")
    seconds, last = epochs["seconds"], epochs.iloc[-1]
    replicas = pd.Series({name: REPLICAS.get(name, 1) for name in seconds})
    return pd.DataFrame({
        "seconds": seconds.median(),
        "fastest": seconds.min(),
        "slowest": seconds.max(),
        "images_per_second": (images * replicas / seconds.median()).round().astype(int),
        "relative_time": seconds.div(seconds.iloc[:, 0], axis="index").median(),
        "first_step_seconds": first_steps,
        "second_run_seconds": second_runs,
        "megabytes": last["megabytes"].round().astype(int),
        "accuracy_percent": last["accuracy"],
    }).rename_axis("program").reset_index()  # fmt: skip


def main():
    flags = parser(__doc__)
    most = 60_000 // BATCH
    flags.add_argument("--rounds", type=whole(1), default=5, help="epochs measured (5)")
    flags.add_argument("--steps", type=whole(1, most), default=most, help=f"in each ({most})")
    flags.add_argument("--study", action="store_true", help="a run on each core at the same time")
    arguments = flags.parse_args()
    with_torch = importlib.util.find_spec("torch") is not None
    names = [name for name in PROGRAMS if with_torch or not name.startswith("torch")]
    if not with_torch:
        say("without PyTorch, which is missing: python -m pip install -e '.[benchmark]'")
    cores = sorted(os.sched_getaffinity(0)) if arguments.study else [None]
    with tempfile.TemporaryDirectory() as folder:
        import package

        data_file = Path(folder) / "mnist.npz"
        np.savez(data_file, **package.mnist())
        # Caches of this benchmark alone, so that a first run compiles everything.
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
        os.environ |= {"XDG_CACHE_HOME": folder, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/torch"}
        # No more of a GPU's memory than is needed, since the programs share it.
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        if arguments.study:
            os.environ["OMP_NUM_THREADS"] = "1"  # PyTorch's threads
        measured = measure(names, arguments.steps, arguments.rounds, data_file, cores)
    print_csv(table(*measured, arguments.steps * BATCH * len(cores)))


if __name__ == "__main__":
    main()
