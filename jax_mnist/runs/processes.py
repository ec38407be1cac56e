"""Several processes that train together: how they join, agree, and notice that one is lost."""

import contextlib
import faulthandler
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from jax_mnist.config import ConfigError
from jax_mnist.runs import compiler

_HEARTBEAT_SECONDS = 30  # without a heartbeat, after which a process counts as lost


class LostProcessError(Exception):
    """One of several processes ended. The same command on all resumes from the last checkpoint."""


def join_processes(address: str | None, number: int | None, index: int | None) -> None:
    """Makes this process one of several whose devices form one mesh.

    When one of them is lost, the others end: with `LostProcessError` if a communication fails,
    otherwise aborted by JAX, with a message, after 30 seconds without a heartbeat.

    Args:
      address: `host:port` of the first process. JAX finds this and the next two arguments by
        itself under Slurm, Kubernetes and other systems; see `jax.distributed.initialize`.
      number: The number of processes.
      index: The index of this process, from 0.

    Raises:
      ConfigError: The processes cannot join with these arguments. If one never joins, JAX aborts
        the others after five minutes, with a message.
    """
    compiler.ask_for_same_digits()  # which is too late once the processes have joined
    # If a lost process leaves this one waiting, JAX's heartbeat reports it and aborts; the stacks
    # of the threads would add nothing.
    faulthandler.disable()
    try:
        jax.distributed.initialize(
            address, number, index, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
        )
    except Exception as error:  # JAX and its runtime raise many kinds
        raise ConfigError(f"cannot join the other processes: {error}") from error


@contextlib.contextmanager
def raise_lost_process() -> Iterator[None]:
    """Raises `LostProcessError` if a communication with another process fails."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        own = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")  # these are not about another process
        if jax.process_count() == 1 or str(error).startswith(own):
            raise
        reason = str(error).strip().splitlines()[0]
        raise LostProcessError(
            "another process was lost; run the same command on all hosts again to resume from the "
            f"last checkpoint ({reason})"
        ) from error


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Waits for every process at the end of the block; if it raises in one, it raises in all.

    Raises:
      ConfigError: The block raised in another process.
    """
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    some_failed = process_max(int(failed is not None))
    if failed is not None:
        raise failed
    if some_failed:
        raise ConfigError("another process refused to start; its own message says why")


def is_first_process() -> bool:
    """Whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def broadcast(number: int | None) -> int | None:
    """Returns the first process's number (at least 0) or None; every process must call this."""
    if jax.process_count() == 1:
        return number
    sent = np.int32(-1 if number is None else number)
    received = int(multihost_utils.broadcast_one_to_all(sent))
    return None if received < 0 else received


def process_max(number: int) -> int:
    """Returns the largest of all processes' numbers; every process must call this."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())
