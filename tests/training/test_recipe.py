"""What a config means for the network and for the program that is compiled."""

import pytest

from jax_mnist import config as config_lib
from jax_mnist.training.recipe import make_model, make_recipe


def config(**fields):
    base = config_lib.base()
    base.update(fields)
    return base


@pytest.mark.parametrize("norm", ["batch", "ghost"])
def test_equal_configs_give_equal_networks(norm):
    first, second = make_model(config(norm=norm)), make_model(config(norm=norm))
    assert first == second and hash(first) == hash(second)
    assert make_model(config(norm=norm, norm_momentum=0.8)) != first
    assert make_model(config(norm=norm), "data") != first
    other_ghosts = make_model(config(norm=norm, ghost_batch_size=16))
    assert (other_ghosts == first) == (norm == "batch")


def test_configs_that_differ_in_traced_values_alone_share_a_recipe():
    first = make_recipe(config(ema=0.9, sam=0.1), 256)
    for fields in ({"seed": 3, "l2": 0.1, "rotation": 20.0}, {"ema": 0.5, "sam": 1.0}):
        other = make_recipe(config(**{"ema": 0.9, "sam": 0.1} | fields), 256)
        assert other == first and hash(other) == hash(first)
    for fields in ({"ema": 0.9}, {"ema": 0.9, "sam": 0.1, "schedule": "cosine"}):
        assert make_recipe(config(**fields), 256) != first
