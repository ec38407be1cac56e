"""The scripts, as a user runs them, on a part of the real MNIST."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from forked_scripts import ForkedScripts
from PIL import Image

from jax_mnist.data import datasets
from jax_mnist.inference import predict
from jax_mnist.runs import history, workers

ROOT = Path(__file__).parents[2]


TINY = [sys.executable, ROOT / "tests" / "tiny.py"]


def script(name, *arguments, cwd=ROOT, tiny=False):
    """Runs a script, with the real network or with a tiny one."""
    return subprocess.run(
        [*(TINY if tiny else TINY[:1]), ROOT / "scripts" / name, *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_train_then_plot(tmp_path):
    trained = script(
        "train.py", "gbn", "--config.epochs=2", "--config.train_split=train[:6400]",
        "--config.learning_rate=0.05", cwd=tmp_path,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    lines = trained.stdout.splitlines()
    assert "Parameters: 8,546" in lines
    record = history.load(tmp_path / "runs" / "gbn" / "history.pkl")
    accuracy = record["metrics"]["validation_accuracy"]
    assert accuracy[-1] > 0.9
    assert len(record["predictions"]["label"]) == 10_000
    best = accuracy.argmax()
    drawn = ("validation_accuracy.png", "validation_loss.png", "misclassified.png")
    assert lines[-3:] == [
        f"gbn: val acc {100 * accuracy[-1]:.2f} % at the end, "
        f"best {100 * accuracy[best]:.2f} % after epoch {best + 1}/2",
        f"drew {', '.join(drawn)}",
        "results in runs/gbn/",
    ]
    assert [line[:11] for line in lines[-5:-3]] == ["epoch 1/2  ", "epoch 2/2  "]
    assert "\r" not in trained.stdout + trained.stderr
    for name in drawn:
        with Image.open(tmp_path / "runs" / "gbn" / name) as picture:
            picture.verify()
    network = predict.load(tmp_path / "runs" / "gbn")
    test = datasets.load("mnist", "test[:100]")
    probabilities = predict.predict(network, test.images[..., 0])
    expected = record["predictions"]["probabilities"][:100]
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)

    plotted = script("plot.py", "runs/gbn", "--out", "figures", cwd=tmp_path)
    assert plotted.returncode == 0, plotted.stderr
    pictures = {p.name for p in (tmp_path / "figures").iterdir()}
    assert pictures == {
        "validation_accuracy.png", "validation_loss.png",
        "misclassified_gbn.png", "confusion_gbn.png",
    }  # fmt: skip
    for name in pictures:
        with Image.open(tmp_path / "figures" / name) as picture:
            picture.verify()


@pytest.fixture(scope="module")
def scripts():
    with ForkedScripts() as forked:
        yield forked


FEW = [
    "--config.train_split=train[:300]", "--config.validation_split=test[:150]",
    "--config.batch_size=64",
]  # fmt: skip


def test_a_quick_study_reports_and_resumes(tmp_path):
    arguments = [
        "--quick", "--config.epochs=2", "bn", ROOT / "configs" / "l2.py", "--seeds=2", *FEW,
    ]  # fmt: skip
    studied = script("study.py", *arguments, cwd=tmp_path, tiny=True)
    assert studied.returncode == 0, studied.stderr
    folder = tmp_path / "runs" / "quick"
    title, *lines, last = studied.stdout.splitlines()
    assert title.startswith("4 runs, 0 of them finished; training ")
    assert [line[:8] for line in lines[:4]] == [f"run {number}/4 " for number in range(1, 5)]
    assert last == f"report: {(folder / 'report.html').as_uri()}"
    found = [history.load(path) for path in folder.glob("l2/*/history.pkl")]
    mean = 100 * np.mean([r["metrics"]["validation_accuracy"][-1] for r in found])
    row, _ = (line for line in lines[4:] if line.startswith("l2 "))  # results, differences
    assert f"{mean:.3f}" in row and max(map(len, lines)) <= 80
    text = (folder / "report.md").read_text()
    assert "4 runs: 2 variants, seeds 0, 1" in text and "`epochs=2`" in text
    assert "This is a quick study" in text.split("## ")[0] and "train[:300]" in text
    records = [history.load(path) for path in folder.glob("*/seed-*/history.pkl")]
    assert sorted((r["name"], r["seed"]) for r in records) == [
        ("bn", 0), ("bn", 1), ("l2", 0), ("l2", 1),
    ]  # fmt: skip
    assert all(r["config"]["train_split"] == "train[:300]" for r in records)

    trained = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/history.pkl")}
    (folder / "report.md").unlink()
    again = script("study.py", *arguments, cwd=tmp_path, tiny=True)
    assert again.returncode == 0, again.stderr
    assert (folder / "report.md").read_text() == text
    assert trained == {path: path.stat().st_mtime_ns for path in folder.glob("*/*/history.pkl")}

    other = script("study.py", *arguments, "--config.l1=0.1", cwd=tmp_path, tiny=True)
    assert other.returncode == 2
    assert len(other.stderr.splitlines()) == 1 and "l1 is 0.0 there, 0.1 here" in other.stderr


def start_study(folder, *arguments):
    """A study of long runs, once each worker has saved a checkpoint."""
    process = subprocess.Popen(
        [*TINY, ROOT / "scripts" / "study.py", ROOT / "configs" / "bn.py", *arguments],
        cwd=folder, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    runs = folder / "runs" / "study" / "bn"
    while process.poll() is None and not list(runs.glob("*/checkpoints/*.msgpack")):
        time.sleep(0.02)
    return process


def shorten(folder):
    """Makes what is left of the runs short: for the sake of time, their configs say so."""
    for path in folder.glob("runs/study/bn/*/config.json"):
        path.write_text(path.read_text().replace('"epochs": 900', '"epochs": 1'))


def test_a_study_that_is_stopped_saves_and_resumes(tmp_path):
    process = start_study(tmp_path, "--seeds=9", "--config.epochs=900", *FEW)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    begun = len(list(tmp_path.glob("runs/study/bn/*/checkpoints")))
    assert begun <= len(workers.cores(9)), "runs that waited in the queue were begun"
    assert process.returncode == 143, errors
    message = "stopped and saved; run the same command again to resume"
    assert errors.splitlines()[-1] == f"study.py: {message}"
    assert not list(tmp_path.rglob("history.pkl"))
    shorten(tmp_path)
    again = script(
        "study.py", ROOT / "configs" / "bn.py", "--seeds=3", "--config.epochs=1", *FEW,
        cwd=tmp_path, tiny=True,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert re.search(r"^bn, seed \d: resuming (after|in) epoch \d+/1", again.stderr, re.MULTILINE)
    assert (tmp_path / "runs" / "study" / "report.md").exists()


def test_a_study_that_loses_a_worker_says_so(tmp_path):
    process = start_study(tmp_path, "--seeds=2", "--config.epochs=900", *FEW)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(int(found[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "a worker process was killed" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert list(tmp_path.rglob("*.msgpack"))  # what the next call resumes from


def test_a_sweep_ranks_on_held_out_training_images(tmp_path):
    swept = script(
        "sweep.py", "--vary", "l2=1e-4,10", "l2", "--replicas=2", "--config.epochs=1",
         "--config.batch_size=1000", cwd=tmp_path, tiny=True,
    )  # fmt: skip
    assert swept.returncode == 0, swept.stderr
    *_, title, first, second, last = swept.stdout.splitlines()
    assert title == "mean accuracy (lowest to highest) on train[-10000:], 2 seeds each"
    folder = "runs/sweep_l2"
    assert last == f"ranking in {folder}/ranking.csv, every run in {folder}/results.csv"
    with open(tmp_path / "runs" / "sweep_l2" / "ranking.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["combination"] for row in rows] == ["l2=0.0001", "l2=10.0"]
    assert f"{float(rows[0]['accuracy_percent']):.3f} %" in first
    with open(tmp_path / folder / "results.csv", newline="") as file:
        runs = [float(r["accuracy_percent"]) for r in csv.DictReader(file)]
    assert [sum(runs[:2]) / 2, sum(runs[2:]) / 2] == pytest.approx(
        [float(row["accuracy_percent"]) for row in rows], abs=1e-3
    )
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
        ("study.py", ["--beside=nowhere"], "--beside=nowhere holds no finished runs"),
        ("study.py", ["--baseline=none"], "--baseline=none must be one of the variants: bn, l1,"),
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
def test_a_bad_study_or_sweep_ends_in_one_line(name, arguments, message, tmp_path, scripts):
    result = scripts.run(ROOT / "scripts" / name, *arguments, cwd=tmp_path)
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
        (["surplus"], "name one config or its file: got"),
    ],
)
def test_a_bad_command_line_ends_in_one_line(arguments, message, tmp_path, scripts):
    command = ["--config", ROOT / "configs" / "gbn.py", *arguments]
    result = scripts.run(ROOT / "scripts" / "train.py", *command, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["train.py", "study.py", "sweep.py"])
@pytest.mark.parametrize("config", [["gnb"], ["--config=gnb"], ["--config", "gnb"]])
def test_an_unknown_config_is_answered_with_those_that_exist(name, config, tmp_path, scripts):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text("")
    vary = ["--vary=l2=0"] if name == "sweep.py" else []
    result = scripts.run(ROOT / "scripts" / name, *vary, *config, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    existing = sorted(["mine", *(path.stem for path in (ROOT / "configs").glob("*.py"))])
    assert result.stderr == (
        f"{name}: there is no config 'gnb'; name a file, or one of {', '.join(existing)}\n"
    )


OWN = """
from jax_mnist.config import base
def get_config():
    config = base()
    config.epochs = 0  # so that what is taken is refused, without training
    return config
