"""GhostBatchNorm against NumPy in float64, and against flax.linen.BatchNorm."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jax_mnist.nn.ghost_batch_norm import GhostBatchNorm

BATCH = 12
SIZES = (1, 2, 3, 5, 12, 32)
SHAPE = (BATCH, 4, 3, 6)


def inputs(shape, seed=0):
    return np.random.default_rng(seed).normal(2.0, 3.0, shape).astype(np.float32)


def variables_for(features, seed=1):
    rng = np.random.default_rng(seed)
    return {
        "params": {
            "scale": rng.normal(1, 0.3, features).astype(np.float32),
            "bias": rng.normal(0, 0.3, features).astype(np.float32),
        },
        "batch_stats": {
            "mean": rng.normal(0, 1, features).astype(np.float32),
            "var": rng.uniform(0.5, 2, features).astype(np.float32),
        },
    }


def train(module, variables, x, **kwargs):
    return module.apply(variables, x, use_running_average=False, mutable=["batch_stats"], **kwargs)


class Reference:
    """Channels-last ghost batch norm in float64, one ghost batch at a time."""

    def __init__(self, variables, x, size, momentum=0.99, epsilon=1e-5):
        x = np.asarray(x, np.float64)
        self.gamma = np.asarray(variables["params"]["scale"], np.float64)
        self.beta = np.asarray(variables["params"]["bias"], np.float64)
        self.running = [
            np.asarray(variables["batch_stats"][k], np.float64) for k in ("mean", "var")
        ]
        self.momentum = momentum
        self.ghosts = [x[i : i + size] for i in range(0, len(x), size)]
        self.axes = tuple(range(x.ndim - 1))
        self.means = [g.mean(self.axes) for g in self.ghosts]
        self.vars = [g.var(self.axes) for g in self.ghosts]
        self.hats = [
            (g - m) / np.sqrt(v + epsilon)
            for g, m, v in zip(self.ghosts, self.means, self.vars, strict=True)
        ]
        self.stds = [np.sqrt(v + epsilon) for v in self.vars]

    def output(self):
        return np.concatenate([h * self.gamma + self.beta for h in self.hats])

    def gradients(self, cotangent):
        """Of sum(cotangent * output): to x, scale and bias (Ioffe and Szegedy 2015, section 3)."""
        starts = np.cumsum([len(g) for g in self.ghosts])[:-1]
        dx, dgamma, dbeta = [], 0, 0
        for h, std, dy in zip(
            self.hats, self.stds, np.split(np.asarray(cotangent, np.float64), starts), strict=True
        ):
            dh = dy * self.gamma
            dx.append((dh - dh.mean(self.axes) - h * (dh * h).mean(self.axes)) / std)
            dgamma = dgamma + (dy * h).sum(self.axes)
            dbeta = dbeta + dy.sum(self.axes)
        return np.concatenate(dx), dgamma, dbeta

    def updated(self, rule):
        results = []
        for running, ghosts in zip(self.running, (self.means, self.vars), strict=True):
            if rule == "mean":
                sizes = [len(g) for g in self.ghosts]
                average = np.average(ghosts, axis=0, weights=sizes)
                running = self.momentum * running + (1 - self.momentum) * average
            else:
                for ghost in ghosts:
                    running = self.momentum * running + (1 - self.momentum) * ghost
            results.append(running)
        return results


class AgainstNumpyTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(size=SIZES, rule=["mean", "sequential"])
    def test_output_and_running_statistics(self, size, rule):
        x, variables = inputs(SHAPE), variables_for(6)
        norm = GhostBatchNorm(ghost_batch_size=size, stats_update=rule, momentum=0.8)
        y, updates = self.variant(functools.partial(train, norm))(variables, x)
        expected = Reference(variables, x, size, momentum=0.8)
        np.testing.assert_allclose(y, expected.output(), atol=1e-5)
        mean, var = expected.updated(rule)
        np.testing.assert_allclose(updates["batch_stats"]["mean"], mean, atol=1e-5)
        np.testing.assert_allclose(updates["batch_stats"]["var"], var, atol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(size=SIZES, fast=[True, False])
    def test_gradients(self, size, fast):
        x, variables, cotangent = inputs(SHAPE), variables_for(6), inputs(SHAPE, seed=2) / 3
        norm = GhostBatchNorm(ghost_batch_size=size, use_fast_variance=fast)

        def objective(params, x):
            y, _ = train(norm, variables | {"params": params}, x)
            return (y * cotangent).sum()

        objective = objective if fast else jax.checkpoint(objective)
        gradient = self.variant(jax.grad(objective, argnums=(0, 1)))
        to_params, to_x = gradient(variables["params"], x)
        dx, dgamma, dbeta = Reference(variables, x, size).gradients(cotangent)
        np.testing.assert_allclose(to_x, dx, atol=1e-5)
        np.testing.assert_allclose(to_params["scale"], dgamma, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(to_params["bias"], dbeta, rtol=1e-5, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 20),
    size=st.integers(1, 25),
    inner=st.lists(st.integers(2, 4), min_size=0, max_size=3),
    seed=st.integers(0, 1000),
)
def test_every_ghost_batch_has_mean_0_and_variance_1(batch, size, inner, seed):
    x = inputs((batch, *inner, 3), seed)
    norm = GhostBatchNorm(ghost_batch_size=size, use_fast_variance=False, epsilon=1e-10)
    y, _ = norm.init_with_output(jax.random.key(0), x, use_running_average=False)
    y = np.asarray(y, np.float64)
    assert y.shape == x.shape
    for start in range(0, batch, size):
        ghost = y[start : start + size].reshape(-1, 3)
        np.testing.assert_allclose(ghost.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(ghost.var(0), 0 if len(ghost) == 1 else 1, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    kept=st.lists(st.booleans(), min_size=7, max_size=7),
    size=st.integers(1, 8),
    rule=st.sampled_from(["mean", "sequential"]),
)
def test_masked_examples_do_not_count(kept, size, rule):
    """Against a NumPy computation on the kept examples of each ghost batch alone."""
    kept = np.array(kept)
    x, variables = inputs((7, 5, 2)), variables_for(2)
    norm = GhostBatchNorm(ghost_batch_size=size, stats_update=rule, momentum=0.7)
    y, updates = train(norm, variables, x, mask=kept[:, None, None])
    mean = np.float64(variables["batch_stats"]["mean"])
    ghosts = [slice(i, i + size) for i in range(0, 7, size)]
    total = 0
    for g in ghosts:
        alone = np.float64(x[g][kept[g]])
        if len(alone) == 0:
            assert np.isfinite(y[g]).all()
            continue
        mu, var = alone.mean((0, 1)), alone.var((0, 1))
        hat = (x[g] - mu) / np.sqrt(var + 1e-5)
        expected = hat * variables["params"]["scale"] + variables["params"]["bias"]
        np.testing.assert_allclose(y[g], expected, atol=1e-4)
        if rule == "sequential":
            mean = 0.7 * mean + 0.3 * mu
        total = total + len(alone) * mu
    if rule == "mean" and kept.any():
        mean = 0.7 * mean + 0.3 * total / kept.sum()
    np.testing.assert_allclose(updates["batch_stats"]["mean"], mean, atol=1e-5)


FLAX_CASES = [
    ({}, (BATCH, 6)),
    ({"momentum": 0.9, "epsilon": 1e-3}, (BATCH, 5, 6)),
    ({"use_bias": False, "use_fast_variance": False}, SHAPE),
    ({"use_scale": False}, (BATCH, 2, 3, 2, 6)),
    ({"axis": 1}, (BATCH, 6, 4, 3)),
    ({"axis": (1, 3)}, (BATCH, 2, 3, 3)),
    ({"dtype": jnp.bfloat16}, SHAPE),
    ({"param_dtype": jnp.bfloat16}, SHAPE),
    ({"dtype": jnp.bfloat16, "force_float32_reductions": False}, SHAPE),
]


@pytest.mark.parametrize(("kwargs", "shape"), FLAX_CASES)
@pytest.mark.parametrize(("size", "rule"), [(BATCH, "mean"), (BATCH + 20, "sequential")])
@pytest.mark.parametrize("masked", [False, True])
def test_a_ghost_batch_of_the_whole_batch_is_flax_batch_norm(kwargs, shape, size, rule, masked):
    x = jnp.asarray(inputs(shape))
    theirs = nn.BatchNorm(**kwargs)
    ours = GhostBatchNorm(ghost_batch_size=size, stats_update=rule, **kwargs)
    mask = np.random.default_rng(3).random(shape) < 0.7 if masked else None
    variables = theirs.init(jax.random.key(0), x, use_running_average=False)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        variables, ours.init(jax.random.key(0), x, use_running_average=False)
    )
    y, updates = train(ours, variables, x, mask=mask)
    expected, expected_updates = train(theirs, variables, x, mask=mask)
    chex.assert_trees_all_equal_shapes_and_dtypes((y, updates), (expected, expected_updates))
    chex.assert_trees_all_equal(y, expected)
    # The weights of the ghost batches are float32 also where the statistics are not.
    half = not kwargs.get("force_float32_reductions", True)
    chex.assert_trees_all_close(updates, expected_updates, rtol=1e-2 if half else 1e-6)


@pytest.mark.parametrize("batch", [1, 7, 50])
def test_inference_is_flax_batch_norm_at_any_batch_size(batch):
    x, variables = inputs((batch, 4, 3, 6)), variables_for(6)
    y = GhostBatchNorm(use_running_average=True, ghost_batch_size=3).apply(variables, x)
    chex.assert_trees_all_equal(y, nn.BatchNorm(use_running_average=True).apply(variables, x))


@pytest.mark.parametrize("inner", [(), (5,), (4, 3), (2, 4, 3)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dimensions_and_dtypes(inner, dtype):
    x = jnp.asarray(inputs((BATCH, *inner, 6)), dtype)
    variables = variables_for(6)
    y, _ = train(GhostBatchNorm(ghost_batch_size=5, dtype=dtype), variables, x)
    assert y.dtype == dtype
    expected = Reference(variables, x.astype(jnp.float32), 5).output()
    np.testing.assert_allclose(np.float64(y), expected, atol=1e-4 if dtype == jnp.float32 else 2e-2)


def test_feature_axis_other_than_the_last():
    x, variables = inputs((BATCH, 6, 4, 3)), variables_for(6)
    y, _ = train(GhostBatchNorm(ghost_batch_size=5, axis=1), variables, x)
    expected = Reference(variables, np.moveaxis(x, 1, -1), 5).output()
    np.testing.assert_allclose(y, np.moveaxis(expected, -1, 1), atol=1e-5)


def test_under_vmap_each_model_has_its_own_statistics():
    x = inputs((3, *SHAPE))
    norm = GhostBatchNorm(ghost_batch_size=5)
    variables = jax.tree.map(lambda *a: np.stack(a), *[variables_for(6, s) for s in range(3)])
    y, updates = jax.vmap(functools.partial(train, norm))(variables, x)
    for i in range(3):
        one = jax.tree.map(lambda a: a[i], variables)  # noqa: B023
        expected = Reference(one, x[i], 5)
        np.testing.assert_allclose(y[i], expected.output(), atol=1e-5)
        np.testing.assert_allclose(
            updates["batch_stats"]["var"][i], expected.updated("mean")[1], atol=1e-5
        )


def spread(devices, norm, variables, x):
    """A training step with the batch cut over devices; statistics as each device has them."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))

    def step(variables, x):
        y, updates = train(norm, variables, x)
        return y, jax.tree.map(lambda a: a[None], updates["batch_stats"])

    return jax.jit(
        jax.shard_map(
            step, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"), check_vma=False
        )
    )


