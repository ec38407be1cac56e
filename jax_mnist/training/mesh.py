"""Several devices and hosts: a mesh with the axes `replica` and `data`, on JAX's own runtime.

Replicas are spread over `replica` and never communicate. Over `data` the batch of each is spread:
gradients, metrics and the statistics of norms are averaged, ghost batches stay on their device.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jax_mnist.config import ConfigError
from jax_mnist.nn.batch_last import largest_divisor

REPLICA, DATA = "replica", "data"


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
