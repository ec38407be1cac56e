"""A finished run of two replicas, whose weights lie in `trained`.

They were trained with

    python scripts/train.py --config configs/gbn.py --config.epochs=2 --config.replicas=2
        "--config.validation_split=test[:20]"

and `probabilities.npy`, float32 `[2, 12, 10]`, is what their histories recorded of the first twelve
test images.
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from records import make_record

from jax_mnist import config
from jax_mnist.data import datasets
from jax_mnist.runs.record import save_record

TRAINED = Path(__file__).parent / "trained"


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The folder of the run."""
    workdir = tmp_path_factory.mktemp("runs") / "gbn"
    settings = config.base()
    settings.update(norm="ghost")
    for seed in (0, 1):
        folder = shutil.copytree(TRAINED / f"seed-{seed}", workdir / f"seed-{seed}")
        weights = (folder / "variables.msgpack").read_bytes()
        record = make_record("gbn", seed)
        record["config"] = settings.to_dict() | {"seed": seed}
        record["variables_sha256"] = hashlib.sha256(weights).hexdigest()
        save_record(folder / "history.pkl", record)
    return workdir


@pytest.fixture(scope="session")
def images():
    """The images that were recorded, uint8 `[12, 28, 28]`."""
    return datasets.load("mnist", "test[:12]").images[..., 0]


@pytest.fixture(scope="session")
def recorded():
    """The probabilities that each replica recorded, `[2, 12, 10]`."""
    return np.load(TRAINED / "probabilities.npy")
