"""Many runs: the same seeds of several variants, and grids of values.

On a CPU each core trains one run at a time, in a process of its own.
"""

import functools
import itertools
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jax_mnist import config as config_lib
from jax_mnist.config import ConfigError
from jax_mnist.data import datasets
from jax_mnist.files import PathLike
from jax_mnist.nn import kernels
from jax_mnist.runs import compiler, display, folder, trainer
from jax_mnist.runs.display import RunsDisplay
from jax_mnist.runs.folder import HISTORY, Run
from jax_mnist.runs.loop import Job, Progress
from jax_mnist.runs.record import Record, load_record
from jax_mnist.runs.signals import StoppedError, stop_signals
from jax_mnist.training.parts import AS_CONFIGURED, Overrides, make_overrides

_BOOLEANS = {"True": True, "False": False}
_BYTES_PER_PROCESS = 2**31  # 1.4 GB were measured
_SECONDS_TO_SAVE = 20


class LostWorkerError(Exception):
    """A worker process was killed. The same command resumes from the last checkpoints."""


class Variant(NamedTuple):
    """What a study trains over several seeds.

    Attributes:
      config: See `config.base`.
      overrides: What replaces parts that the config describes.
      file: The config file that both come from; worker processes need it if there are overrides.
    """

    config: ConfigDict
    overrides: Overrides = AS_CONFIGURED
    file: Path | None = None


def load_variant(file: Path) -> Variant:
    """The variant that a config file describes; see `config.load_file`.

    Raises:
      ConfigError: The file raises an error, or names a part that there is not.
    """
    config, parts = config_lib.load_file(file)
    try:
        return Variant(config, make_overrides(parts), file if parts else None)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def paired_runs(variants: Mapping[str, Variant], seeds: int, workdir: PathLike) -> list[Run]:
    """Runs of the same seeds of every variant, in `workdir/VARIANT/seed-N`, ordered by seed.

    Raises:
      ConfigError: A value is invalid, a name cannot be that of a folder, or the variants differ
        in the first seed or in what they are validated on.
    """
    for name, variant in variants.items():
        folder.check_name(name)
        config_lib.check(variant.config)
        variant.overrides.check()
        if variant.config.replicas != 1:
            raise ConfigError("config.replicas must be 1 here: the number of seeds takes its place")
    for field in ("seed", "dataset", "validation_split"):
        if len(values := {variant.config[field] for variant in variants.values()}) > 1:
            raise ConfigError(
                f"config.{field} must be the same in all variants, to compare them; got "
                + ", ".join(sorted(map(repr, values)))
            )
    runs = []
    for seed, (name, variant) in itertools.product(range(seeds), variants.items()):
        config = variant.config.copy_and_resolve_references()
        config.seed += seed
        config_lib.check(config)
        path = Path(workdir) / name / f"seed-{config.seed}"
        runs.append(Run(name, config, path, variant.overrides, variant.file))
    return runs


def grid(variant: Variant, vary: Mapping[str, Sequence[str]]) -> dict[str, Variant]:
    """A variant for every combination of values, named after them: `'l1=1e-05,l2=0.0001'`.

    Args:
      variant: What all of them share.
      vary: Maps fields of the config to their values, as a user types them.

    Raises:
      ConfigError: There is no such field, or a value does not have its type.
    """
    choices = []
    for field, texts in vary.items():
        if field not in variant.config:
            raise ConfigError(config_lib.no_field(field))
        kind = type(variant.config[field])
        try:
            values = [_BOOLEANS[text] if kind is bool else kind(text) for text in texts]
        except (KeyError, ValueError):
            raise ConfigError(
                f"config.{field} takes values of type {kind.__name__}; got {', '.join(texts)}"
            ) from None
        choices.append([(field, value) for value in values])
    variants = {}
    for fields in itertools.product(*choices):
        config = variant.config.copy_and_resolve_references()
        config.update(dict(fields))
        name = ",".join(f"{field}={value}" for field, value in fields)
        variants[name] = variant._replace(config=config)
    return variants


def finished(workdir: PathLike) -> list[Record]:
    """The records of a study's finished runs, in `workdir/VARIANT/seed-N`.

    Raises:
      RecordError: A history cannot be read.
    """
    variants = sorted(path for path in Path(workdir).glob("*") if path.is_dir())
    return [
        {**load_record(of_seed / HISTORY), "name": variant.name}
        for variant in variants
        for of_seed in folder.finished_folders(variant)
    ]


def train_all(runs: Sequence[Run]) -> list[Record]:
    """Trains the unfinished runs, shows how far they are, and returns all records in order.

    If interrupted, call it again to resume. On a CPU each core trains one run in its own
    process, since small networks gain little from several cores. Elsewhere all runs that share a
    program train together.

    Raises:
      ConfigError: A folder holds a run of another config, and nothing was trained; or see
        `trainer.train_together`.
      DatasetError: The data cannot be loaded.
      RecordError: A history cannot be read.
      LostWorkerError: A worker process was killed; the others saved checkpoints.
      StoppedError: SIGINT or SIGTERM was received; checkpoints were saved.
    """
    unfinished = [run for run in runs if not folder.is_finished(run)]
    if unfinished:
        compiler.configure()  # before anything starts JAX, and for the worker processes too
        complete = len(runs) - len(unfinished)
        on_cpu = jax.default_backend() == "cpu"
        groups = [] if on_cpu else trainer.groups_to_train(unfinished)
        at_a_time = max(map(len, groups), default=len(_cores(len(unfinished))))
        display.say(
            f"{len(runs)} runs, {complete} of them finished; training {at_a_time} at a time"
        )
        with display.of_runs(unfinished, complete) as shown:
            if on_cpu:
                _train_on_every_core(unfinished, shown)
            for group in groups:
                _train_group(unfinished, group, shown)
    # A finished run may have been trained alone, under another name.
    return [{**load_record(run.workdir / HISTORY), "name": run.name} for run in runs]


