"""Several devices: a mesh with the axes `replica` and `data`.

Replicas are spread over `replica` and never communicate. Each batch is spread over `data`:
gradients, metrics and the statistics of norms are averaged, and ghost batches stay on their device.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jax_mnist.config import ConfigError

REPLICA, DATA = "replica", "data"


def make_mesh(config: ConfigDict, replicas: int) -> Mesh | None:
    """The mesh for a config, or None if one device does everything.

    If both `replica_devices` and `data_devices` are 0, all devices go to `replica` if there are
    several replicas; otherwise as many go to `data` as can share the batch evenly without cutting
    ghost batches. If only one of them is 0, it counts as 1.

    Args:
      config: See `config.FIELDS`.
      replicas: How many train together. If the devices along `replica` do not divide them evenly,
        spare copies of the last one fill the mesh.

    Raises:
      ConfigError: There are too few devices, or the batch or its ghost batches cannot be shared
        evenly.
    """
    number = len(jax.devices())
    shape = (config.replica_devices, config.data_devices)
    if shape == (0, 0):
        shape = _default_shape(config, replicas, number)
    shape = (max(1, shape[0]), max(1, shape[1]))
    _check_shape(shape, config, number)
    if shape == (1, 1):
        return None
    devices = np.array(jax.devices()[: shape[0] * shape[1]])
    return Mesh(devices.reshape(shape), (REPLICA, DATA))


def _default_shape(config: ConfigDict, replicas: int, devices: int) -> tuple[int, int]:
    if replicas > 1:
        return devices, 1
    whole = config.ghost_batch_size if config.norm == "ghost" else 1
    if config.batch_size % whole:
        return 1, 1
    return 1, largest_divisor(config.batch_size // whole, devices)


def _check_shape(shape: tuple[int, int], config: ConfigDict, devices: int) -> None:
    needed, shards, batch_size = shape[0] * shape[1], shape[1], config.batch_size
    asked = f"a mesh of replica_devices={shape[0]} and data_devices={shards}"
    if needed > devices:
        raise ConfigError(f"{asked} needs {needed} devices; there are {devices}")
    if batch_size % shards:
        raise ConfigError(
            f"{asked}: config.batch_size={batch_size} cannot be shared evenly by {shards}"
        )
    whole = shards * config.ghost_batch_size
    if shards > 1 and config.norm == "ghost" and batch_size % whole:
        raise ConfigError(
            f"{asked}: config.batch_size={batch_size} would cut ghost batches; "
            f"make it a multiple of {shards} x {config.ghost_batch_size} = {whole}"
        )
    if config.mixup > 0 and shards > 1 and batch_size // shards % 2:
        raise ConfigError(
            f"{asked}: config.batch_size={batch_size} would cut a pair that is mixed; "
            f"make it a multiple of {2 * shards}"
        )


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return max(d for d in range(1, min(number, most) + 1) if number % d == 0)


def size(mesh: Mesh | None, axis: str) -> int:
    """How many devices there are along an axis."""
    return 1 if mesh is None else mesh.shape[axis]


def example_keys(mesh: Mesh | None, key: jax.Array, examples: int) -> jax.Array:
    """Keys for the `examples` examples of a batch on this device.

    An example's key does not depend on how many devices share the batch.
    """
    shards = size(mesh, DATA)
    keys = jax.random.split(key, shards * examples)
    if shards > 1:
        keys = jax.lax.dynamic_slice_in_dim(keys, examples * jax.lax.axis_index(DATA), examples)
    return keys


def put(mesh: Mesh | None, tree: Any, *spec: str) -> Any:
    """Copies arrays to the mesh, spread over the axes in `spec`, or replicated."""
    return jax.device_put(tree) if mesh is None else _copy(mesh, spec)(tree)


@functools.cache  # so that a mesh and a spec are compiled once
def _copy(mesh: Mesh, spec: tuple[str, ...]) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec(*spec)))


def spread(
    mesh: Mesh | None, function: Callable[..., Any], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """Applies `jax.shard_map` to a function that does its own averaging; no-op without a mesh."""
    if mesh is None:
        return function
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def over_replicas(function: Callable[..., Any]) -> Callable[..., Any]:
    """Maps over the leading axis of every argument: all at once, or one by one on a CPU.

    A CPU gains nothing from wider arrays, which do not fit into its caches.
    """

    def mapped(*args: Any) -> Any:
        if jax.default_backend() == "cpu":
            return jax.lax.map(lambda args: function(*args), args)
        return jax.vmap(function)(*args)

    return mapped
