"""The script of the measurements that need a GPU, without making any of them."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu.sh"
FILES = ("benchmark.md", "scale.md", "convolutions.md", "resuming.md", "study/report.html")


def gpu(*arguments, cwd, **variables):
    return subprocess.run(
        ["bash", SCRIPT, *arguments], cwd=cwd, env=os.environ | variables,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_help_lists_every_result(tmp_path):
    result = gpu("--help", cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    assert all(f" {name}, " in result.stdout for name in FILES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a folder for the results"),
        (["--fast"], "unknown option --fast"),
        (["one", "two"], "one folder only"),
        (["file/out"], "cannot make the folder file/out"),
    ],
)
def test_a_bad_command_line_ends_in_one_line(arguments, message, tmp_path):
    (tmp_path / "file").touch()
    result = gpu(*arguments, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("gpu.sh: ") and message in result.stderr


@pytest.mark.parametrize("missing", [None, *FILES])
def test_steps_run_in_order_and_what_is_finished_is_not_repeated(missing, tmp_path):
    """`python` is a program here that only says what it was asked for, and fails."""
    for name in FILES:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        if name != missing:
            (tmp_path / "out" / name).touch()
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$@" >&2\nexit 1\n')
    python.chmod(0o755)
    result = gpu("out", cwd=tmp_path, PATH=f"{python.parent}:{os.environ['PATH']}")
    lines = result.stdout.splitlines()
    if missing is None:
        assert result.returncode == 0 and result.stderr == ""
        assert [line.split()[-1] for line in lines] == [f"{tmp_path}/out/{name}" for name in FILES]
        return
    assert result.returncode == 1
    step = Path(missing).parts[0].removesuffix(".md")
    assert lines[-2:] == [f"{step}: running", f"{step}: not finished; run the same command again"]
    assert len(lines) == FILES.index(missing) + 2
    assert result.stderr.startswith("scripts/") and not (tmp_path / "out" / missing).exists()
