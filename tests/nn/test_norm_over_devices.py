"""Ghost batches of a batch that is spread over devices are those of one device, in float64."""

import functools
import itertools
import re

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from norm_reference import Reference
from rounding import assert_close

from jax_mnist.nn import nnx as ours_nnx
from jax_mnist.nn.ghost_batch_norm import GhostBatchNorm

SHAPE = (24, 3, 8)
RNG = np.random.default_rng(0)
X, COTANGENT = RNG.normal(2, 3, (2, *SHAPE)).astype(np.float32)
MASK = RNG.random(SHAPE) < 0.7
VARIABLES = {
    "params": {"scale": RNG.normal(1, 0.3, 8), "bias": RNG.normal(0, 0.3, 8)},
    "batch_stats": {"mean": RNG.normal(0, 1, 8), "var": RNG.uniform(0.5, 2, 8)},
}
VARIABLES = jax.tree.map(np.float32, VARIABLES)
COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def trained(norm, variables, x, cotangent, mask=None):
    """Output, running statistics, and gradients to parameters and input, of a training step."""

    def loss(params, x):
        y, updates = norm.apply(
            variables | {"params": params},
            x,
            mask=mask,
            use_running_average=False,
            mutable=["batch_stats"],
        )
        return (y * cotangent).sum(), (y, updates)

    gradients, (y, updates) = jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)
    return y, gradients[1], updates, gradients[0]


def trained_nnx(variables, x, cotangent, **arguments):
    norm = ours_nnx.GhostBatchNorm(8, momentum=0.8, **arguments, rngs=nnx.Rngs(0))
    nnx.update(norm, variables["params"] | variables["batch_stats"])

    def loss(norm, x):
        y = norm(x)
        return (y * cotangent).sum(), y

    gradients, y = nnx.grad(loss, argnums=(0, 1), has_aux=True)(norm, x)
    state = nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat))
    return y, gradients[1], {"batch_stats": state}, nnx.to_pure_dict(gradients[0])


def expected_of(x, cotangent, size, rule="mean", **arguments):
    reference = Reference(VARIABLES, x, size, momentum=0.8, **arguments)
    dx, scale, bias = reference.gradients(cotangent)
    statistics = dict(zip(("mean", "var"), reference.updated(rule), strict=True))
    return reference.output(), dx, {"batch_stats": statistics}, {"scale": scale, "bias": bias}


@functools.cache
def on_one_device(size, rule="mean", masked=False):
    return expected_of(X, COTANGENT, size, rule, mask=MASK if masked else None)


def spread(mesh, spec, *arrays):
    return [jax.device_put(a, NamedSharding(mesh, spec)) for a in arrays]


def mapped(mesh, function, axis="data"):
    """`function(variables, *shares)` of each device; the last two results are of all devices."""
    shares = P(axis)
    return jax.jit(
        jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(P(), shares, shares, shares),
            out_specs=(shares, shares, P(), P()),
        )
    )


MESHES = [
    (P("data"), 3, AxisType.Explicit),  # ghost batches lie on devices
    (P("data"), 12, AxisType.Explicit),  # a ghost batch lies on two devices
    (P("data", None, "model"), 10, AxisType.Explicit),  # most begin in the middle of a device
    (P("data", None, "model"), 10, AxisType.Auto),
    (P(("data", "model")), 5, AxisType.Explicit),  # eight devices, ghost batches of 5 and 4
]
SPECS = (P(), P("data"), P(None, None, "model"), P("data", None, "model"), P(("data", "model")))
ALL_MESHES = itertools.product(SPECS, (3, 5, 10, 12), (AxisType.Auto, AxisType.Explicit))
AXES = [(12, "mean", True), (10, "sequential", False), (5, "pooled", True), (32, "mean", False)]
ALL_AXES = itertools.product((3, 5, 10, 12, 32), ("mean", "pooled", "sequential"), (False, True))


