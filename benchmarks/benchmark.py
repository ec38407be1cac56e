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

import contextlib
import functools
import importlib
import importlib.util
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from terminal import parser, print_csv, say, whole

BATCH = 128


# The programs. Each is a function of the arrays of MNIST (None if it loads its own) and the number
# of training steps in an epoch. It returns two functions: `first_step()`, which takes one step
# (ours those of one call), and `epoch()`, which trains, evaluates and returns the accuracy.


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
if shutil.which(
    "nvidia-smi"
):  # where replicas train at once, and where cuDNN could convolve instead of us
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


def work(connection, name, steps, data_file, core):
    """A process of a program: takes the first step, then an epoch for each message."""
    if core is not None:  # before anything counts the cores
        os.sched_setaffinity(0, {core})
    sys.stdout = sys.stderr  # the table alone goes to standard output
    data = dict(np.load(data_file)) if name.startswith("torch") else None
    first_step, epoch = PROGRAMS[name](data, steps)
    first_step()
    connection.send(None)
    with contextlib.suppress(EOFError):  # the end of the benchmark
        while True:
            connection.recv()
            start = time.perf_counter()
            accuracy = epoch()
            seconds = time.perf_counter() - start
            connection.send((seconds, peak_megabytes(name), 100 * accuracy))


class Team:
    """The processes of a program, which work at the same time: one, or one on each core."""

    def __init__(self, name, steps, data_file, cores):
        say(f"starting {name}")
        self.name, self.members = name, []
        context = multiprocessing.get_context("spawn")
        start = time.perf_counter()
        for core in cores:
            connection, of_process = context.Pipe()
            process = context.Process(target=work, args=(of_process, name, steps, data_file, core))
            process.start()
            of_process.close()
            self.members.append((process, connection))
        self._answers()
        self.first_step = time.perf_counter() - start

    def epoch(self):
        """The largest seconds and megabytes, and an accuracy."""
        for _, connection in self.members:
            connection.send(None)
        return [max(values) for values in zip(*self._answers(), strict=True)]

    def close(self):
        for process, connection in self.members:
            connection.close()
            process.join()

    def _answers(self):
        try:
            return [connection.recv() for _, connection in self.members]
        except EOFError:
            for process in multiprocessing.active_children():  # they wait for messages
                process.terminate()
            raise SystemExit(f"benchmark.py: {self.name} failed; its error is above") from None


def measure(names, steps, rounds, data_file, cores):
    """The seconds of each program's first step, of that of its second run, and its epochs."""
    start = functools.partial(Team, steps=steps, data_file=data_file, cores=cores)
    teams = {name: start(name) for name in names}
    epochs = {name: [] for name in names}
    for number in range(rounds + 1):
        say(f"round {number} of {rounds}" if number else "warming up")
        for name, team in teams.items():
            epochs[name].append(team.epoch())
    for team in teams.values():
        team.close()
    second_runs = {}
    for name in names:
        team = start(name)
        second_runs[name] = team.first_step
        team.close()
    return {n: (teams[n].first_step, second_runs[n], epochs[n][1:]) for n in names}


def table(measured, images):
    """The rows of the table, of what `measure` returns and of the images in an epoch."""
    times = {name: [epoch[0] for epoch in epochs] for name, (_, _, epochs) in measured.items()}
    reference = next(iter(times.values()))
    rows = []
    for name, (first_step, second_run, epochs) in measured.items():
        seconds = statistics.median(times[name])
        ratios = [a / b for a, b in zip(times[name], reference, strict=True)]
        rows.append({
            "program": name,
            "seconds": seconds,
            "fastest": min(times[name]),
            "slowest": max(times[name]),
            "images_per_second": round(images * REPLICAS.get(name, 1) / seconds),
            "relative_time": statistics.median(ratios),
            "first_step_seconds": first_step,
            "second_run_seconds": second_run,
            "megabytes": round(epochs[-1][1]),
            "accuracy_percent": epochs[-1][2],
        })  # fmt: skip
    return rows


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
    print_csv(table(measured, arguments.steps * BATCH * len(cores)))


if __name__ == "__main__":
    main()
