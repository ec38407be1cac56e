"""What a config means for the network."""

from types import SimpleNamespace

import pytest

from jax_mnist.training.recipe import make_model


@pytest.mark.parametrize("norm", ["batch", "ghost"])
def test_equal_configs_give_equal_networks(norm):
    def config(**fields):
        common = {"norm": norm, "norm_momentum": 0.9, "ghost_batch_size": 32}
        return SimpleNamespace(**common | {"stats_update": "mean"} | fields)

    first, second = make_model(config()), make_model(config())
    assert first == second and hash(first) == hash(second)
    assert make_model(config(norm_momentum=0.8)) != first
    assert make_model(config(), "data") != first
    assert (make_model(config(ghost_batch_size=16)) == first) == (norm == "batch")
