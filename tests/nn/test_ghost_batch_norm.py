"""Ghost batch norm against NumPy in float64, and the layer against flax.linen.BatchNorm."""

import functools
import subprocess
import sys
import warnings

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_reference import Reference, inference
from rounding import assert_close

from jax_mnist.nn.ghost_batch_norm import (
    GhostBatchNorm,
    ghost_batch_norm,
    update_running_statistics,
)

BATCH = 12
SHAPE = (BATCH, 4, 3, 6)
RULES = ("mean", "pooled", "sequential")


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


@functools.partial(jax.jit, static_argnames=("momentum", "axis_name", "settings"))
def step(variables, x, *, settings, mask=None, momentum=0.8, axis_name=None):
    """The pure functions: output, and the running statistics under both rules."""
    params, running = variables["params"], variables["batch_stats"]
    y, ghosts = ghost_batch_norm(x, params["scale"], params["bias"], mask=mask, **dict(settings))
    updated = {
        rule: update_running_statistics(
            (running["mean"], running["var"]),
            ghosts,
            momentum=momentum,
            stats_update=rule,
            axis_name=axis_name,
        )
        for rule in RULES
    }
    return y, updated


def of(size, **others):
    return tuple({"ghost_batch_size": size, **others}.items())


def updates_of(reference):
    return {rule: tuple(reference.updated(rule)) for rule in RULES}


@pytest.mark.parametrize(
    ("size", "fast"),
    [(1, True), (3, True), (5, True), (12, True), (32, False), (1, False), (5, False)],
)
def test_output_gradients_and_running_statistics(size, fast):
    x, variables, cotangent = inputs(SHAPE), variables_for(6), inputs(SHAPE, seed=2) / 3
    expected = Reference(variables, x, size, momentum=0.8, use_fast_variance=fast)

    @jax.jit
    def gradients(params, x):
        def objective(params, x):
            one_step = functools.partial(step, settings=of(size, use_fast_variance=fast))
            # Rematerialised where the variance is the accurate one.
            one_step = one_step if fast else jax.checkpoint(one_step)
            y, updated = one_step(variables | {"params": params}, x)
            return (y * cotangent).sum(), (y, updated)

        return jax.grad(objective, argnums=(0, 1), has_aux=True)(params, x)

    (to_params, to_x), (y, updated) = gradients(variables["params"], x)
    assert_close(y, expected.output())
    assert_close(updated, updates_of(expected))
    assert_close((to_x, to_params["scale"], to_params["bias"]), expected.gradients(cotangent))


def test_batches_of_any_size_and_mask_are_cut_as_evenly_as_possible(thorough):
    @settings(max_examples=60 if thorough else 12, deadline=None)
    @given(
        batch=st.integers(1, 20),
        size=st.integers(1, 25),
        inner=st.lists(st.integers(2, 4), min_size=0, max_size=3),
        kept=st.sampled_from([1.0, 0.7, 0.2]),
        seed=st.integers(0, 1000),
    )
    def check(batch, size, inner, kept, seed):
        x, variables = inputs((batch, *inner, 2), seed), variables_for(2)
        mask = np.random.default_rng(seed).random((batch, *[1] * (len(inner) + 1))) < kept
        with warnings.catch_warnings(action="ignore"):  # of one example alone
            y, updated = step(variables, x, mask=mask, momentum=0.7, settings=of(size))
        expected = Reference(variables, x, size, momentum=0.7, mask=mask)
        assert_close(y, expected.output())
        assert_close(updated, updates_of(expected))

    check()


