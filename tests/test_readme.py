"""What the README shows runs."""

import re
from pathlib import Path

from jax_mnist import config
from jax_mnist.nn import cnn as model
from jax_mnist.nn.ghost_batch_norm import GhostBatchNorm

README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(word):
    """The names that the snippet with this word defines."""
    (snippet,) = (s for s in SNIPPETS if word in s)
    names: dict = {}
    exec(snippet, names)
    return names


def test_the_ghost_batch_norm_snippet_runs():
    names = run("class Network")
    assert names["GhostBatchNorm"] is GhostBatchNorm
    assert names["logits"].shape == (1, 10)
    assert names["variables"]["batch_stats"]["GhostBatchNorm_0"]["mean"].any()


def test_the_nnx_snippet_runs():
    names = run("nnx.Module")
    assert names["logits"].shape == (1, 10)
    assert names["value"] > 0
    assert names["model"].norm.mean[...].any()


def test_the_variant_of_ones_own_is_a_config():
    made = run("def get_config")["get_config"]()
    config.check(made)
    changed = {k: v for k, v in made.items() if v != config.base()[k]}
    assert changed == {"norm": "ghost", "ghost_batch_size": 16, "l2": 1e-4}


def test_the_layer_table_is_the_programs():
    assert model.layer_table(model.CNN()) in README
