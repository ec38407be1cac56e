"""Checkpoints: what comes back is what was saved, or an older one, never anything damaged."""

import errno
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_mnist.runs import checkpoints, history

ROOT = Path(__file__).parents[2]
ARRAYS = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7], np.int32)]


def test_the_newest_comes_back_and_older_ones_go(tmp_path):
    assert checkpoints.restore(tmp_path / "none") is None
    for step in (3, 20, 100):
        progress = {"loss": [0.1, math.inf], "step": step}
        checkpoints.save(tmp_path, step, [a + step for a in ARRAYS], progress, keep=2)
    step, arrays, progress = checkpoints.restore(tmp_path)
    assert step == 100
    for array, expected in zip(arrays, ARRAYS, strict=True):
        np.testing.assert_array_equal(array, expected + 100)
        assert array.dtype == expected.dtype
    assert progress == {"loss": [0.1, math.inf], "step": 100}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["100", "20"]


def test_what_cannot_be_read_just_now_is_kept(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, 1, ARRAYS, {}, keep=2)

    def read_bytes(path):
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        with pytest.raises(OSError, match="Too many open files"):
            checkpoints.restore(tmp_path)
    assert checkpoints.restore(tmp_path)[0] == 1


DAMAGE = {
    "emptied": lambda data: b"",
    "truncated": lambda data: data[:-1],
    "bit flipped": lambda data: data[:-1] + bytes([data[-1] ^ 4]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_found_and_an_older_checkpoint_taken(tmp_path, damage, capsys):
    original = tmp_path / "original"
    for step in (1, 2):
        checkpoints.save(original, step, [a + step for a in ARRAYS], {"step": step}, keep=2)
    files = [path for path in (original / "2").rglob("*") if path.is_file()]
    assert len(files) > 5
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(original, folder)
        copy = folder / file.relative_to(original)
        copy.write_bytes(DAMAGE[damage](copy.read_bytes()))
        if copy.read_bytes() == file.read_bytes():
            continue  # it was empty
        _, arrays, progress = checkpoints.restore(folder)
        assert progress == {"step": 1}, copy
        np.testing.assert_array_equal(arrays[0], ARRAYS[0] + 1)
        assert "2 was damaged: removed" in capsys.readouterr().err
        checkpoints.save(folder, 2, ARRAYS, {"step": 2}, keep=2)
        assert checkpoints.restore(folder)[2] == {"step": 2}


@pytest.mark.parametrize("limit", [0, 100, 1000, 4000])
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, limit):
    code = f"""
import resource, signal, sys, numpy as np
from pathlib import Path
from jax_mnist.runs import checkpoints
arrays = [np.random.default_rng(0).normal(size=(40, 40))]
checkpoints.save(Path(sys.argv[1]), 1, arrays, {{"step": 1}}, keep=2)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
try:
    checkpoints.save(Path(sys.argv[1]), 2, arrays, {{"step": 2}}, keep=2)
except OSError as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    assert "cannot be written: File too large" in result.stdout, result
    assert len(result.stdout.splitlines()) == 1
    assert "Traceback" not in result.stderr
    _, arrays, progress = checkpoints.restore(tmp_path)
    assert progress == {"step": 1}
    np.testing.assert_array_equal(arrays[0], np.random.default_rng(0).normal(size=(40, 40)))


TRAIN = ROOT / "scripts" / "train.py"
OPTIONS = [
    "--config", ROOT / "configs" / "gbn_l2.py", "--config.epochs=3", "--config.ema=0.9",
    "--config.train_split=train[:6400]", "--config.validation_split=test[:200]",
]  # fmt: skip


def train(workdir, program=(TRAIN,), options=()):
    """The script, or a program that runs it, as a process."""
    command = [sys.executable, *program, *OPTIONS, f"--workdir={workdir}", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(workdir):
    """Runs it to its end, and returns what it wrote on standard error."""
    process = train(workdir)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return errors


def wait_for(workdir, process, pattern):
    while process.poll() is None and not any(workdir.glob(f"checkpoints/{pattern}")):
        time.sleep(0.001)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(workdir)
    return workdir


def assert_same_results(workdir, expected):
    first, second = (history.load(folder / "history.pkl") for folder in (workdir, expected))
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
def test_a_stopped_run_saves_and_goes_on_to_the_same_result(whole, tmp_path, number, status):
    workdir = tmp_path / "run"
    process = train(workdir)
    wait_for(workdir, process, "*/sha256.json")
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == status, errors
    assert "the same command goes on from there" in errors.splitlines()[-1]
    assert not (workdir / "history.pkl").exists()
    assert "going on after epoch" in finish(workdir)
    assert_same_results(workdir, whole)


def test_a_second_ctrl_c_leaves_at_once(whole, tmp_path):
    workdir = tmp_path / "run"
    process = train(workdir)
    assert any("epoch 1/3" in line for line in process.stderr)  # it compiles, for a while
    process.send_signal(signal.SIGINT)
    assert any("Ctrl-C again leaves at once" in line for line in process.stderr)
    start = time.perf_counter()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert time.perf_counter() - start < 2
    unfinished = {"config.json", "checkpoints", "metrics.jsonl"}
    assert {path.name for path in workdir.iterdir()} <= unfinished
    finish(workdir)
    assert_same_results(workdir, whole)


def test_a_run_killed_at_random_moments_goes_on_to_the_same_result(whole, tmp_path, thorough):
    rng = np.random.default_rng(0)
    workdir = tmp_path / "run"
    for _ in range(30 if thorough else 4):
        if (workdir / "history.pkl").exists():  # finished before it was killed: once more
            assert_same_results(workdir, whole)
            shutil.rmtree(workdir)
        process = train(workdir)
        wait_for(workdir, process, "*")
        time.sleep(rng.uniform(0, 2))
        process.kill()
        process.communicate()
    finish(workdir)
    assert_same_results(workdir, whole)


# Runs the script, and dies in the moment before a file gets its name.
DIE = """
import os, runpy, signal, sys
name, sys.argv = sys.argv[1], sys.argv[2:]
replace = os.replace
def replace_or_die(source, target):
    if os.path.basename(target) == name:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = replace_or_die
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


FILES = ["config.json", "sha256.json", "variables.msgpack", "history.pkl"]


@pytest.mark.parametrize("name", FILES)
def test_a_run_killed_while_it_writes_a_file(whole, tmp_path, name):
    workdir = tmp_path / "run"
    process = train(workdir, program=("-c", DIE, name, TRAIN))
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert not (workdir / "history.pkl").exists()
    errors = finish(workdir)
    assert not list(workdir.glob(".*"))
    assert ("was damaged: removed" in errors) == (name == "sha256.json")
    assert_same_results(workdir, whole)


# Runs the script on a disk that is full, for which a limit on the size of files stands, from the
# moment in which it opens a file until then.
FULL = """
import builtins, os, resource, runpy, signal, sys
name, sys.argv = sys.argv[1], sys.argv[2:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
plain = builtins.open
def open_full(file, *args, **options):
    if isinstance(file, (str, os.PathLike)) and f".{name}." in os.path.basename(file):
        resource.setrlimit(resource.RLIMIT_FSIZE, (9, resource.RLIM_INFINITY))
    return plain(file, *args, **options)
builtins.open = open_full
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("name", FILES)
def test_a_disk_that_is_full_when_a_file_is_written(whole, tmp_path, name):
    workdir = tmp_path / "run"
    process = train(workdir, program=("-c", FULL, name, TRAIN))
    _, errors = process.communicate()
    assert process.returncode == 2, errors
    assert errors.splitlines()[-1].endswith(
        "cannot be written: File too large; nothing was changed"
    )
    assert not list(workdir.rglob(f"*{name}*")) and "Traceback" not in errors
    finish(workdir)
    assert_same_results(workdir, whole)


def test_a_run_killed_while_orbax_writes(whole, tmp_path):
    workdir = tmp_path / "run"
    process = train(workdir)
    wait_for(workdir, process, "*/sha256.json")
    wait_for(workdir, process, "*orbax-checkpoint-tmp*")
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert "going on after epoch" in finish(workdir)
    assert_same_results(workdir, whole)


def test_checkpoints_of_another_config_are_refused(tmp_path):
    workdir = tmp_path / "run"
    process = train(workdir)
    wait_for(workdir, process, "*/sha256.json")
    process.kill()
    process.communicate()
    process = train(workdir, options=["--config.l1=0.5"])
    _, errors = process.communicate()
    assert process.returncode == 2
    assert len(errors.splitlines()) == 1 and "l1 is 0.0 there, 0.5 here" in errors
