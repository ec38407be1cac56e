"""What the README shows runs."""

import re
from pathlib import Path

from jax_mnist import model
from jax_mnist.normalization import GhostBatchNorm

README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_ghost_batch_norm_snippet_runs():
    (snippet,) = (s for s in SNIPPETS if "class Network" in s)
    names: dict = {}
    exec(snippet, names)
    assert names["GhostBatchNorm"] is GhostBatchNorm
    assert names["logits"].shape == (1, 10)
    assert names["variables"]["batch_stats"]["GhostBatchNorm_0"]["mean"].any()


def test_the_nnx_snippet_runs():
    (snippet,) = (s for s in SNIPPETS if "nnx.Module" in s)
    names: dict = {}
    exec(snippet, names)
    assert names["logits"].shape == (1, 10)
    assert names["value"] > 0
    assert names["model"].norm.mean[...].any()


def test_the_layer_table_is_the_programs():
    assert model.layer_table(model.CNN()) in README
