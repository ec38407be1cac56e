"""The benchmarks measure their programs; how fast they are is not tested."""

import csv
import importlib.util
import runpy
import subprocess
import sys

import modules
import pytest


def test_a_table_has_medians_and_ratios_within_rounds():
    table = modules.load("benchmarks/benchmark.py").table
    ours = (9.0, 3.0, [(2.0, 800.0, 9.0), (4.0, 900.0, 95.0), (3.0, 950.4, 99.0)])
    theirs = (5.0, 4.0, [(4.0, 700.0, 9.0), (4.0, 700.0, 95.0), (9.0, 700.0, 98.0)])
    first, second = table({"jax_mnist, bn": ours, "torch, eager": theirs}, images=600)
    assert first == {
        "program": "jax_mnist, bn", "seconds": 3.0, "fastest": 2.0, "slowest": 4.0,
        "images_per_second": 200, "relative_time": 1.0, "first_step_seconds": 9.0,
        "second_run_seconds": 3.0, "megabytes": 950, "accuracy_percent": 99.0,
    }  # fmt: skip
    assert second["relative_time"] == 2.0 and second["seconds"] == 4.0


@pytest.mark.parametrize("study", [[], ["--study"]])
def test_every_program_that_is_installed_is_measured(study, tmp_path, thorough):
    if not thorough:
        pytest.skip("compiles every program: --thorough")
    command = [sys.executable, modules.ROOT / "benchmarks" / "benchmark.py"]
    result = subprocess.run(
        [*command, "--steps=1", "--rounds=1", *study],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = [*csv.DictReader(result.stdout.splitlines())]
    assert len(rows) == (6 if importlib.util.find_spec("torch") else 2)
    for row in rows:
        assert all(float(row[key]) > 0 for key in row if key != "program"), row
        assert float(row["megabytes"]) > 100 and float(row["accuracy_percent"]) < 100


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("benchmark.py", "--rounds=0"),
        ("benchmark.py", "--steps=469"),
        ("layer.py", "--rounds=1"),
        ("layer.py", "--rounds=x"),
        ("parity.py", "--seeds=1"),
        ("parity.py", "--no_such"),
    ],
)
def test_a_bad_argument_ends_in_one_line(name, argument, monkeypatch, capsys):
    with modules.as_a_script() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", [name, argument])
        runpy.run_path(str(modules.ROOT / "benchmarks" / name), run_name="__main__")
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"{name}: ") and len(errors.splitlines()) == 1