def _train_group(runs: Sequence[Run], group: Sequence[Run], shown: RunsDisplay) -> None:
    numbers = [runs.index(run) for run in group]

    def observe(job: Job, progress: Progress) -> None:
        for number in numbers:
            shown.advance(number, progress.step / job.steps_per_epoch)

    trainer.train_together(group, observe)
    for number in numbers:
        shown.finish(number, load_record(runs[number].workdir / HISTORY))


def _train_on_every_core(runs: Sequence[Run], shown: RunsDisplay) -> None:
    """Trains runs in worker processes, one on each core at a time."""
    _prepare_data(runs)
    kernels.for_backend()  # compiled, and warned about, only once
    cores = _cores(len(runs))
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    free_cores, progress_queue, stop = context.Queue(), context.Queue(), context.Event()
    for core in cores:
        free_cores.put(core)
    workers = ProcessPoolExecutor(
        len(cores), context, _start_worker, (free_cores, progress_queue, stop)
    )
    with workers as pool, stop_signals() as received:
        futures = {pool.submit(_train_in_worker, *job): job[0] for job in _jobs(runs)}
        try:
            for done in _completed(set(futures), received):
                while not progress_queue.empty():
                    shown.advance(*progress_queue.get())
                for future in done:
                    future.result()
                    number = futures[future]
                    shown.finish(number, load_record(runs[number].workdir / HISTORY))
        except BrokenProcessPool:
            stop.set()
            _wait_for_workers()
            raise LostWorkerError(
                "a worker process was killed, perhaps because memory ran out; run the same "
                "command again to resume from the last checkpoints"
            ) from None
        finally:
            stop.set()  # workers that still train save a checkpoint
            pool.shutdown(cancel_futures=True)
    if received:
        message = "stopped and saved; run the same command again to resume"
        raise StoppedError(message, received[0])


def _jobs(runs: Sequence[Run]) -> Iterator[tuple[int, Run]]:
    """Numbers runs, and leaves out what a worker loads from the config file by itself."""
    for number, run in enumerate(runs):
        yield number, run._replace(overrides=AS_CONFIGURED) if run.file else run


def _prepare_data(runs: Sequence[Run]) -> None:
    """Loads every split once, so that it is prepared, validated and summarised only once."""
    splits = [
        (run.config.dataset, split, run.config.data_dir, run.config.source_dir)
        for run in runs
        for split in (run.config.train_split, run.config.validation_split)
    ]
    for arguments in dict.fromkeys(splits):
        datasets.load(*arguments)


def _cores(runs: int) -> list[int | None]:
    """The core of each worker, limited by memory; None if the system cannot bind processes."""
    cores: list[int | None] = [None] * (os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        cores = [*sorted(os.sched_getaffinity(0))]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return cores[: max(1, min(runs, memory // _BYTES_PER_PROCESS))]


def _completed(
    futures: set["Future[None]"], received: Sequence[int]
) -> Iterator[set["Future[None]"]]:
    """Yields the futures completed in each second, until all are or a signal is received."""
    while futures and not received:
        done, futures = wait(futures, timeout=1, return_when=FIRST_COMPLETED)
        yield done


def _wait_for_workers() -> None:
    deadline = time.monotonic() + _SECONDS_TO_SAVE
    for process in multiprocessing.active_children():
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()


# What follows runs in the worker processes.

_worker: dict[str, Any] = {}


def _start_worker(free_cores: Any, progress_queue: Any, stop: Any) -> None:
    """Binds this process to a core, before JAX counts the cores, and ends it with its parent."""
    _worker.update(progress_queue=progress_queue, stop=stop)
    warnings.filterwarnings(
        "ignore", r"The kernels|JAX_MNIST_KERNELS|.* failed: .* compiled the kernels"
    )  # the parent warned
    if (core := free_cores.get()) is not None:
        os.sched_setaffinity(0, {core})
    # The parent receives these signals too, and tells its workers. SIGINT stays ignored; SIGTERM
    # is ignored while a worker waits: if it died then, the others would get no more work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS_TO_SAVE)
    os._exit(1)


def _train_in_worker(number: int, run: Run) -> None:
    if _worker["stop"].is_set():  # the pool hands out some runs in advance
        raise StoppedError("stopped before it began", signal.SIGTERM)

    def observe(job: Job, progress: Progress) -> None:
        _worker["progress_queue"].put((number, progress.step / job.steps_per_epoch))
        if _worker["stop"].is_set():
            signal.raise_signal(signal.SIGTERM)

    overrides = _load_overrides(run.file) if run.file else run.overrides
    trainer.train_together([run._replace(overrides=overrides)], observe)


@functools.cache  # the same objects for all runs of a process, so that they share a program
def _load_overrides(file: Path) -> Overrides:
    return load_variant(file).overrides
