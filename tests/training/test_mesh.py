"""Which devices train what, and how arrays get there and back."""

import jax
import numpy as np
import pytest
from tiny import config

from jax_mnist.config import ConfigError
from jax_mnist.training import mesh as mesh_lib


@pytest.mark.parametrize(
    ("fields", "replicas", "shape"),
    [
        ({}, 1, (1, 8)),
        ({}, 4, (8, 1)),
        ({"norm": "batch", "batch_size": 100}, 1, (1, 5)),
        ({"ghost_batch_size": 32}, 1, (1, 2)),
        ({"ghost_batch_size": 48}, 1, None),
        ({"data_devices": 4}, 4, (1, 4)),
        ({"replica_devices": 2, "data_devices": 4}, 1, (2, 4)),
        ({"mixup": 0.2, "norm": "batch", "batch_size": 8, "data_devices": 2}, 1, (1, 2)),
        ({"replica_devices": 1}, 4, None),
    ],
)
def test_the_mesh_is_the_one_that_was_asked_for_or_a_sensible_one(fields, replicas, shape):
    mesh = mesh_lib.make_mesh(config(**{"data_devices": 0, **fields}), replicas)
    assert (mesh and tuple(mesh.shape.values())) == shape
    assert mesh is None or mesh.axis_names == ("replica", "data")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"replica_devices": 3, "data_devices": 3}, "needs 9 devices; there are 8"),
        ({"data_devices": 3}, "config.batch_size=64 cannot be shared evenly by 3"),
        (
            {"data_devices": 4, "ghost_batch_size": 32},
            "would cut ghost batches; make it a multiple of 4 x 32 = 128",
        ),
        (
            {"mixup": 0.2, "norm": "batch", "batch_size": 6, "data_devices": 2},
            "would cut a pair that is mixed; make it a multiple of 4",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        mesh_lib.make_mesh(config(**fields), 1)


def test_arrays_go_to_the_mesh_and_back_with_one_compilation():
    mesh = mesh_lib.make_mesh(config(replica_devices=2, data_devices=4), 2)
    for number in range(3):
        array = np.arange(8.0) + number
        placed = mesh_lib.put(mesh, array, mesh_lib.REPLICA)
        assert placed.sharding.spec == jax.sharding.PartitionSpec("replica")
        np.testing.assert_array_equal(jax.device_get(placed), array)
    assert mesh_lib._copy(mesh, (mesh_lib.REPLICA,))._cache_size() == 1
