"""A run as a process: stopped or killed, it resumes to the same result."""

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

SCRIPT = [ROOT / "tests" / "tiny.py", ROOT / "scripts" / "train.py"]
OPTIONS = [
    "--config", ROOT / "configs" / "gbn_l2.py", "--config.epochs=3", "--config.ema=0.9",
    "--config.train_split=train[:6400]", "--config.validation_split=test[:150]",
    "--config.batch_size=64", "--config.data_devices=1",
]  # fmt: skip


def start(workdir, *options):
    """The script as a process, with the tiny network."""
    command = [sys.executable, *SCRIPT, *OPTIONS, f"--workdir={workdir}", *options]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        # Tests may run in the background, where SIGINT is ignored, and stays so.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def end(process, status=0):
    """Waits for the end of a process, and returns what it wrote on standard error."""
    _, errors = process.communicate()
    assert process.returncode == status, errors
    return errors


def wait_for(process, path):
    while process.poll() is None and not path.exists():
        time.sleep(0.001)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    end(start(workdir))
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


def test_a_run_that_is_stopped_and_then_killed_resumes_to_the_same_result(whole, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_for(process, workdir / "checkpoints" / "100.msgpack")
    process.send_signal(signal.SIGINT)
    errors = end(process, 130)
    assert "run the same command again to resume\n" in errors
    process = start(workdir)
    wait_for(process, workdir / "checkpoints" / "200.msgpack")
    process.kill()
    assert "run, seed 0: resuming" in end(process, -signal.SIGKILL)
    assert not (workdir / "history.pkl").exists()
    assert "run, seed 0: resuming" in end(start(workdir))
    assert_same_results(workdir, whole)


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, "--config.batch_size=65")  # so that it has to compile
    wait_for(process, workdir / "metrics.jsonl")  # from then on it waits for signals
    process.send_signal(signal.SIGINT)
    assert any("press Ctrl-C again to leave at once" in line for line in process.stderr)
    begin = time.perf_counter()
    process.send_signal(signal.SIGINT)
    end(process, 130)
    assert time.perf_counter() - begin < 2
    assert not (workdir / "history.pkl").exists()


def test_a_run_killed_at_random_moments_resumes_to_the_same_result(whole, tmp_path, thorough):
    if not thorough:
        pytest.skip("kills thirty runs: --thorough")
    rng = np.random.default_rng(0)
    workdir = tmp_path / "run"
    for _ in range(30):
        if (workdir / "history.pkl").exists():  # finished before it was killed: once more
            assert_same_results(workdir, whole)
            shutil.rmtree(workdir)
        process = start(workdir)
        wait_for(process, workdir / "config.json")
        time.sleep(rng.uniform(0, 2))
        process.kill()
        process.communicate()
    end(start(workdir))
    assert_same_results(workdir, whole)