def test_every_ghost_batch_has_mean_0_and_variance_1():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(2, 3, (11, 4, 3))
        y, _ = ghost_batch_norm(x, ghost_batch_size=4, epsilon=0.0)
    for ghost in np.array_split(np.asarray(y), 3):
        np.testing.assert_allclose(ghost.mean((0, 1)), 0, atol=1e-12)
        np.testing.assert_allclose(ghost.var((0, 1)), 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({}, (BATCH, 6)),
        ({"momentum": 0.9, "epsilon": 1e-3}, (BATCH, 5, 6)),
        ({"use_bias": False, "use_fast_variance": False}, (BATCH, 5, 6)),
        ({"use_scale": False}, (BATCH, 2, 3, 2, 6)),
        ({"axis": 1}, (BATCH, 6, 4, 3)),
        ({"axis": (1, 3)}, (BATCH, 2, 3, 3)),
        ({"dtype": jnp.bfloat16}, (BATCH, 5, 6)),
        ({"param_dtype": jnp.bfloat16}, (BATCH, 5, 6)),
        ({"dtype": jnp.bfloat16, "force_float32_reductions": False}, (BATCH, 5, 6)),
    ],
)
def test_a_ghost_batch_of_the_whole_batch_is_flax_batch_norm(arguments, shape):
    x = jnp.asarray(inputs(shape))
    theirs = nn.BatchNorm(**arguments)
    variables = theirs.init(jax.random.key(0), x, use_running_average=False)
    mask = np.random.default_rng(3).random(shape) < 0.7
    for size, rule, m in ((BATCH, "mean", None), (BATCH + 20, "sequential", mask)):
        ours = GhostBatchNorm(ghost_batch_size=size, stats_update=rule, **arguments)
        y, updates = train(ours, variables, x, mask=m)
        expected, expected_updates = train(theirs, variables, x, mask=m)
        chex.assert_trees_all_equal_shapes_and_dtypes((y, updates), (expected, expected_updates))
        chex.assert_trees_all_equal(y, expected)
        # The weights of the ghost batches are float32 also where the statistics are not.
        half = not arguments.get("force_float32_reductions", True)
        chex.assert_trees_all_close(updates, expected_updates, rtol=1e-2 if half else 1e-6)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        variables, ours.init(jax.random.key(0), x, use_running_average=False)
    )


def test_inference_is_flax_batch_norm_at_any_batch_size():
    variables = variables_for(6)
    for batch in (1, 7):
        x = inputs((batch, 5, 6))
        y = GhostBatchNorm(use_running_average=True, ghost_batch_size=3).apply(variables, x)
        chex.assert_trees_all_equal(y, nn.BatchNorm(use_running_average=True).apply(variables, x))


@pytest.mark.parametrize("stats_update", RULES)
def test_the_layer_holds_the_variables_of_the_pure_functions(stats_update):
    x, variables = inputs(SHAPE), variables_for(6)
    mask = np.random.default_rng(3).random(SHAPE) < 0.7
    norm = GhostBatchNorm(
        ghost_batch_size=5, momentum=0.8, stats_update=stats_update, use_fast_variance=False
    )
    y, updates = jax.jit(functools.partial(train, norm))(variables, x, mask=mask)
    expected = Reference(variables, x, 5, momentum=0.8, mask=mask, use_fast_variance=False)
    mean, var = expected.updated(stats_update)
    assert_close((y, updates), (expected.output(), {"batch_stats": {"mean": mean, "var": var}}))


@pytest.mark.parametrize(
    "dtype",
    [jnp.bfloat16, jnp.float16],
)
def test_the_result_has_the_dtype_that_is_asked_for(dtype):
    x = jnp.asarray(inputs((BATCH, 5, 6)), dtype)
    variables = variables_for(6)
    y, updated = step(variables, x, settings=of(5, dtype=dtype))
    assert y.dtype == dtype
    expected = Reference(variables, x.astype(jnp.float32), 5, momentum=0.8)
    assert_close((y, updated), (expected.output(), updates_of(expected)))


