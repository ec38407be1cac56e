"""The benchmark of the layer measures equal computations; how fast they are is not tested."""

import functools
import runpy
import sys
from pathlib import Path

import chex
import flax.linen as nn
import jax
import modules
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_layer.py"


@pytest.fixture(scope="module")
def benchmark():
    return modules.load("scripts/benchmark_layer.py")


@pytest.mark.usefixtures("in_float64")
def test_every_way_normalises_alike(benchmark):
    @jax.jit  # one program compiles faster than each operation by itself
    def outputs(x):
        variables = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x)
        ways = (benchmark.ghost, benchmark.vmap, benchmark.loop)
        return [benchmark.batch(variables, x), *(way(variables, x, size=4) for way in ways)]

    (batch, _), ghost, vmap, (loop, _) = outputs(jax.random.normal(jax.random.key(1), (8, 3)))
    chex.assert_trees_all_close(vmap, ghost, rtol=1e-9, atol=1e-9)
    chex.assert_trees_all_close(loop, ghost[0], rtol=1e-9, atol=1e-9)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(batch, ghost[0], atol=1e-2)


def test_it_prints_a_table_each_of_time_memory_and_compilation(benchmark, monkeypatch, capsys):
    ways = {"BatchNorm": benchmark.batch, "ghosts": functools.partial(benchmark.ghost, size=4)}
    for name, value in {"SHAPES": ((8, 3),), "DTYPES": ("float32",), "WAYS": ways}.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark, "SECONDS", 0)
    monkeypatch.setattr(sys, "argv", ["benchmark_layer.py", "--rounds=2"])
    cache = jax.config.jax_enable_compilation_cache
    benchmark.main()
    jax.config.update("jax_enable_compilation_cache", cache)
    tables = [t.splitlines() for t in capsys.readouterr().out.split("\n\n")[1::2]]
    assert [table[0] for table in tables] == 3 * ["| input | BatchNorm | ghosts |"]
    cells = [table[2].strip("| ").split(" | ") for table in tables]
    assert all(row[0] == "[8, 3] float32" and float(row[1].split()[0]) >= 0 for row in cells)
    low, high = (float(bound) for bound in cells[0][2].strip(")").split("(")[1].split(" to "))
    assert 0 < low <= float(cells[0][2].split()[0]) <= high


@pytest.mark.parametrize("argument", ["--rounds=1", "--rounds=x", "--no_such"])
def test_a_bad_argument_of_the_layer_benchmark_ends_in_one_line(argument, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark_layer.py", argument])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("benchmark_layer.py: ") and len(errors.splitlines()) == 1
