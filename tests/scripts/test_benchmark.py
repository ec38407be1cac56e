"""The benchmark runs; what it measures is not a test's business."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "scripts" / "benchmark.py"


def benchmark(*arguments):
    return subprocess.run(
        [sys.executable, BENCHMARK, *arguments], capture_output=True, text=True, check=False
    )


def test_every_contestant_is_measured_or_named_as_missing():
    result = benchmark("--steps=1", "--rounds=1", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    results = report["results"]
    assert len(results) == 6
    for name, measured in results.items():
        if name.startswith("torch") and importlib.util.find_spec("torch") is None:
            assert "pip install" in measured["missing"]
            continue
        assert measured["first_step_seconds"] > 0 and measured["again_seconds"] > 0
        assert len(measured["epoch_seconds"]) == 1
        assert 0 < measured["accuracy"] < 1 and measured["peak_megabytes"] > 100
    # Layer by layer: twice the products, three times over, but the first layer's twice.
    products = 60840 + 829440 + 92160 + 90000 + 2 * 32000 + 57600 + 2 * 20480 + 45360 + 32256 + 160
    assert report["floor_per_image"]["operations"] == 6 * products - 2 * 60840


def test_bad_arguments_end_in_one_line():
    for argument in ("--rounds=0", "--rounds=x", "--no_such"):
        result = benchmark(argument)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1
        assert result.stderr.startswith("benchmark.py: ")
