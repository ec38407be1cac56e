"""Several devices and hosts: the same runs, spread."""

import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny
from tiny import ROOT

from jax_mnist import config as config_lib
from jax_mnist.runs import history
from jax_mnist.runs.trainer import train

# Its threads write at the same time, each piece of a line by itself.
GLOO = (
    r"\[Gloo\] Rank | is connected to | peer ranks\. |"
    r"Expected number of connected peer ranks is : |\d|\s"
)


def config(**fields):
    # A rate so low that rounding does not grow.
    return tiny.config(train_split="train[:640]", learning_rate=1e-4, **fields)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A function that gives the records of one device."""
    folder = tmp_path_factory.mktemp("alone")
    return functools.cache(lambda norm: train(config(norm=norm, replicas=3), folder / norm))


def assert_agree(records, expected, **tolerance):
    for record, other in zip(records, expected, strict=True):
        assert record["seed"] == other["seed"]
        for name, values in other["metrics"].items():
            rounded = {}
            if name == "validation_loss" and not tolerance["rtol"]:
                rounded = {"rtol": 1e-7}  # the last bit of some logits depends on the program
            if "accuracy" in name and tolerance["rtol"]:
                rounded = {"atol": 0.01}  # classes are near ties yet: rounding turns a few images
            if name != "seconds":
                np.testing.assert_allclose(record["metrics"][name], values, **tolerance | rounded)
        np.testing.assert_allclose(
            record["predictions"]["probabilities"],
            other["predictions"]["probabilities"],
            atol=tolerance.get("atol", 1e-7),
        )


@pytest.mark.parametrize("number", [4, 8])
def test_replicas_on_devices_of_their_own_are_exactly_those_of_one_device(
    alone, tmp_path, number, thorough
):
    if not thorough:
        pytest.skip("the test of two processes shows it on eight devices")
    records = train(config(replicas=3, replica_devices=number), tmp_path / "ghost")
    assert_agree(records, alone("ghost"), rtol=0)
    assert records[0]["device"]["count"] == number
    loaded = history.load(tmp_path / "ghost" / "seed-2" / "history.pkl")
    jax.tree.map(np.testing.assert_array_equal, loaded, records[2])


@pytest.mark.parametrize("norm", ["ghost", "batch"])
@pytest.mark.parametrize("shape", [(1, 4), (1, 8), (2, 4)])
def test_a_batch_spread_over_devices_gives_the_same_run(alone, tmp_path, norm, shape, thorough):
    if (norm, shape) != ("ghost", (2, 4)) and not thorough:
        pytest.skip("a mesh of both axes shows it; --thorough runs those of one, and batch norm")
    spread = {"replica_devices": shape[0], "data_devices": shape[1]}
    records = train(config(norm=norm, replicas=3, **spread), tmp_path / norm)
    assert_agree(records, alone(norm), rtol=2e-3, atol=2e-3)


def start(workdir, shape, *options, of_second=()):
    """Two processes of four devices each on this host, which train together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    fields = config(replicas=3, replica_devices=shape[0], data_devices=shape[1])
    command = [
        sys.executable, ROOT / "tests" / "tiny.py", ROOT / "scripts" / "train.py",
        "--config", ROOT / "configs" / "bn.py", f"--workdir={workdir}",
        *(f"--config.{k}={v}" for k, v in fields.items() if v != config_lib.base()[k]),
        *options, "--distributed", f"--coordinator_address={address}", "--num_processes=2",
    ]  # fmt: skip
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu",
        "QUICKLY_COMPILED": "1",
    }  # fmt: skip
    return [
        subprocess.Popen(
            [*command, f"--process_id={i}", *(of_second if i else ())],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip


def finish(processes):
    said = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return said


def load(workdir):
    return [history.load(workdir / f"seed-{seed}" / "history.pkl") for seed in range(3)]


def wait_for_checkpoint(workdir, process):
    while process.poll() is None and not list(workdir.glob("seed-2/checkpoints/*.msgpack")):
        time.sleep(0.01)


def lose_one(workdir, shape):
    """Starts two processes, and kills one after the first epoch."""
    first, second = start(workdir, shape, "--config.epochs=200")
    wait_for_checkpoint(workdir, first)
    second.kill()
    _, errors = first.communicate(timeout=200)
    if first.returncode == -signal.SIGABRT:  # the communication did not fail, but waits for ever
        assert "likely indicates that another task died" in errors
    else:
        assert first.returncode == 1, errors
        assert "another process was lost; run the same command on all hosts again" in errors
    assert "Traceback" not in errors and "Fatal Python error" not in errors
    assert not list(workdir.rglob("history.pkl"))
    second.communicate()


def test_two_processes_train_the_replicas_of_one(alone, tmp_path):
    (first, _), second = finish(start(tmp_path / "ghost", (8, 1)))
    assert "seed 2: val acc" in first
    assert second[1] == ""
    assert re.fullmatch(rf"({GLOO})*", second[0]), second[0]
    assert_agree(load(tmp_path / "ghost"), alone("ghost"), rtol=0)


@pytest.mark.parametrize("shape", [(8, 1), (1, 8)])
def test_when_one_of_two_processes_is_lost_the_other_ends_and_one_resumes(
    tmp_path, capsys, shape, thorough
):
    if shape == (1, 8) and not thorough:
        pytest.skip("waits for a heartbeat: --thorough")
    lose_one(tmp_path / "ghost", shape)
    newest = min(
        max(int(path.stem) for path in (tmp_path / "ghost" / f"seed-{n}" / "checkpoints").iterdir())
        for n in range(3)
    )
    epochs = newest // 10 + 1
    # Another length is another run, but for the sake of time: the config says so.
    for path in (tmp_path / "ghost").glob("*/config.json"):
        path.write_text(path.read_text().replace('"epochs": 200', f'"epochs": {epochs}'))
    records = train(config(replicas=3, epochs=epochs, data_devices=4), tmp_path / "ghost")
    assert f"seeds 0 to 2: resuming after epoch {newest // 10}/{epochs}" in capsys.readouterr().err
    assert all(len(record["metrics"]["seconds"]) == epochs for record in records)


def test_a_run_that_lost_a_process_resumes_in_two_to_the_same_result(alone, tmp_path, thorough):
    if not thorough:
        pytest.skip("slow; the tests of resuming and of two processes show each by itself")
    workdir = tmp_path / "ghost"
    first, second = start(workdir, (8, 1))
    wait_for_checkpoint(workdir, first)
    second.kill()
    first.communicate(timeout=200)
    second.communicate()
    finish(start(workdir, (8, 1)))
    assert_agree(load(workdir), alone("ghost"), rtol=0)


def test_what_one_process_refuses_ends_both_at_once(tmp_path):
    workdir = tmp_path / "ghost"
    processes = start(workdir, (8, 1), of_second=["--config.data_dir=/dev/null"])
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    assert errors[0] == "train.py: another process refused to start; its own message says why\n"
    assert len(errors[1].splitlines()) == 1 and "/dev/null" in errors[1]
    assert not workdir.exists()


def test_two_processes_stop_at_the_same_step(tmp_path, thorough):
    if not thorough:
        pytest.skip("slow; stopping and processes are tested by themselves")
    workdir = tmp_path / "ghost"
    first, second = processes = start(workdir, (1, 8), "--config.epochs=2000")
    wait_for_checkpoint(workdir, first)
    second.send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [143, 143], said
    assert "run the same command again to resume" in said[0][1].splitlines()[-1]
    steps = [int(path.stem) for path in workdir.glob("seed-*/checkpoints/*.msgpack")]
    assert max(steps) < 20_000
