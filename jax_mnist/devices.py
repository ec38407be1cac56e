"""Several devices and hosts: a mesh with the axes `replica` and `data`, on JAX's own runtime.

Replicas are spread over `replica` and never communicate. Over `data` the batch of each is spread:
gradients, metrics and the statistics of norms are averaged, ghost batches stay on their device.
"""

import contextlib
import faulthandler
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jax_mnist.batch_last import largest_divisor
from jax_mnist.config import ConfigError

REPLICA, DATA = "replica", "data"
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
def others_present() -> Iterator[None]:
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
def all_agree() -> Iterator[None]:
    """Of several processes: what the block raises in one, ends it in all; none goes on before.

    Raises:
      ConfigError: in the others.
    """
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    some_failed = most_said(int(failed is not None))
    if failed is not None:
        raise failed
    if some_failed:
        raise ConfigError("another process refused to start, and says why")


def make_mesh(config: ConfigDict, replicas: int) -> Mesh | None:
    """The mesh for a config, or None where one device does everything.

    Args:
      config: `mesh` is such as `'replica=2,data=4'`; an axis that is not named has size 1. Empty
        is: all devices on `replica` if there are several replicas; else on `data`, as many as can
        share the batch evenly and its ghost batches whole.
      replicas: how many train together; where `replica` does not divide them, devices idle.

    Raises:
      ConfigError: there are fewer devices, the batch or its ghost batches cannot be shared evenly,
        or a process would have no part.
    """
    text, batch_size = config.mesh, config.batch_size
    devices = jax.devices()
    sizes = {REPLICA: 1, DATA: 1}
    if text:
        sizes |= {axis: int(size) for axis, size in re.findall(r"(\w+)=(\d+)", text)}
    elif replicas > 1:
        sizes[REPLICA] = len(devices)
    elif jax.process_count() > 1:
        sizes[DATA] = len(devices)
    else:
        together = config.ghost_batch_size if config.norm == "ghost" else 1
        if batch_size % together == 0:
            sizes[DATA] = largest_divisor(batch_size // together, len(devices))
    shape = (sizes[REPLICA], sizes[DATA])
    number = shape[0] * shape[1]
    said = f"config.mesh={text!r}" if text else "every device for data"
    if number > len(devices):
        raise ConfigError(f"{said} takes {number} devices; there are {len(devices)}")
    if batch_size % sizes[DATA]:
        raise ConfigError(
            f"{said}: config.batch_size={batch_size} cannot be shared evenly by {sizes[DATA]}"
        )
    if sizes[DATA] > 1 and config.norm == "ghost":
        whole = sizes[DATA] * config.ghost_batch_size
        if batch_size % whole:
            raise ConfigError(
                f"{said}: config.batch_size={batch_size} would cut ghost batches; "
                f"make it a multiple of {sizes[DATA]} x {config.ghost_batch_size} = {whole}"
            )
    if jax.process_count() > 1 and number < len(devices):
        raise ConfigError(f"{said} takes {number} devices; several processes must use all")
    if number == 1:
        return None
    return Mesh(np.array(devices[:number]).reshape(shape), (REPLICA, DATA))


def size(mesh: Mesh | None, axis: str) -> int:
    """How many devices are along an axis."""
    return 1 if mesh is None else mesh.shape[axis]


def put(mesh: Mesh | None, tree: Any, *spec: str) -> Any:
    """Arrays of the host as arrays on the mesh, spread over the axes in `spec`, or replicated."""
    if mesh is None:
        return jax.device_put(tree)
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec(*spec)))(tree)


def fetch(mesh: Mesh | None, tree: Any) -> Any:
    """Arrays on the mesh as whole NumPy arrays on every host; every process must call this."""
    return jax.device_get(put(mesh, tree) if jax.process_count() > 1 else tree)


def spread(
    mesh: Mesh | None, function: Callable[..., Any], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """`jax.shard_map` of a function that averages what it must by itself; itself without a mesh."""
    if mesh is None:
        return function
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def is_first_process() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def first_said(number: int) -> int:
    """What the first process gave, in every process; each must call this."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def most_said(number: int) -> int:
    """The largest number that a process gave, in every process; each must call this."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())
