"""The scripts, as a user runs them, on a part of the real MNIST."""

import csv
import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_mnist.data.catalogue import CATALOGUE
from jax_mnist.runs import study
from jax_mnist.runs.record import load_record

ROOT = Path(__file__).parents[2]
TINY = [sys.executable, ROOT / "tests" / "tiny.py"]
FEW = ["--config.train_split=train[:300]", "--config.validation_split=test[:150]"]
FEW += ["--config.batch_size=64"]


def script(name, *arguments, cwd, python=TINY):
    """What a script that must succeed prints, by default with a tiny network."""
    ended = subprocess.run(
        [*python, ROOT / "scripts" / name, *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended


def accuracies(*paths):
    """The last accuracy of each run, in per cent."""
    return [100 * load_record(path)["metrics"]["validation_accuracy"][-1] for path in paths]


def test_a_run_says_what_it_reaches_and_is_drawn(tmp_path):
    few = ["--config.epochs=2", "--config.train_split=train[:6400]", "--config.learning_rate=0.05"]
    few += ["--config.validation_split=test[:1000]"]
    trained = script("train.py", "gbn", *few, cwd=tmp_path, python=TINY[:1])
    lines = trained.stdout.splitlines()
    run = tmp_path / "runs" / "gbn"
    (accuracy,) = accuracies(run / "history.pkl")
    drawn = ["validation_accuracy.png", "validation_loss.png", "misclassified.png"]
    assert accuracy > 90 and "Parameters: 8,546" in lines
    assert [line[:11] for line in lines[-5:-3]] == ["epoch 1/2  ", "epoch 2/2  "]
    assert lines[-3].startswith(f"gbn: val acc {accuracy:.2f} % at the end, best ")
    assert lines[-2:] == [f"drew {', '.join(drawn)}", "results in runs/gbn/"]
    assert "\r" not in trained.stdout + trained.stderr
    for name in drawn:
        with Image.open(run / name) as picture:
            picture.verify()


def test_a_quick_study_reports_and_does_so_again_without_training(tmp_path, scripts):
    arguments = ["--quick", "--config.epochs=2", "bn", ROOT / "configs" / "l2.py", "--seeds=2"]
    studied = script("study.py", *arguments, *FEW, cwd=tmp_path)
    folder = tmp_path / "runs" / "quick_bn_vs_l2"
    title, *lines, last = studied.stdout.splitlines()
    assert title.startswith("4 runs, 0 of them finished; training ")
    assert [line[:8] for line in lines[:4]] == [f"run {number}/4 " for number in range(1, 5)]
    assert last == f"report: {(folder / 'report.html').as_uri()}"
    row, _ = (line for line in lines[4:] if line.startswith("l2 "))  # results, differences
    assert f"{np.mean(accuracies(*folder.glob('l2/*/history.pkl'))):.3f}" in row
    assert max(map(len, lines)) <= 80
    text = (folder / "report.md").read_text()
    assert "This is a quick study" in text.split("## ")[0] and "train[:300]" in text

    (folder / "report.md").unlink()
    again = scripts.run(ROOT / "scripts" / "study.py", *arguments, *FEW, cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")  # the tiny network was not trained again
    assert (folder / "report.md").read_text() == text


def start_study(folder, *arguments):
    """A study of long runs, once each worker has saved a checkpoint."""
    process = subprocess.Popen(
        [*TINY, ROOT / "scripts" / "study.py", ROOT / "configs" / "bn.py", "--workdir=s",
         "--config.epochs=900", *FEW, *arguments],
        cwd=folder, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not list(folder.glob("s/bn/*/checkpoints/*.msgpack")):
        time.sleep(0.02)
    return process


def test_a_study_that_is_stopped_saves_and_resumes(tmp_path):
    process = start_study(tmp_path, "--seeds=9")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    begun = len(list(tmp_path.glob("s/bn/*/checkpoints")))
    assert begun <= len(study._cores(9)), "runs that waited in the queue were begun"
    assert process.returncode == 143, errors
    message = "stopped and saved; run the same command again to resume"
    assert errors.splitlines()[-1] == f"study.py: {message}"
    assert not list(tmp_path.rglob("history.pkl"))
    for path in tmp_path.glob("s/bn/*/config.json"):  # what is left is short, for the sake of time
        path.write_text(path.read_text().replace('"epochs": 900', '"epochs": 1'))
    bn = ROOT / "configs" / "bn.py"
    again = script(
        "study.py", bn, "--workdir=s", "--seeds=2", "--config.epochs=1", *FEW, cwd=tmp_path
    )
    assert re.search(r"^bn, seed \d: resuming (after|in) epoch \d+/1", again.stderr, re.MULTILINE)
    assert (tmp_path / "s" / "report.md").exists()


def test_a_study_that_loses_a_worker_says_so(tmp_path):
    process = start_study(tmp_path, "--seeds=2")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    worker = next(c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes())
    os.kill(int(worker), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "a worker process was killed" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert list(tmp_path.rglob("*.msgpack"))  # what the next call resumes from


def test_a_sweep_ranks_on_held_out_training_images(tmp_path):
    own = shutil.copytree(CATALOGUE["mnist"].packaged, tmp_path / "own")  # with less to train on
    for name, header, size in (("images-idx3", 16, 784), ("labels-idx1", 8, 1)):
        path = own / f"train-{name}-ubyte.gz"
        data = gzip.decompress(path.read_bytes())[: header + 10_300 * size]
        path.write_bytes(gzip.compress(data[:4] + (10_300).to_bytes(4, "big") + data[8:], 1))
    arguments = ["--vary", "l2=1e-4,10", "l2", "--config.epochs=1", "--config.dataset=own"]
    swept = script("sweep.py", *arguments, cwd=tmp_path)
    *_, title, first, second, last = swept.stdout.splitlines()
    assert title == "mean accuracy on train[-10000:], 1 seed each"
    folder = tmp_path / "runs" / "sweep_l2"
    assert "runs/sweep_l2/ranking.csv" in last and "runs/sweep_l2/results.csv" in last
    for line, name in ((first, "l2=0.0001"), (second, "l2=10.0")):
        (accuracy,) = accuracies(*folder.glob(f"{name}/*/history.pkl"))
        assert line == f"{accuracy:.3f} %  {name}"
    with open(folder / "ranking.csv", newline="") as file:
        assert [row["combination"] for row in csv.DictReader(file)] == ["l2=0.0001", "l2=10.0"]
    config = load_record(folder / "l2=10.0" / "seed-0" / "history.pkl")["config"]
    assert config["train_split"] == "train[:-10000]"


BAD = {
    "train.py gbn": {
        "--config.epocs=3": "did you mean 'epochs'?",
        "surplus": "name one config or its file: got",
    },
    "train.py": {"--config=nowhere.py": "nowhere.py", "": "name one config or its file: such as"},
    "study.py": {
        "nowhere.py": "nowhere.py",
        "--seeds=0": "seeds",
        "--compare_claims_with=nowhere": "--compare_claims_with=nowhere holds no finished runs",
        "--baseline=none": "--baseline=none must be one of the variants: bn, l1,",
    },
    "sweep.py bn": {
        "": "vary",
        "--vary=l2": "FIELD=VALUE",
        "--vary=l3=1": "no field 'l3'",
        "--vary=l2=0 --config.train_split=train": "train_split alone is not enough",
        "--vary=l2=0 --config.validation_split=test": "split alone is not enough",
        "--vary=validation_split=test,train": "ranks by the same images",
        "--vary=train_split=train": "--vary train_split: give",
    },
    "plot.py": {"": "name the folders of one or more runs, or their history.pkl"},
    "predict.py nowhere": {
        "a.png": "nowhere holds no finished run",
        "": "name the folder of a run, and one or more pictures",
    },
    "export.py": {"nowhere": "nowhere holds no finished run", "": "name the folder of one run"},
}


@pytest.mark.parametrize(
    ("command", "more"), [(command, more) for command, of in BAD.items() for more in of]
)
def test_a_bad_command_line_ends_in_one_line(command, more, tmp_path, scripts):
    name, *arguments = f"{command} {more}".split()
    result = scripts.run(ROOT / "scripts" / name, *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"{name}: ") and BAD[command][more] in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


OWN = """
from jax_mnist.config import base
def get_config():
    config = base()
    config.epochs = 0  # so that what is taken is refused, without training
    return config
"""


@pytest.mark.parametrize("name", ["train.py", "study.py", "sweep.py --vary=l2=0"])
def test_a_config_is_taken_in_every_form_and_an_unknown_one_is_answered(name, tmp_path, scripts):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text(OWN)
    name, *vary = name.split()
    existing = sorted(["mine", *(path.stem for path in (ROOT / "configs").glob("*.py"))])
    unknown = f"there is no config 'gnb'; name a file, or one of {', '.join(existing)}"
    epochs = "config.epochs must be at least 1 and at most 100,000; got 0"
    for arguments, message in {
        "mine": epochs,
        "configs/mine.py --config.l2=1e-4": epochs,
        "--config.l2=1e-4 --config configs/mine.py": epochs,
        "--config=mine --config.l2=1e-4": epochs,
        "gnb": unknown,
        "--config gnb --config.l2=1e-4": unknown,
    }.items():
        result = scripts.run(ROOT / "scripts" / name, *vary, *arguments.split(), cwd=tmp_path)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == f"{name}: {message}\n"


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
