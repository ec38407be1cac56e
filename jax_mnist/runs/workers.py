"""Worker processes, each of which trains one run at a time on one core."""

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from jax_mnist.data import datasets
from jax_mnist.nn import kernels
from jax_mnist.runs.loop import Program, Progress
from jax_mnist.runs.processes import LostProcessError
from jax_mnist.runs.run import Run
from jax_mnist.runs.signals import StoppedError, stop_signals
from jax_mnist.runs.trainer import train_together

_BYTES_PER_PROCESS = 2**31  # 1.4 GB were measured
_SECONDS_TO_SAVE = 20


def train_on_every_core(
    runs: Sequence[Run], advance: Callable[[int, float], None]
) -> Iterator[list[int]]:
    """Trains runs, one on each core at a time.

    Args:
      runs: Runs that are not finished.
      advance: Called with the number of a run and the epochs that it has behind it, before its
        training and after every few steps.

    Yields:
      Every second, the numbers of the runs that have been finished since.

    Raises:
      LostProcessError: A worker was killed; the others have saved checkpoints.
      StoppedError: SIGINT or SIGTERM was received; checkpoints were saved.
      Exception: Whatever `train_together` raises.
    """
    _prepare_data(runs)
    kernels.for_backend()  # compiled, and warned about, only once
    free = cores(len(runs))
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    free_cores, trained, stop = context.Queue(), context.Queue(), context.Event()
    for core in free:
        free_cores.put(core)
    with ProcessPoolExecutor(
        len(free), context, _start_worker, (free_cores, trained, stop)
    ) as pool:
        futures = {pool.submit(_train_in_worker, *job): job[0] for job in enumerate(runs)}
        with stop_signals() as received:
            try:
                for done in _completed(set(futures), received):
                    while not trained.empty():
                        advance(*trained.get())
                    for future in done:
                        future.result()
                    yield [futures[future] for future in done]
            except BrokenProcessPool:
                stop.set()
                _wait_for_workers()
                raise LostProcessError(
                    "a worker process was killed, perhaps because memory ran out; run the same "
                    "command again to resume from the last checkpoints"
                ) from None
            finally:
                stop.set()  # workers that still train save a checkpoint
                pool.shutdown(cancel_futures=True)
        if received:
            message = "stopped and saved; run the same command again to resume"
            raise StoppedError(message, received[0])


def _prepare_data(runs: Sequence[Run]) -> None:
    """Loads every split once, so that it is prepared, validated and summarised only once."""
    wanted = [
        (run.config.dataset, split, run.config.data_dir, run.config.source_dir)
        for run in runs
        for split in (run.config.train_split, run.config.validation_split)
    ]
    for arguments in dict.fromkeys(wanted):
        datasets.load(*arguments)


def cores(runs: int) -> list[int | None]:
    """The core of each worker, limited by memory; None if the system cannot bind processes."""
    found: list[int | None] = [None] * (os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        found = [*sorted(os.sched_getaffinity(0))]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return found[: max(1, min(runs, memory // _BYTES_PER_PROCESS))]


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


_worker: dict[str, Any] = {}


def _start_worker(free_cores: Any, trained: Any, stop: Any) -> None:
    """Binds this process to a core, before JAX counts the cores, and ends it with its parent."""
    _worker.update(trained=trained, stop=stop)
    warnings.filterwarnings("ignore", "The kernels|JAX_MNIST_KERNELS|CXX=")  # the parent warned
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

    def observe(program: Program, progress: Progress) -> None:
        _worker["trained"].put((number, progress.step / program.steps_per_epoch))
        if _worker["stop"].is_set():
            signal.raise_signal(signal.SIGTERM)

    train_together([run], observe)