@pytest.mark.parametrize("rule", ["mean", "sequential"])
def test_over_devices_only_the_running_statistics_are_shared(rule):
    """Two shards of 6, ghost batches of 4 and 2: as two runs with their updates averaged."""
    x, variables = inputs(SHAPE), variables_for(6)
    norm = GhostBatchNorm(ghost_batch_size=4, stats_update=rule, axis_name="data")
    y, stats = spread(2, norm, variables, x)(variables, x)
    references = [Reference(variables, shard, 4) for shard in np.split(x, 2)]
    np.testing.assert_allclose(y, np.concatenate([r.output() for r in references]), atol=1e-5)
    for key, k in (("mean", 0), ("var", 1)):
        expected = np.mean([r.updated(rule)[k] for r in references], axis=0)
        np.testing.assert_allclose(stats[key], [expected] * 2, atol=1e-5)


def test_over_devices_the_normalisation_does_not_communicate():
    """Where only the outputs are asked for, the compiled program has no collective."""
    norm = GhostBatchNorm(ghost_batch_size=4, axis_name="data")
    x, variables = inputs(SHAPE), variables_for(6)
    step = spread(2, norm, variables, x)
    outputs = jax.jit(lambda v, x: step(v, x)[0]).lower(variables, x).compile().as_text()
    everything = step.lower(variables, x).compile().as_text()
    assert "all-reduce" not in outputs
    assert "all-reduce" in everything