@pytest.mark.usefixtures("quickly_compiled")
def test_over_a_mesh_results_are_those_of_one_device(thorough):
    for spec, size, kind in ALL_MESHES if thorough else MESHES:
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
        rule = {3: "pooled", 5: "sequential"}.get(size, "mean")
        masked = size == 12
        norm = GhostBatchNorm(ghost_batch_size=size, momentum=0.8, stats_update=rule)
        with jax.set_mesh(mesh):
            x, cotangent, mask = spread(mesh, spec, X, COTANGENT, MASK)
            step = jax.jit(functools.partial(trained, norm))
            found = step(VARIABLES, x, cotangent, mask if masked else None)
        if kind == AxisType.Explicit:
            assert found[0].sharding.is_equivalent_to(x.sharding, x.ndim)
        assert_close(found, on_one_device(size, rule, masked))


@pytest.mark.usefixtures("quickly_compiled")
def test_over_a_mapped_axis_results_are_those_of_one_device(thorough):
    mesh = jax.make_mesh((4,), ("data",))
    for size, rule, masked in ALL_AXES if thorough else AXES:
        norm = GhostBatchNorm(
            ghost_batch_size=size, momentum=0.8, stats_update=rule, axis_name="data"
        )

        def step(variables, x, cotangent, mask, norm=norm, masked=masked):
            return trained(norm, variables, x, cotangent, mask if masked else None)

        with jax.set_mesh(mesh):
            found = mapped(mesh, step)(VARIABLES, *spread(mesh, P("data"), X, COTANGENT, MASK))
        assert_close(found, on_one_device(size, rule, masked))


@pytest.mark.usefixtures("quickly_compiled")
def test_as_many_ghost_batches_on_each_device_may_still_be_of_different_sizes():
    """Eight ghost batches of 36 examples, of which the first four have 5: two for each device."""
    x, cotangent = np.float32(np.random.default_rng(1).normal(2, 3, (2, 36, 3, 8)))
    norm = GhostBatchNorm(ghost_batch_size=5, momentum=0.8, axis_name=("outer", "inner"))
    over_axes = jax.vmap(
        jax.vmap(
            functools.partial(trained, norm),
            axis_name="inner",
            in_axes=(None, 0, 0),
        ),
        axis_name="outer",
        in_axes=(None, 0, 0),
    )
    parts = (a.reshape(2, 2, 9, 3, 8) for a in (x, cotangent))
    y, dx, updates, gradients = jax.jit(over_axes)(VARIABLES, *parts)
    updates = jax.tree.map(lambda a: a[1, 0], updates)
    gradients = jax.tree.map(lambda a: a.sum((0, 1)), gradients)
    found = y.reshape(x.shape), dx.reshape(x.shape), updates, gradients
    assert_close(found, expected_of(x, cotangent, 5))


@pytest.mark.usefixtures("quickly_compiled")
def test_features_may_be_spread_explicitly_where_the_batch_is_mapped():
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    norm = GhostBatchNorm(ghost_batch_size=10, momentum=0.8, axis_name="data")
    with jax.set_mesh(mesh):
        step = jax.jit(
            jax.shard_map(
                functools.partial(trained, norm),
                axis_names={"data"},
                in_specs=(P(), P("data"), P("data")),
                out_specs=(P("data"), P("data"), P(), P()),
            )
        )
        found = step(VARIABLES, *spread(mesh, P("data", None, "model"), X, COTANGENT))
    assert_close(found, on_one_device(10))


@pytest.mark.usefixtures("quickly_compiled")
def test_the_nnx_layer_over_a_mesh_and_over_a_mapped_axis():
    mesh = jax.make_mesh((4,), ("data",))
    arguments = {"ghost_batch_size": 10, "stats_update": "sequential"}

    def step(variables, x, cotangent, mask):
        return trained_nnx(variables, x, cotangent, **arguments, axis_name="data")

    with jax.set_mesh(mesh):
        x, cotangent, mask = spread(mesh, P("data"), X, COTANGENT, MASK)
        over_mesh = jax.jit(functools.partial(trained_nnx, **arguments))(VARIABLES, x, cotangent)
        over_axis = mapped(mesh, step)(VARIABLES, x, cotangent, mask)
    assert_close(over_mesh, on_one_device(10, "sequential"))
    assert_close(over_axis, on_one_device(10, "sequential"))


