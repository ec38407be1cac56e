"""Times this program and its PyTorch peers, alternating, on the same images.

python scripts/benchmark.py                 # a table; the peers need pip install -e '.[benchmark]'
python scripts/benchmark.py --json          # one JSON object
python scripts/benchmark.py --study         # a run on each core at the same time, as in a study
python scripts/benchmark.py --scale         # growth with batch size, ghost size and replicas

Each contestant runs in its own process, which is idle while another is measured. An epoch is
468 training steps on 128 images, augmented, and the evaluation of the 10,000 test images. The first
epoch of each contestant is not counted.
"""

import argparse
import importlib.util
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np

BATCH = 128


# The contestants. Each is a function of the data (a dict of arrays, or None if it loads its
# own) and the number of training steps on 128 images, and returns two functions: `first_step()`,
# which takes a step (ours takes all those of one call), and `epoch()`, which takes all steps,
# evaluates, and returns the accuracy.


def ours(norm, batch_size=BATCH, replicas=1, **fields):
    def prepare(data, steps):
        from jax_mnist import config
        from jax_mnist.runs import compiler, loop
        from jax_mnist.runs.run import Run

        compiler.configure()
        settings = config.base()
        settings.update({"norm": norm, "batch_size": batch_size, **fields})
        settings.update(epochs=1000, train_split=f"train[:{steps * BATCH}]")
        seeds = [settings.copy_and_resolve_references() for _ in range(replicas)]
        for seed, of_seed in enumerate(seeds):
            of_seed.seed = seed
        program, progress = loop.build([Run("", of_seed, Path()) for of_seed in seeds])
        training = loop.training(program, progress)

        def epoch():
            for progress in training:
                if progress.step % program.steps_per_epoch == 0:
                    return float(progress.epochs[-1]["validation_accuracy"][0])

        return lambda: next(training), epoch

    return prepare


def torch_loader(data, steps):
    from peers import torch_loader

    return torch_loader.prepare(data, steps)


def torch_resident(**options):
    def prepare(data, steps):
        from peers import torch_resident

        return torch_resident.prepare(data, steps, **options)

    return prepare


CONTESTANTS = {
    "jax_mnist, bn": ours("batch"),
    "jax_mnist, gbn": ours("ghost"),
    "torch, compiled": torch_resident(compiled=True, channels_last=False),
    "torch, compiled, channels last": torch_resident(compiled=True, channels_last=True),
    "torch, eager": torch_resident(compiled=False, channels_last=False),
    "torch, DataLoader": torch_loader,
}
BATCH_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
GHOST_SIZES = (8, 16, 32, 64, 128)
# A CPU trains replicas one after another: a few show it.
REPLICAS = {
    f"batch 128, {n} replicas": n
    for n in ((2, 4, 8, 16, 32, 160) if shutil.which("nvidia-smi") else (2, 4))
}
SCALE = (
    {f"batch {n}": ours("batch", n) for n in BATCH_SIZES}
    | {f"batch 128, ghosts of {n}": ours("ghost", ghost_batch_size=n) for n in GHOST_SIZES}
    | {name: ours("batch", replicas=n) for name, n in REPLICAS.items()}
)


def work(name, steps, folder):
    """A contestant's process: obeys lines on stdin, answers with JSON lines on stdout."""
    answers, sys.stdout = sys.stdout, sys.stderr
    arrays = None
    if name in CONTESTANTS and not name.startswith("jax_mnist"):
        arrays = {path.stem: np.load(path) for path in Path(folder).glob("*.npy")}
    first_step, epoch = (CONTESTANTS | SCALE)[name](arrays, steps)
    first_step()
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        if line.strip() == "epoch":
            accuracy = epoch()
            answer = {"seconds": time.perf_counter() - start, "accuracy": accuracy}
        else:
            answer = {"megabytes": peak_memory(name)}
        print(json.dumps(answer), file=answers, flush=True)


def peak_memory(name):
    """Megabytes: of the device if it has memory, else of the process and its largest child."""
    if name.startswith("torch"):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 1e6
    else:
        import jax

        if (stats := jax.devices()[0].memory_stats()) and "peak_bytes_in_use" in stats:
            return stats["peak_bytes_in_use"] / 1e6
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1e3