def test_axis_index_groups_average_within_each_group():
    x, variables = inputs((24, 5, 6)), variables_for(6)
    norm = GhostBatchNorm(ghost_batch_size=3, axis_name="data", axis_index_groups=[[0, 1], [2, 3]])
    _, stats = spread(4, norm, variables, x)(variables, x)
    shards = [Reference(variables, shard, 3).updated("mean")[0] for shard in np.split(x, 4)]
    first, second = np.mean(shards[:2], axis=0), np.mean(shards[2:], axis=0)
    np.testing.assert_allclose(stats["mean"], [first, first, second, second], atol=1e-5)
    assert not np.allclose(first, second)


@pytest.mark.parametrize("order", [(1, 3, 2, 0), (3, 1, 0, 2), (1, 0, 2, 3)])
@pytest.mark.parametrize("size", [3, 5, 32])
def test_batch_axis(order, size):
    """The same numbers whatever the order of the axes, with a mask and without."""
    x, variables = inputs(SHAPE), variables_for(6)
    mask = np.random.default_rng(3).random(SHAPE) < 0.7
    plain = GhostBatchNorm(ghost_batch_size=size)
    moved = GhostBatchNorm(
        ghost_batch_size=size, axis=order.index(3), batch_axis=order.index(0) - 4
    )
    for m in (None, mask):
        expected, expected_stats = train(plain, variables, x, mask=m)
        y, stats = train(
            moved, variables, x.transpose(order), mask=m if m is None else m.transpose(order)
        )
        np.testing.assert_allclose(y, expected.transpose(order), atol=2e-5)
        chex.assert_trees_all_close(stats, expected_stats, atol=1e-5)
    y = moved.apply(variables, x.transpose(order), use_running_average=True)
    expected = plain.apply(variables, x, use_running_average=True)
    np.testing.assert_allclose(y, expected.transpose(order), atol=1e-5)


