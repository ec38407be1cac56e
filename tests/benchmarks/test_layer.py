"""The benchmark of the layer measures equal computations; how fast they are is not tested."""

import functools

import chex
import flax.linen as nn
import jax
import modules
import pytest


@pytest.fixture(scope="module")
def layer():
    return modules.load("benchmarks/layer.py")


@pytest.mark.usefixtures("in_float64")
def test_every_way_normalises_alike(layer):
    @jax.jit  # one program compiles faster than each operation by itself
    def outputs(x):
        variables = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x)
        ways = (layer.ghost, layer.vmap, layer.loop)
        return [layer.batch(variables, x), *(way(variables, x, size=4) for way in ways)]

    (batch, _), ghost, vmap, (loop, _) = outputs(jax.random.normal(jax.random.key(1), (8, 3)))
    chex.assert_trees_all_close(vmap, ghost, rtol=1e-9, atol=1e-9)
    chex.assert_trees_all_close(loop, ghost[0], rtol=1e-9, atol=1e-9)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(batch, ghost[0], atol=1e-2)


def test_every_way_is_compared_with_the_first(layer, monkeypatch):
    monkeypatch.setattr(layer, "SECONDS", 0)
    ways = {"BatchNorm": layer.batch, "ghosts": functools.partial(layer.ghost, size=4)}
    rows = layer.measure(ways, (8, 3), "float32", rounds=2)
    assert [row["layer"] for row in rows] == ["BatchNorm", "ghosts"]
    for row in rows:
        assert row["input"] == "[8, 3] float32" and row["milliseconds"] > 0
        assert 0 < row["low"] <= row["relative_time"] <= row["high"] and row["megabytes"] >= 0
