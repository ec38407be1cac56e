"""Several processes that train together: joining, agreeing, and losing one of them."""

import contextlib
import faulthandler
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from jax_mnist.config import ConfigError

_SECONDS_TO_MISS = 30  # a process, without a heartbeat of it


class LostProcessError(Exception):
    """One of several processes ended; the same command on all goes on from the last checkpoint."""


def join_processes(address: str | None, number: int | None, index: int | None) -> None:
    """Makes this process one of several, whose devices are then one mesh.

    When one of them is lost, the others end: with `LostProcessError` where a communication fails,
    else aborted by JAX, with a message, after 30 seconds without a heartbeat.

    Args:
      address: `host:port` of the first process. Slurm, Kubernetes and other systems that JAX knows
        tell this and the next two by themselves; see `jax.distributed.initialize`.
      number: of processes.
      index: of this process, from 0.

    Raises:
      ConfigError: they cannot come together as they are told. Where one stays away, JAX aborts the
        others after five minutes, with a message.
    """
    # Where a lost process leaves this one waiting, JAX's heartbeat says so and aborts: no crash
    # whose stacks are worth printing.
    faulthandler.disable()
    try:
        jax.distributed.initialize(
            address, number, index, heartbeat_timeout_seconds=_SECONDS_TO_MISS
        )
    except Exception as error:  # JAX and its runtime have many
        raise ConfigError(f"cannot join the other processes: {error}") from error


@contextlib.contextmanager
def raise_lost_process() -> Iterator[None]:
    """Raises `LostProcessError` where a communication fails."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        own = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")  # no other process has a part in these
        if jax.process_count() == 1 or str(error).startswith(own):
            raise
        reason = str(error).strip().splitlines()[0]
        raise LostProcessError(
            "another process was lost; the same command on all hosts goes on from the last "
            f"checkpoint ({reason})"
        ) from error


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Of several processes: what the block raises in one, ends it in all; none goes on before.

    Raises:
      ConfigError: in the others.
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
        raise ConfigError("another process refused to start, and says why")


def is_first_process() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def broadcast(number: int) -> int:
    """What the first process gave, in every process; each must call this."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def process_max(number: int) -> int:
    """The largest number that a process gave, in every process; each must call this."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())
