"""The script that repeats the published experiments, with a `python` that only takes notes."""

import os
import re
import subprocess

import pytest
from modules import ROOT

from jax_mnist import config

# Notes its arguments, and leaves what a finished run leaves in the folder that it is given.
PYTHON = """#!/bin/sh
echo "$@" >> "$NOTES"
for argument; do
  case $argument in --workdir=*)
    folder=${argument#--workdir=}
    mkdir -p "$folder" && touch "$folder/history.pkl" "$folder/variables.msgpack"
  esac
done
echo printed
exit $STATUS
"""


@pytest.fixture
def reproduce(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run(*arguments, status=0, **variables):
        (tmp_path / "notes").write_text("")
        variables |= {"NOTES": str(tmp_path / "notes"), "STATUS": str(status)}
        variables["PATH"] = f"{python.parent}:{os.environ['PATH']}"
        result = subprocess.run(
            ["bash", ROOT / "benchmarks" / "reproduce.sh", *arguments],
            cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return result, [*map(str.split, (tmp_path / "notes").read_text().splitlines())]

    return run


def test_every_step_of_the_help_calls_scripts_configs_and_fields_that_exist(reproduce, tmp_path):
    result, commands = reproduce("out", FASHION_MNIST=str(tmp_path))
    assert result.returncode == 0, result.stderr
    page, _ = reproduce("--help")
    steps = re.findall(r"^(\w+) +\d+ (?:minutes|hours?) ", page.stdout, re.MULTILINE)
    assert steps and {path.stem for path in (tmp_path / "out").glob("*.txt")} == set(steps)
    for script, *arguments in commands:
        names = [word for word in arguments if not re.match("-|.*=", word)]
        files = [ROOT / script, *(ROOT / "configs" / f"{name}.py" for name in names)]
        assert all(file.exists() for file in files), arguments
        fields = re.findall(r"(?:--config\.|--vary )(\w+)=", " ".join(arguments))
        assert set(fields) <= set(config.base()), arguments


def test_finished_steps_are_skipped_and_a_step_that_fails_leaves_no_text(reproduce, tmp_path):
    result, commands = reproduce("out", "layer", "choice")
    text, choice = (tmp_path / "out" / f"{step}.txt" for step in ("layer", "choice"))
    assert text.read_text() == "printed\n" and len(commands) == 4
    text.unlink()
    result, commands = reproduce("out", "choice", "layer", status=1)
    assert result.returncode == 1 and commands == [["benchmarks/layer.py"]]
    finished = f"choice: finished already, see {choice}"
    assert result.stdout.splitlines() == [finished, "layer: running", "printed"]
    assert not text.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a folder for the results"),
        (["--fast"], "unknown option --fast"),
        (["out", "study", "choice study"], "unknown step 'choice study'"),
        (["out"], "fashion needs Debian's package dataset-fashion-mnist"),
        (["notes/out", "layer"], "cannot make the folder notes/out"),
    ],
)
def test_a_bad_command_line_ends_in_one_line_before_anything_runs(reproduce, arguments, message):
    result, commands = reproduce(*arguments, FASHION_MNIST="nowhere")
    assert (result.returncode, result.stdout, commands) == (2, "", [])
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("reproduce.sh: ") and message in result.stderr
