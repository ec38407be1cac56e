"""Many runs: the study of all variants, sweeps over hyper-parameters."""

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from jax_mnist import config as config_lib
from jax_mnist.config import ConfigError
from jax_mnist.data import datasets
from jax_mnist.runs import history, processes
from jax_mnist.runs import loop as runner
from jax_mnist.runs.history import Record
from jax_mnist.runs.loop import Progress
from jax_mnist.runs.run import HISTORY, Run, check_name, is_finished, together
from jax_mnist.runs.signals import StoppedError, stop_signals


def paired_runs(
    variants: Mapping[str, ConfigDict], seeds: int, workdir: str | os.PathLike[str]
) -> list[Run]:
    """The same seeds of every variant, in `workdir/VARIANT/seed-N`; all first seeds come first.

    Raises:
      ConfigError: a value cannot be trained with, a name is no name for a folder, or the variants
        differ in the first seed, or in what they are validated on.
    """
    runs = []
    for name, config in variants.items():
        check_name(name)
        config_lib.check(config)
        if config.replicas != 1:
            raise ConfigError("config.replicas must be 1 here: the number of seeds takes its place")
        for field in ("seed", "dataset", "validation_split"):
            if len(values := {config[field] for config in variants.values()}) > 1:
                raise ConfigError(
                    f"config.{field} must be the same in all variants, to compare them; got "
                    + ", ".join(sorted(map(repr, values)))
                )
    for seed, (name, config) in itertools.product(range(seeds), variants.items()):
        one = config.copy_and_resolve_references()
        one.seed = config.seed + seed
        config_lib.check(one)
        runs.append(Run(name, one, Path(workdir) / name / f"seed-{one.seed}"))
    return runs


def grid(config: ConfigDict, vary: Mapping[str, Sequence[str]]) -> dict[str, ConfigDict]:
    """A variant for every combination of values, named after them: `'l1=1e-05,l2=0.0001'`.

    Args:
      config: what all have in common.
      vary: from a config's field to its values, as a user writes them.

    Raises:
      ConfigError: there is no such field, or a value is not of its type.
    """
    choices = []
    for field, texts in vary.items():
        if field not in config:
            raise ConfigError(f"config has no field {field!r}")
        kind = type(config[field])
        try:
            values = [_BOOLEANS[text] if kind is bool else kind(text) for text in texts]
        except (KeyError, ValueError):
            raise ConfigError(
                f"config.{field} takes values of type {kind.__name__}; got {', '.join(texts)}"
            ) from None
        choices.append([(field, value) for value in values])
    variants = {}
    for fields in itertools.product(*choices):
        variant = config.copy_and_resolve_references()
        variant.update(dict(fields))
        variants[",".join(f"{field}={value}" for field, value in fields)] = variant
    return variants


_BYTES_PER_PROCESS = 2**31  # 1.4 GB were seen
_SECONDS_TO_SAVE = 20
_BOOLEANS = {"True": True, "False": False}


def train_all(runs: Sequence[Run]) -> list[Record]:
    """Trains the runs that are not finished, with one progress bar, and returns all records.

    A run is finished when its folder holds its history: what is killed goes on where it stopped.
    On a CPU each core trains a run of its own, in its own process: small networks gain little
    from several cores. Elsewhere all runs that share a program train together.

    Args:
      runs: each with a folder of its own.

    Returns:
      The records, in the order of the runs.

    Raises:
      ConfigError: a folder holds a run of another config; nothing was trained.
      DatasetError: the data cannot be had.
      HistoryError: a history cannot be read.
      LostProcessError: a process that trained was killed; the others saved checkpoints.
      StoppedError: by SIGINT or SIGTERM, after checkpoints were saved.
    """
    unfinished = [run for run in runs if not is_finished(run)]
    finished = len(runs) - len(unfinished)
    epochs = sum(run.config.epochs for run in runs)
    with tqdm(
        total=epochs,
        initial=epochs - sum(run.config.epochs for run in unfinished),
        dynamic_ncols=True,
        bar_format="{desc} |{bar}| {percentage:.1f} %, {remaining} left{postfix}",
    ) as bar:

        def show(group: Sequence[Run], progress: Progress) -> None:
            of_all = sum(run.config.epochs for run in group)
            bar.update(of_all * progress.images / progress.total)

        def show_finished(number: int) -> None:
            nonlocal finished
            finished += number
            bar.set_description(f"{finished}/{len(runs)} runs")

        show_finished(0)
        if jax.default_backend() == "cpu":
            for _ in _on_every_core(unfinished, show):
                show_finished(1)
        else:
            for group in together(unfinished):
                runner.train_together(group, functools.partial(show, group))
                show_finished(len(group))
    # Its folder names a run: it may have been trained alone, under another name.
    return [{**history.load(run.workdir / HISTORY), "name": run.name} for run in runs]


def _on_every_core(
    runs: Sequence[Run], show: Callable[[Sequence[Run], Progress], None]
) -> Iterator[None]:
    """Trains the runs, one to a core at a time, and yields as each is finished."""
    wanted = [
        (run.config.dataset, split, run.config.data_dir, run.config.source_dir)
        for run in runs
        for split in (run.config.train_split, run.config.validation_split)
    ]
    for arguments in dict.fromkeys(wanted):  # prepared, checked and said here, once
        datasets.load(*arguments)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    number = min(len(runs), len(cores) or os.cpu_count() or 1, memory // _BYTES_PER_PROCESS)
    number = max(1, number)
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    free_cores, words, stop = context.Queue(), context.Queue(), context.Event()
    for core in cores[:number]:
        free_cores.put(core)
    with ProcessPoolExecutor(number, context, _start_worker, (free_cores, words, stop)) as pool:
        futures = {pool.submit(_train_in_worker, i, run) for i, run in enumerate(runs)}
        with stop_signals() as received:
            try:
                while futures:
                    done, futures = wait(futures, timeout=1, return_when=FIRST_COMPLETED)
                    while not words.empty():
                        i, progress = words.get()
                        show([runs[i]], progress)
                    if received:
                        break
                    for future in done:
                        future.result()
                        yield
            except BrokenProcessPool:
                stop.set()
                deadline = time.monotonic() + _SECONDS_TO_SAVE
                for process in multiprocessing.active_children():
                    process.join(max(0.0, deadline - time.monotonic()))
                    process.kill()
                raise processes.LostProcessError(
                    "a process that trained was killed, perhaps for want of memory; the same "
                    "command goes on from the last checkpoints"
                ) from None
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                stop.set()  # who trains still, saves a checkpoint
        if received:
            raise StoppedError("stopped and saved; the same command goes on", received[0])


_worker: dict[str, Any] = {}


def _start_worker(free_cores: Any, words: Any, stop: Any) -> None:
    """Binds this process to a core, before JAX looks how many there are, and to its parent."""
    _worker.update(words=words, stop=stop)
    with contextlib.suppress(AttributeError):  # a system without affinity
        os.sched_setaffinity(0, {free_cores.get()})
    # The parent is told too, and tells us; a worker that died while it waits for work would leave
    # the others without it for ever.
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
    def show(progress: Progress) -> None:
        _worker["words"].put((number, progress))
        if _worker["stop"].is_set():
            signal.raise_signal(signal.SIGTERM)

    runner.train_together([run], show)
