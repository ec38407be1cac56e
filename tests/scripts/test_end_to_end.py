"""The two scripts, as a user runs them, on a sixth of the real MNIST."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from jax_mnist.runs import history

ROOT = Path(__file__).parents[2]


def script(name, *arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / name, *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_train_then_plot(tmp_path):
    trained = script(
        "train.py", "--config", ROOT / "configs" / "gbn.py",
        "--config.epochs=2", "--config.train_split=train[:10000]", "--config.learning_rate=0.05",
        cwd=tmp_path,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    lines = trained.stdout.splitlines()
    assert "Parameters: 8,546" in lines
    record = history.load(tmp_path / "runs" / "gbn" / "history.pkl")
    accuracy = record["metrics"]["validation_accuracy"]
    assert accuracy[-1] > 0.95
    assert len(record["predictions"]["label"]) == 10_000
    best = accuracy.argmax()
    assert lines[-2:] == [
        f"gbn: validation accuracy {accuracy[-1]:.2%} at the last epoch, "
        f"best {accuracy[best]:.2%} at epoch {best + 1}",
        "results in runs/gbn/",
    ]
    assert "epoch 2/2" in trained.stderr and "left" in trained.stderr

    drawn = script("plot.py", "runs/gbn/history.pkl", "--out", "figures", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    pictures = {p.name for p in (tmp_path / "figures").iterdir()}
    assert pictures == {
        "validation_accuracy.png", "validation_loss.png",
        "misclassified_gbn.png", "confusion_gbn.png",
    }  # fmt: skip
    for name in pictures:
        with Image.open(tmp_path / "figures" / name) as picture:
            picture.verify()


def test_a_study_reports_and_goes_on_where_it_stopped(tmp_path):
    arguments = [
        ROOT / "configs" / "bn.py", ROOT / "configs" / "l2.py", "--seeds=2", "--config.epochs=1",
        "--config.train_split=train[:300]", "--config.validation_split=test[:100]",
    ]  # fmt: skip
    studied = script("study.py", *arguments, cwd=tmp_path)
    assert studied.returncode == 0, studied.stderr
    assert studied.stdout == "report in runs/study/report.md and report.html\n"
    assert "4/4 runs" in studied.stderr
    folder = tmp_path / "runs" / "study"
    text = (folder / "report.md").read_text()
    assert "4 runs: 2 variants, seeds 0, 1" in text and "`epochs=1`" in text
    records = [history.load(path) for path in folder.glob("*/seed-*/history.pkl")]
    assert sorted((r["name"], r["seed"]) for r in records) == [
        ("bn", 0), ("bn", 1), ("l2", 0), ("l2", 1),
    ]  # fmt: skip
    assert all(r["config"]["train_split"] == "train[:300]" for r in records)

    trained = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/history.pkl")}
    (folder / "report.md").unlink()
    again = script("study.py", *arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (folder / "report.md").read_text() == text
    assert trained == {path: path.stat().st_mtime_ns for path in folder.glob("*/*/history.pkl")}

    other = script("study.py", *arguments, "--config.l1=0.1", cwd=tmp_path)
    assert other.returncode == 2
    assert len(other.stderr.splitlines()) == 1 and "l1 is 0.0 there, 0.1 here" in other.stderr


def test_a_study_that_is_stopped_saves_and_goes_on(tmp_path):
    command = [
        sys.executable, ROOT / "scripts" / "study.py", ROOT / "configs" / "bn.py", "--seeds=3",
        "--config.epochs=3", "--config.train_split=train[:6400]",
        "--config.validation_split=test[:100]",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.rglob("sha256.json")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors.splitlines()[-1] == "study.py: stopped and saved; the same command goes on"
    assert not list(tmp_path.rglob("history.pkl"))
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "going on after epoch" in again.stderr
    assert (tmp_path / "runs" / "study" / "report.md").exists()


def test_a_study_that_loses_a_process_says_so_and_goes_on(tmp_path):
    command = [
        sys.executable, ROOT / "scripts" / "study.py", ROOT / "configs" / "bn.py", "--seeds=2",
        "--config.epochs=3", "--config.train_split=train[:6400]",
        "--config.validation_split=test[:100]",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.rglob("sha256.json")):
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(int(workers[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "a process that trained was killed" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "going on after epoch" in again.stderr


def test_a_sweep_ranks_on_held_out_training_images(tmp_path):
    swept = script(
        "sweep.py", "--config", ROOT / "configs" / "l2.py", "--vary", "l2=1e-4,10", "--replicas=2",
        "--config.epochs=1", "--config.batch_size=1000", cwd=tmp_path,
    )  # fmt: skip
    assert swept.returncode == 0, swept.stderr
    title, first, second = swept.stdout.splitlines()
    assert title.startswith("accuracy on train[-10000:], 2 of each")
    assert first.endswith(")  l2=0.0001") and " %" in second and second.endswith("  l2=10.0")
    records = [history.load(p) for p in (tmp_path / "runs").glob("sweep_l2/l2=*/*/history.pkl")]
    assert len(records) == 4
    assert {r["config"]["train_split"] for r in records} == {"train[:-10000]"}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("study.py", ["nowhere.py"], "nowhere.py"),
        ("study.py", ["--config.epocs=3"], 'Did you mean "epochs"'),
        ("study.py", ["--config.epochs=0"], "config.epochs must be at least 1"),
        ("study.py", ["--seeds=0"], "seeds"),
        ("sweep.py", ["--config", ROOT / "configs" / "bn.py"], "vary"),
        ("sweep.py", ["--config", ROOT / "configs" / "bn.py", "--vary", "l2"], "FIELD=VALUE"),
        ("sweep.py", ["--config", ROOT / "configs" / "bn.py", "--vary", "l3=1"], "no field 'l3'"),
        *(
            ("sweep.py", ["--config", ROOT / "configs" / "bn.py", *arguments], message)
            for arguments, message in (
                (["--vary=l2=0", "--config.train_split=train"], "train_split alone is not enough"),
                (["--vary=l2=0", "--config.validation_split=test"], "split alone is not enough"),
                (["--vary=validation_split=test,train"], "ranks by the same images"),
                (["--vary=dataset=mnist,kmnist"], "ranks by the same images"),
                (["--vary=train_split=train"], "--vary train_split: give"),
            )
        ),
    ],
)
def test_a_bad_study_or_sweep_ends_in_one_line(name, arguments, message, tmp_path):
    result = script(name, *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.epocs=3"], 'Did you mean "epochs"'),
        (["--config.epochs=2.5"], "--config.epochs=2.5"),
        (["--config.ghost_batch_size=0"], "config.ghost_batch_size must be at least 1"),
        (["--config.l2=-1"], "config.l2 must be at least 0"),
        (["surplus"], "unexpected argument 'surplus'"),
    ],
)
def test_a_bad_command_line_ends_in_one_line(arguments, message, tmp_path):
    result = script("train.py", "--config", ROOT / "configs" / "gbn.py", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "more"),
    [("train.py", []), ("train.py", ["--config.l2=0"]), ("sweep.py", ["--vary=l2=0"])],
)
def test_a_missing_config_file_ends_in_one_line(name, more, tmp_path):
    result = script(name, "--config", "nowhere.py", *more, cwd=tmp_path)
    assert result.returncode == 2
    assert "nowhere.py" in result.stderr
    assert len(result.stderr.splitlines()) == 1