@pytest.mark.parametrize("fast", [True, False])
def test_complex_numbers(fast):
    x = (inputs((BATCH, 5, 6)) + 1j * inputs((BATCH, 5, 6), seed=4)).astype(np.complex64)
    variables = variables_for(6)
    norm = GhostBatchNorm(ghost_batch_size=5, momentum=0.8, use_fast_variance=fast)
    y, updates = jax.jit(functools.partial(train, norm))(variables, x)
    expected = Reference(variables, x, 5, momentum=0.8, use_fast_variance=fast)
    mean, var = expected.updated("mean")
    assert_close((y, updates), (expected.output(), {"batch_stats": {"mean": mean, "var": var}}))
    whole = norm.clone(ghost_batch_size=BATCH)
    theirs = nn.BatchNorm(momentum=0.8, use_fast_variance=fast)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        train(whole, variables, x), train(theirs, variables, x)
    )


@pytest.mark.parametrize("fast", [True, False])
def test_float64_is_exact_to_its_own_precision(fast):
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(100, 1, (BATCH, 5, 6))
        variables = jax.tree.map(np.float64, variables_for(6))
        settings = of(5, use_fast_variance=fast)
        found = jax.tree.map(np.asarray, step(variables, x, settings=settings))
    expected = Reference(variables, x, 5, momentum=0.8, use_fast_variance=fast)
    assert_close(found, (expected.output(), updates_of(expected)), arithmetic=jnp.float64)


@pytest.mark.parametrize("size", [1, 4, 6, 12])
def test_what_is_masked_may_be_infinite_or_nan(size):
    """The statistics are those of finite padding; so are outputs and gradients of what is kept."""
    kept = np.ones((BATCH, 1, 1), bool)
    kept[[4, 5, 6, 7]] = False
    finite, variables = inputs((BATCH, 5, 6)), variables_for(6)
    results = []
    for padding in (1.0, np.nan, np.inf):
        x = np.where(kept, finite, np.float32(padding))
        y, updated = step(variables, x, mask=kept, settings=of(size))
        results.append((y[kept[:, 0, 0]], updated))
    chex.assert_tree_all_finite(results[0])
    chex.assert_trees_all_equal(*results)


def test_rank_promotion_is_not_needed():
    with jax.numpy_rank_promotion("raise"):
        for rule in RULES:
            norm = GhostBatchNorm(ghost_batch_size=5, stats_update=rule)
            train(norm, variables_for(6), inputs(SHAPE), mask=np.ones(SHAPE, bool))


def test_a_checkpoint_of_batch_norm_loads_into_the_layer_and_back():
    x = inputs(SHAPE)
    theirs, ours = nn.BatchNorm(momentum=0.8), GhostBatchNorm(ghost_batch_size=5, momentum=0.8)
    start = theirs.init(jax.random.key(0), x, use_running_average=False)
    saved = serialization.to_bytes(start | train(theirs, start, x)[1])
    loaded = serialization.from_bytes(ours.init(jax.random.key(1), x, False), saved)
    trained = loaded | train(ours, loaded, x)[1]
    back = serialization.from_bytes(start, serialization.to_bytes(trained))
    chex.assert_trees_all_equal(
        ours.apply(trained, x, use_running_average=True),
        theirs.apply(back, x, use_running_average=True),
    )
    expected = Reference(loaded, x, 5, momentum=0.8).updated("mean")
    assert_close(back["batch_stats"]["mean"], expected[0])


def test_one_example_alone_is_warned_of():
    x = inputs((7, 6))
    message = "for a batch of 7, use a ghost_batch_size of at least 3 instead of 2"
    with pytest.warns(UserWarning, match=message):
        ghost_batch_norm(x, ghost_batch_size=2)  # ghost batches of 2, 2, 2 and 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ghost_batch_norm(x, ghost_batch_size=3)  # 3, 2 and 2
        ghost_batch_norm(x[:1], ghost_batch_size=3)
        ghost_batch_norm(inputs(SHAPE), ghost_batch_size=1)  # a variance over 4 x 3 positions


