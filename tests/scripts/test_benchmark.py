"""The benchmark measures its contestants; how fast they are is not tested."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import modules
import pytest

BENCHMARK = Path(__file__).parents[2] / "scripts" / "benchmark.py"


@pytest.fixture(scope="module")
def benchmark():
    return modules.load("scripts/benchmark.py")


def script(*arguments):
    return subprocess.run(
        [sys.executable, BENCHMARK, *arguments], capture_output=True, text=True, check=False
    )


def check_measured(result):
    assert result["first_step_seconds"] > 0
    assert len(result["epoch_seconds"]) == 1
    assert 0 < result["accuracy"] < 1 and result["peak_megabytes"] > 100


@pytest.mark.parametrize("cores", [(None,), (min(os.sched_getaffinity(0)),) * 2])
def test_a_contestant_is_measured_and_tabulated(benchmark, tmp_path, thorough, cores):
    if not thorough:
        pytest.skip("compiles the network: --thorough")
    name = "jax_mnist, bn"
    results = benchmark.measure([name], steps=1, rounds=1, folder=str(tmp_path), cores=cores)
    check_measured(results[name])
    assert results[name]["images"] == 128 * len(cores)
    results["torch, eager"] = {"missing": "missing: pip install"}
    head, _, measured, missing = benchmark.table(results, name).splitlines()
    assert head.split(" | ")[3] == f"time of {name}"
    assert measured.split(" | ")[3] == "1.00"
    assert missing.startswith("| torch, eager | missing: pip install |")


def test_the_floor_counts_the_products_of_each_layer(benchmark):
    # Layer by layer: each product is two operations, and is made three times, for the output and
    # the two gradients. The first layer needs no gradient for its input.
    products = 60840 + 829440 + 92160 + 90000 + 2 * 32000 + 57600 + 2 * 20480 + 45360 + 32256 + 160
    assert benchmark.floor()["operations"] == 6 * products - 2 * 60840


def test_every_contestant_is_measured_or_named_as_missing(thorough):
    if not thorough:
        pytest.skip("compiles every contestant: --thorough")
    result = script("--steps=1", "--rounds=1", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert len(report["results"]) == 6
    for name, measured in report["results"].items():
        if name.startswith("torch") and importlib.util.find_spec("torch") is None:
            assert "pip install" in measured["missing"]
        else:
            check_measured(measured)
            assert measured["again_seconds"] > 0
    assert report["ceilings"]["gflops"] > 0 and report["floor_per_image"]["bytes"] > 0


def test_bad_arguments_end_in_one_line():
    for argument in ("--rounds=0", "--rounds=x", "--no_such"):
        result = script(argument)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("benchmark.py: ")