class Worker:
    """A contestant's process, as seen from the one that measures; bound to `core` if given."""

    def __init__(self, name, steps, folder, core=None):
        command = [sys.executable, __file__, "--worker", name, "--steps", str(steps)]
        command += ["--data", folder, *(() if core is None else ("--core", str(core)))]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Caches of this benchmark alone, so that a first start compiles everything.
            env={k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
            | {
                "XDG_CACHE_HOME": f"{folder}/cache",
                "TORCHINDUCTOR_CACHE_DIR": f"{folder}/torch",
                # No more GPU memory than needed, since the contestants share it.
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            }
            | ({} if core is None else {"OMP_NUM_THREADS": "1"}),  # PyTorch's threads
        )

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("benchmark.py: a contestant failed; its error is above")
        return json.loads(line)

    def tell(self, line):
        print(line, file=self.process.stdin, flush=True)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Team:
    """A contestant's processes, which work at the same time: one, or one bound to each core."""

    def __init__(self, name, steps, folder, cores=(None,)):
        start = time.perf_counter()
        self.workers = [Worker(name, steps, folder, core) for core in cores]
        for worker in self.workers:
            worker.answer()
        self.first_step = time.perf_counter() - start

    def ask(self, line):
        """The largest of each value that the workers answer."""
        for worker in self.workers:
            worker.tell(line)
        answers = [worker.answer() for worker in self.workers]
        return {key: max(answer[key] for answer in answers) for key in answers[0]}

    def close(self):
        for worker in self.workers:
            worker.close()


def measure(names, steps, rounds, folder, cores=(None,)):
    """Measures rounds of one epoch each; returns a dict of results per name."""
    workers, results = {}, {}
    for name in names:
        print(f"starting {name}", file=sys.stderr, flush=True)
        workers[name] = Team(name, steps, folder, cores)
        workers[name].ask("epoch")  # warms up; not counted
        results[name] = {
            "images": steps * BATCH * REPLICAS.get(name, 1) * len(cores),
            "first_step_seconds": workers[name].first_step,
            "epoch_seconds": [],
        }
    for number in range(rounds):
        for name, worker in workers.items():
            print(f"round {number + 1}/{rounds}: {name}", file=sys.stderr, flush=True)
            answer = worker.ask("epoch")
            results[name]["epoch_seconds"].append(answer["seconds"])
            results[name]["accuracy"] = answer["accuracy"]
    for name, worker in workers.items():
        results[name]["peak_megabytes"] = worker.ask("memory")["megabytes"]
        worker.close()
    return results


def second_start(names, steps, folder, cores=(None,)):
    """Seconds to the first step of a second run, whose compiled programs are on disk."""
    seconds = {}
    for name in names:
        team = Team(name, steps, folder, cores)
        seconds[name] = team.first_step
        team.close()
    return seconds


def ceilings():
    """Measures this machine: GFLOP/s of a large float32 product, GB/s of a large copy."""
    import jax
    import jax.numpy as jnp

    def best(function, *arguments):
        jax.block_until_ready(function(*arguments))
        times = []
        for _ in range(10):
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            times.append(time.perf_counter() - start)
        return min(times)

    n = 2048
    square, long = jnp.ones((n, n)), jnp.ones(2**26)
    return {
        "gflops": 2 * n**3 / best(jax.jit(jnp.matmul), square, square) / 1e9,
        "gigabytes_per_second": 2 * long.nbytes / best(jax.jit(lambda x: x + 1), long) / 1e9,
    }


def floor():
    """Returns the least operations and bytes that one image costs in a training step.

    Operations: two per product of a convolution and its two gradients (of the first layer, one).
    Bytes: each convolution's output and its gradient written once and read once, in float32.
    """
    from jax_mnist.nn.cnn import LAYERS, output_sizes

    operations = outputs = 0
    channels = 1
    for number, (layer, (side, _)) in enumerate(zip(LAYERS, output_sizes(LAYERS), strict=True)):
        products = side**2 * layer.size**2 * channels * layer.features
        operations += 2 * products * (2 if number == 0 else 3)
        outputs += side**2 * layer.features
        channels = layer.features
    return {"operations": operations, "bytes": 4 * 4 * outputs}