def test_initialisation_leaves_the_running_statistics_alone():
    x = inputs(SHAPE)
    norm = GhostBatchNorm(ghost_batch_size=5, axis_name="not_mapped_during_init")
    stats = norm.init(jax.random.key(0), x, use_running_average=False)["batch_stats"]
    chex.assert_trees_all_equal(stats, {"mean": np.zeros(6), "var": np.ones(6)})


@pytest.mark.parametrize(
    ("kwargs", "shape", "message"),
    [
        ({"ghost_batch_size": 0}, SHAPE, "ghost_batch_size must be at least 1, got 0"),
        ({"stats_update": "median"}, SHAPE, "'mean' or 'sequential', got 'median'"),
        ({"axis": 0}, SHAPE, "feature axis other than the batch"),
        ({"axis": 4}, SHAPE, "feature axis other than the batch"),
        ({"batch_axis": 4}, SHAPE, "feature axis other than the batch"),
        ({"axis": 1, "batch_axis": -3}, SHAPE, "feature axis other than the batch"),
        ({}, (12,), "at least two dimensions"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(kwargs, shape, message):
    with pytest.raises(ValueError, match=message) as error:
        GhostBatchNorm(**kwargs).init(jax.random.key(0), inputs(shape), use_running_average=False)
    assert "\n" not in str(error.value)