@pytest.mark.usefixtures("quickly_compiled")
def test_each_group_of_devices_holds_a_batch_of_its_own():
    """Four devices in two groups, each with half of the batch, in ghost batches of 5, 4 and 3."""
    mesh = jax.make_mesh((4,), ("data",))
    norm = GhostBatchNorm(
        ghost_batch_size=5,
        momentum=0.8,
        stats_update="sequential",
        axis_name="data",
        axis_index_groups=[[2, 0], [1, 3]],
    )

    def step(variables, x, cotangent):
        y, dx, updates, _ = trained(norm, variables, x, cotangent)
        return y, dx, jax.tree.map(lambda a: a[None], updates)

    order = np.concatenate([np.arange(6) + 6 * device for device in (2, 0, 1, 3)])
    over_devices = jax.jit(
        jax.shard_map(step, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P("data"))
    )
    with jax.set_mesh(mesh):
        found = over_devices(VARIABLES, *spread(mesh, P("data"), X, COTANGENT))
    y, dx, updates = jax.device_get(found)
    for half, devices in enumerate(((2, 0), (1, 3))):
        own = order[12 * half : 12 * half + 12]
        expected = expected_of(X[own], COTANGENT[own], 5, "sequential")
        for device in devices:
            shared = jax.tree.map(lambda a: a[device], updates)  # noqa: B023
            assert_close((y[own], dx[own], shared), expected[:3])


@pytest.mark.parametrize("arguments", [{}, {"use_fast_variance": False}])
def test_with_one_ghost_batch_over_all_devices_it_is_flax_batch_norm(arguments):
    mapped_over = {"momentum": 0.8, "axis_name": "batch", **arguments}
    x, cotangent = (a.reshape(4, 6, 3, 8) for a in (X, COTANGENT))
    outputs, expected = [], expected_of(X, COTANGENT, 24, **arguments)
    for norm in (GhostBatchNorm(ghost_batch_size=24, **mapped_over), nn.BatchNorm(**mapped_over)):
        step = jax.vmap(functools.partial(trained, norm), in_axes=(None, 0, 0), axis_name="batch")
        y, dx, updates, gradients = jax.jit(step)(VARIABLES, x, cotangent)
        updates = jax.tree.map(lambda a: a[3], updates)
        gradients = jax.tree.map(lambda a: a.sum(0), gradients)
        assert_close((y.reshape(X.shape), dx.reshape(X.shape), updates, gradients), expected)
        outputs.append(y)
    chex.assert_trees_all_equal(*outputs)


def collectives(function, *arguments):
    """Operations and shapes with which the devices of the compiled program communicate."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return re.findall(rf"= (.+?) ({COLLECTIVES})(?:-start)?\(", text)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_ghost_batches_that_lie_on_devices_communicate_only_the_running_statistics(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    norm = GhostBatchNorm(ghost_batch_size=3)
    with jax.set_mesh(mesh):
        x, cotangent = spread(mesh, P("data"), X, COTANGENT)
        step = functools.partial(trained, norm)
        assert not collectives(lambda x, c: step(VARIABLES, x, c)[:2], x, cotangent)
        found = collectives(lambda x, c: step(VARIABLES, x, c)[:3], x, cotangent)
        assert found
        for shapes, operation in found:  # sums of statistics of eight features
            assert operation == "all-reduce"
            assert set(re.findall(r"\[(.*?)\]", shapes)) == {"8"}
        # Ghost batches of 10 lie on several devices, which have to tell each other.
        wide = functools.partial(trained, norm.clone(ghost_batch_size=10))
        assert collectives(lambda x, c: wide(VARIABLES, x, c)[0], x, cotangent)