"""


@pytest.mark.parametrize("name", ["train.py", "study.py", "sweep.py"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["mine"],
        ["configs/mine.py", "--config.l2=1e-4"],
        ["--config.l2=1e-4", "--config", "configs/mine.py"],
        ["--config=mine", "--config.l2=1e-4"],
    ],
)
def test_a_config_is_taken_in_every_form(name, arguments, tmp_path, scripts):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text(OWN)
    vary = ["--vary=l2=0"] if name == "sweep.py" else []
    result = scripts.run(ROOT / "scripts" / name, *vary, *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == f"{name}: config.epochs must be at least 1 and at most 100,000; got 0\n"


@pytest.mark.parametrize("name", ["train", "study", "sweep", "plot", "predict", "export"])
def test_help_shows_the_scripts_own_flags_at_eighty_columns(name, tmp_path, scripts):
    result = scripts.run(ROOT / "scripts" / f"{name}.py", "--help", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    flags = [line.split()[0] for line in lines if line.startswith("  --")]
    assert 1 <= len(flags) <= 9 and "--jax_platforms" not in flags and len(set(flags)) == len(flags)
    with_fields = name in ("train", "study", "sweep")
    assert ("  rotation=7.0              Largest rotation. (degrees)" in lines) == with_fields


@pytest.mark.parametrize(
    ("name", "more"),
    [("train.py", []), ("train.py", ["--config.l2=0"]), ("sweep.py", ["--vary=l2=0"])],
)
def test_a_missing_config_file_ends_in_one_line(name, more, tmp_path, scripts):
    command = ["--config", "nowhere.py", *more]
    result = scripts.run(ROOT / "scripts" / name, *command, cwd=tmp_path)
    assert result.returncode == 2
    assert "nowhere.py" in result.stderr
    assert len(result.stderr.splitlines()) == 1