def test_under_vmap_each_model_has_its_own_statistics():
    x = inputs((3, *SHAPE))
    variables = jax.tree.map(lambda *a: np.stack(a), *[variables_for(6, s) for s in range(3)])
    y, updated = jax.vmap(functools.partial(step, settings=of(5)))(variables, x)
    for i in range(3):
        one = jax.tree.map(lambda a: a[i], variables)  # noqa: B023
        expected = Reference(one, x[i], 5, momentum=0.8)
        of_model = jax.tree.map(lambda a: a[i], (y, updated))  # noqa: B023
        assert_close(of_model, (expected.output(), updates_of(expected)))


@pytest.mark.parametrize(
    ("order", "size"),
    [((1, 3, 2, 0), 5), ((1, 3, 2, 0), 32), ((3, 1, 0, 2), 3), ((0, 3, 1, 2), 5)],
)
def test_the_order_of_the_axes_does_not_matter(order, size):
    """The same numbers, with a mask and without, in training and in inference."""
    x, variables = inputs(SHAPE), variables_for(6)
    mask = np.random.default_rng(3).random(SHAPE) < 0.7
    axes = {"axis": order.index(3), "batch_axis": order.index(0) - 4}
    for m in (np.ones(SHAPE, bool), mask):
        expected = Reference(variables, x, size, momentum=0.8, mask=m)
        y, statistics = step(
            variables, x.transpose(order), mask=m.transpose(order), settings=of(size, **axes)
        )
        assert_close(y.transpose(np.argsort(order)), expected.output())
        assert_close(statistics, updates_of(expected))
    y = GhostBatchNorm(use_running_average=True, **axes).apply(variables, x.transpose(order))
    assert_close(y.transpose(np.argsort(order)), inference(variables, x))


def test_initialisation_leaves_the_running_statistics_alone():
    x = inputs(SHAPE)
    norm = GhostBatchNorm(ghost_batch_size=5, axis_name="not_mapped_during_init")
    stats = norm.init(jax.random.key(0), x, use_running_average=False)["batch_stats"]
    chex.assert_trees_all_equal(stats, {"mean": np.zeros(6), "var": np.ones(6)})


@pytest.mark.parametrize(
    ("kwargs", "shape", "message"),
    [
        ({"ghost_batch_size": 0}, SHAPE, "integer of at least 1, got 0"),
        ({"ghost_batch_size": 16.0}, SHAPE, "integer of at least 1, got 16.0"),
        ({"ghost_batch_size": True}, SHAPE, "integer of at least 1, got True"),
        ({"stats_update": "median"}, SHAPE, "'pooled' or 'sequential', got 'median'"),
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


@pytest.mark.parametrize("value", [16, 16.0, "no", np.int32(1)])
def test_a_size_that_is_taken_for_use_running_average_is_refused(value):
    with pytest.raises(TypeError, match=r"must be None or a boolean, got .*ghost_batch_size="):
        GhostBatchNorm(value)
    with pytest.raises(TypeError, match=r"must be None or a boolean, got .*ghost_batch_size="):
        GhostBatchNorm().init(jax.random.key(0), inputs(SHAPE), value)
    with pytest.raises(TypeError, match="got array"):
        GhostBatchNorm(np.array([True, False]))
    for boolean in (True, np.bool_(False), jnp.bool_(True)):
        GhostBatchNorm(boolean).init(jax.random.key(0), inputs(SHAPE))
        GhostBatchNorm().init(jax.random.key(0), inputs(SHAPE), boolean)


def test_importing_the_layer_imports_nothing_that_it_does_not_need():
    code = """
import sys
from jax_mnist import GhostBatchNorm
heavy = {"matplotlib", "ml_collections", "scipy", "tensorflow_datasets"}
print(sorted(heavy.intersection(sys.modules)), GhostBatchNorm.__module__)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["[]", "jax_mnist.nn.ghost_batch_norm"]