def versions():
    packages = ("jax", "jaxlib", "flax", "torch")
    found = {p: metadata.version(p) for p in packages if importlib.util.find_spec(p)}
    return {"python": platform.python_version()} | found


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(results, reference):
    """A Markdown table; ratios are medians over the rounds of one contestant by the other."""
    rows = [
        ["", "seconds an epoch", "images/s", f"time of {reference}", "first step, s", "again, s",
         "peak MB"],
    ]  # fmt: skip
    rows.append(["---"] * len(rows[0]))
    for name, result in results.items():
        if "missing" in result:
            rows.append([name, result["missing"], "", "", "", "", ""])
            continue
        seconds = result["epoch_seconds"]
        pairs = zip(seconds, results[reference]["epoch_seconds"], strict=True)
        rows.append(
            [
                name,
                spread(seconds),
                f"{result['images'] / statistics.median(seconds):,.0f}",
                f"{statistics.median(a / b for a, b in pairs):.2f}",
                f"{result['first_step_seconds']:.1f}",
                f"{result['again_seconds']:.1f}" if "again_seconds" in result else "",
                f"{result['peak_megabytes']:,.0f}",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def parse():
    """The arguments; those without a help text are for the contestants' processes."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="epochs measured of each (5)")
    parser.add_argument("--steps", type=int, default=60_000 // BATCH, help="training steps (468)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    parser.add_argument(
        "--scale", action="store_true", help="measure batch sizes, ghost sizes, replicas"
    )
    parser.add_argument(
        "--study", action="store_true", help="measure a run on each core at the same time"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or not 1 <= arguments.steps <= 60_000 // BATCH:
        parser.error(f"--rounds must be at least 1, --steps from 1 to {60_000 // BATCH}")
    return arguments


def save_data(folder):
    """Writes the arrays that the PyTorch contestants read."""
    from jax_mnist.data import datasets

    for split in ("train", "test"):
        data = datasets.load("mnist", split)
        np.save(Path(folder) / f"{split}_images.npy", data.images)
        np.save(Path(folder) / f"{split}_labels.npy", data.labels)


def compare(steps, rounds, folder, cores):
    """Results of all contestants, alternating; those that are not installed are said to be so."""
    torch_there = importlib.util.find_spec("torch") is not None
    names = [n for n in CONTESTANTS if torch_there or not n.startswith("torch")]
    results = measure(names, steps, rounds, folder, cores)
    for name, seconds in second_start(names, steps, folder, cores).items():
        results[name]["again_seconds"] = seconds
    missing = {"missing": "missing: pip install -e '.[benchmark]'"}
    return results | {n: missing for n in CONTESTANTS if n not in names}


def grow(steps, rounds, folder):
    """Results of batch sizes, ghost sizes and replicas, each measured alone."""
    results = {}
    for name in SCALE:
        results |= measure([name], steps, rounds, folder)
    return results


def show(report, reference):
    """Prints the table, and how far the reference is from what the machine can do."""
    results = report["results"]
    print(table(results, reference))
    seconds = statistics.median(results[reference]["epoch_seconds"])
    need, most = report["floor_per_image"], report["ceilings"]
    images = results[reference]["images"]
    rate, traffic = (images * need[k] / seconds / 1e9 for k in ("operations", "bytes"))
    print(
        f"\n{reference}: {rate:.0f} GFLOP/s of {most['gflops']:.0f} in a large product, "
        f"{traffic:.1f} GB/s at least of {most['gigabytes_per_second']:.0f} in a large copy "
        f"(an image costs {need['operations'] / 1e6:.2f} MFLOP and {need['bytes'] / 1e3:.0f} kB).\n"
        f"{report['cores']} cores; " + ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    )


def main():
    arguments = parse()
    steps, rounds = arguments.steps, arguments.rounds
    if arguments.worker:
        if arguments.core is not None:  # before anything counts the cores
            os.sched_setaffinity(0, {arguments.core})
        work(arguments.worker, steps, arguments.data)
        return
    report = {"cores": os.cpu_count(), "versions": versions(), "steps": steps}
    with tempfile.TemporaryDirectory() as folder:
        save_data(folder)
        if arguments.scale:
            reference, results = "batch 128", grow(steps, rounds, folder)
        else:
            cores = sorted(os.sched_getaffinity(0)) if arguments.study else (None,)
            reference, results = "jax_mnist, bn", compare(steps, rounds, folder, cores)
        report |= {"results": results, "ceilings": ceilings(), "floor_per_image": floor()}
    if arguments.json:
        print(json.dumps(report))
    else:
        show(report, reference)


if __name__ == "__main__":
    main()
