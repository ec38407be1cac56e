"""The two scripts, as a user runs them, on a sixth of the real MNIST."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from jax_mnist import history

ROOT = Path(__file__).parent.parent


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


def test_a_missing_config_file_ends_in_one_line(tmp_path):
    result = script("train.py", "--config", "nowhere.py", cwd=tmp_path)
    assert result.returncode == 2
    assert "nowhere.py" in result.stderr
    assert len(result.stderr.splitlines()) == 1
