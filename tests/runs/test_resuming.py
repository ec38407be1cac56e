"""A run as a process: stopped, killed, out of disk, it resumes to the same result."""

import functools
import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny import ROOT

from jax_mnist.runs.record import load_record

SCRIPT = ROOT / "scripts" / "train.py"
OPTIONS = [
    "--config", ROOT / "configs" / "gbn_l2.py", "--config.epochs=3", "--config.ema=0.9",
    "--config.train_split=train[:6400]", "--config.validation_split=test[:150]",
    "--config.batch_size=64", "--config.data_devices=1",
]  # fmt: skip


def start(workdir, program=(ROOT / "tests" / "tiny.py",), options=()):
    """The script, or a program that runs it, as a process."""
    command = [sys.executable, *program, SCRIPT, *OPTIONS, f"--workdir={workdir}", *options]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        # Tests may run in the background, where SIGINT is ignored, and stays so.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def finish(workdir):
    """Runs it to its end, and returns what it wrote on standard error."""
    process = start(workdir)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return errors


def wait_for(workdir, process, pattern="*.msgpack"):
    while process.poll() is None and not any(workdir.glob(f"checkpoints/{pattern}")):
        time.sleep(0.001)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(workdir)
    return workdir


def assert_same_results(workdir, expected):
    first, second = (load_record(folder / "history.pkl") for folder in (workdir, expected))
    metrics = {"epoch": np.arange(1, 4), **first["metrics"]}
    epochs = [{key: value[epoch] for key, value in metrics.items()} for epoch in range(3)]
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == epochs
    for record in (first, second):
        assert (record["metrics"].pop("seconds") > 0).all()
    jax.tree.map(np.testing.assert_array_equal, first, second)
    final = "variables.msgpack"
    assert (workdir / final).read_bytes() == (expected / final).read_bytes()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_saves_and_resumes_to_the_same_result(
    whole, tmp_path, thorough, number, status
):
    if not thorough and number == signal.SIGTERM:
        pytest.skip("it takes the same way as SIGINT; --thorough runs both")
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_for(workdir, process)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == status, errors
    assert errors.splitlines()[-1].endswith("run the same command again to resume")
    assert not (workdir / "history.pkl").exists()
    assert "run, seed 0: resuming" in finish(workdir)
    assert_same_results(workdir, whole)


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, options=["--config.batch_size=65"])  # so that it has to compile
    while process.poll() is None and not (workdir / "metrics.jsonl").exists():
        time.sleep(0.001)  # from then on it waits for signals
    process.send_signal(signal.SIGINT)
    assert any("press Ctrl-C again to leave at once" in line for line in process.stderr)
    begin = time.perf_counter()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert time.perf_counter() - begin < 2
    assert not (workdir / "history.pkl").exists()


def test_a_run_killed_at_random_moments_resumes_to_the_same_result(whole, tmp_path, thorough):
    rng = np.random.default_rng(0)
    workdir = tmp_path / "run"
    for _ in range(30 if thorough else 2):
        if (workdir / "history.pkl").exists():  # finished before it was killed: once more
            assert_same_results(workdir, whole)
            shutil.rmtree(workdir)
        process = start(workdir)
        wait_for(workdir, process, "*")
        time.sleep(rng.uniform(0, 1))
        process.kill()
        process.communicate()
    finish(workdir)
    assert_same_results(workdir, whole)


PATCHED = f"""
import os, resource, runpy, signal, sys
name, sys.argv = sys.argv[1], [{str(ROOT / "tests" / "tiny.py")!r}, *sys.argv[2:]]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
%s
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Dies in the moment before a file gets its name.
DIE = """
replace = os.replace
def replace_or_die(source, target):
    if os.path.basename(target) == name:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = replace_or_die
"""
# A limit on the size of files stands for a full disk from the moment in which a file is opened.
FULL = """
import builtins
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
plain = builtins.open
def open_full(file, *args, **options):
    if isinstance(file, (str, os.PathLike)) and f".{name}." in os.path.basename(file):
        resource.setrlimit(resource.RLIMIT_FSIZE, (9, resource.RLIM_INFINITY))
    return plain(file, *args, **options)
builtins.open = open_full
"""
FILES = ["config.json", "200.msgpack", "variables.msgpack", "history.pkl"]  # 200: two epochs


@pytest.mark.parametrize("name", FILES)
def test_a_run_killed_while_it_writes_a_file(whole, tmp_path, thorough, name):
    if not thorough and name != "200.msgpack":
        pytest.skip("the other files are written in the same way; --thorough runs them all")
    workdir = tmp_path / "run"
    process = start(workdir, program=("-c", PATCHED % DIE, name))
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert not (workdir / "history.pkl").exists()
    errors = finish(workdir)
    assert not list(workdir.rglob("*.tmp")) and "damaged" not in errors
    assert_same_results(workdir, whole)


@pytest.mark.parametrize("name", FILES)
def test_a_disk_that_is_full_when_a_file_is_written(whole, tmp_path, thorough, name):
    if not thorough:
        pytest.skip("the tests of checkpoints and files fill a disk too")
    workdir = tmp_path / "run"
    process = start(workdir, program=("-c", PATCHED % FULL, name))
    _, errors = process.communicate()
    assert process.returncode == 2, errors
    assert errors.splitlines()[-1].endswith(
        "cannot be written: File too large; nothing was changed"
    )
    assert not list(workdir.rglob(f"*{name}*")) and "Traceback" not in errors
    finish(workdir)
    assert_same_results(workdir, whole)
