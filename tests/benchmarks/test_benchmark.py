"""The benchmarks measure their programs; how fast they are is not tested."""

import importlib.util
import io
import runpy
import subprocess
import sys

import modules
import pandas as pd
import pytest


def test_a_table_has_medians_and_ratios_within_rounds():
    table = modules.load("benchmarks/benchmark.py").table
    epochs = {
        "torch": [(2.0, 9.0, 800.0), (4.0, 95.0, 900.0), (3.0, 99.0, 950.4)],
        "jax": [(4.0, 9.0, 700.0), (4.0, 95.0, 700.0), (9.0, 98.0, 700.0)],
    }
    rows = table({"torch": 9.0, "jax": 5.0}, {"torch": 3.0, "jax": 4.0}, epochs, images=600)
    assert rows.to_csv(index=False).splitlines() == [
        "program,seconds,fastest,slowest,images_per_second,relative_time,first_step_seconds,"
        "second_run_seconds,megabytes,accuracy_percent",
        "torch,3.0,2.0,4.0,200,1.0,9.0,3.0,950,99.0",
        "jax,4.0,4.0,9.0,150,2.0,5.0,4.0,700,98.0",
    ]


@pytest.mark.parametrize("study", [[], ["--study"]])
def test_every_program_that_is_installed_is_measured(study, tmp_path, thorough):
    if not thorough:
        pytest.skip("compiles every program: --thorough")
    command = [sys.executable, modules.ROOT / "benchmarks/benchmark.py", "--steps=1", "--rounds=1"]
    output = subprocess.check_output([*command, *study], cwd=tmp_path, text=True)
    rows = pd.read_csv(io.StringIO(output), index_col="program")
    assert len(rows) == (6 if importlib.util.find_spec("torch") else 2)
    assert (rows > 0).all(axis=None)
    assert (rows.megabytes > 100).all() and (rows.accuracy_percent < 100).all()


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
