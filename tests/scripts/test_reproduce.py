"""The script that repeats the published experiments, step by step, and one of its steps."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def reproduce(*arguments, cwd=None, **variables):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # of the python that it calls
    return subprocess.run(
        ["bash", SCRIPTS / "reproduce.sh", *arguments],
        cwd=cwd, env=os.environ | {"PATH": path, **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_help_lists_every_step_with_its_duration():
    result = reproduce("--help")
    assert result.returncode == 0 and result.stderr == ""
    listed = re.findall(r"^(\w+) +\d+ (?:minutes|hours) ", result.stdout, re.MULTILINE)
    unknown = reproduce("nowhere", "unknown").stderr
    assert listed and unknown.split("choose from ")[1].split() == listed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a folder for the results"),
        (["--fast"], "unknown option --fast"),
        (["out", "study", "choise"], "unknown step 'choise'"),
        (["out", "choice study"], "unknown step 'choice study'"),
        (["out", "fashion"], "fashion needs Debian's package dataset-fashion-mnist"),
        (["out"], "fashion needs Debian's package dataset-fashion-mnist"),
        (["file/out", "communication"], "cannot make the folder file/out"),
    ],
)
def test_a_bad_command_line_ends_in_one_line_before_anything_runs(arguments, message, tmp_path):
    (tmp_path / "file").touch()
    result = reproduce(*arguments, cwd=tmp_path, FASHION_MNIST="nowhere")
    assert result.returncode == 2 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("reproduce.sh: ") and message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_finished_steps_are_skipped(tmp_path):
    finished = {"communication.md": "done", "study/report.html": "<p>done</p>"}
    for name, text in finished.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(text)
    result = reproduce("out", "communication", "study", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"communication: finished already, see {tmp_path}/out/communication.md",
        f"study: finished already, see {tmp_path}/out/study/report.html",
    ]
    for name, text in finished.items():
        assert (tmp_path / "out" / name).read_text() == text


def test_a_step_that_fails_leaves_no_results(tmp_path):
    result = reproduce("out", "communication", cwd=tmp_path, JAX_ENABLE_X64="neither")
    assert result.returncode not in (0, 2)
    assert result.stdout == "communication: running\n"
    assert not (tmp_path / "out" / "communication.md").exists()


def test_a_step_writes_its_results(tmp_path, thorough):
    if not thorough:
        pytest.skip("compiles for minutes: --thorough")
    result = reproduce("out", "communication", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["communication.md"]
    table = (tmp_path / "out" / "communication.md").read_text().splitlines()
    assert table[0] == "| norm | devices | collective operations | bytes |"
    assert table[2] == "| ghost | 8 for replicas | 0 | 0 |"  # replicas never communicate
    ghost, batch = (int(line.split(" | ")[2]) for line in table[3:])
    assert ghost < batch  # batch norm averages the statistics of each layer too


def test_communication_explains_itself_and_refuses_arguments_in_one_line(monkeypatch, capsys):
    for argument, code in (("--help", 0), ("--norm=batch", 2)):
        monkeypatch.setattr(sys, "argv", ["communication.py", argument])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPTS / "communication.py"), run_name="__main__")
        assert end.value.code == code
        out, errors = capsys.readouterr()
        if code == 0:
            assert "python scripts/communication.py" in out and errors == ""
        else:
            assert errors == "communication.py: unrecognized arguments: --norm=batch\n"
            assert out == ""
