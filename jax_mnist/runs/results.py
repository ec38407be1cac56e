"""The files of a trained run: its record and its variables."""

import hashlib
import os
import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np

from jax_mnist.data import datasets, files
from jax_mnist.nn.cnn import parameter_count
from jax_mnist.runs import history
from jax_mnist.runs.history import Record
from jax_mnist.runs.run import HISTORY, VARIABLES, Run
from jax_mnist.training import augment
from jax_mnist.training import step as training

_CPU_INFO = Path("/proc/cpuinfo")


def make_record(
    run: Run,
    variables: dict[str, Any],
    metrics: dict[str, np.ndarray],
    evaluation: training.Evaluation,
    validation: datasets.Dataset,
    label_names: Sequence[str],
    normalization: augment.Normalization,
    devices: int,
) -> Record:
    """What `save` takes, from what training gave; `variables` are NumPy arrays."""
    prediction = evaluation.probabilities.argmax(-1).astype(np.int32)
    wrong = np.flatnonzero(prediction != validation.labels).astype(np.int32)
    device = jax.devices()[0]
    record = {
        "schema": history.SCHEMA,
        "name": run.name,
        "config": run.config.to_dict(),
        "seed": run.config.seed,
        "parameters": parameter_count(variables["params"]),
        "metrics": metrics,
        "predictions": {
            "label": validation.labels.astype(np.int32),
            "prediction": prediction,
            "probabilities": evaluation.probabilities.astype(np.float32),
        },
        "mistakes": {"index": wrong, "images": validation.images[wrong, :, :, 0]},
        "normalization": normalization._asdict(),
        "label_names": list(label_names),
        "packages": _package_versions(),
        "device": {"platform": device.platform, "kind": _device_kind(device), "count": devices},
    }
    sound = not history.has_diverged(record)
    record["variables_sha256"] = hashlib.sha256(_to_bytes(variables)).hexdigest() if sound else ""
    return record


def save(workdir: Path, record: Record, variables: dict[str, Any]) -> None:
    """Writes the variables, unless the run diverged, and last the record: now it is finished."""
    if record["variables_sha256"]:
        files.write_atomically(workdir / VARIABLES, _to_bytes(variables))
    history.save(workdir / HISTORY, record)


def _to_bytes(variables: dict[str, Any]) -> bytes:
    data: bytes = flax.serialization.msgpack_serialize(variables)
    return data


def load_variables(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """The final variables of a run, as NumPy arrays: `{"params": ..., "batch_stats": ...}`.

    Example::

        record = history.load("runs/gbn/history.pkl")
        network = recipe.make_model(ConfigDict(record["config"]))
        variables = results.load_variables("runs/gbn")
        test = datasets.load("mnist", "test")
        print(training.evaluate(network, variables, test).accuracy)

    Raises:
      OSError: the file cannot be read.
      HistoryError: nor can the history beside it, which has the file's checksum.
      ValueError: the file is damaged, or another run's.
    """
    path = Path(workdir) / VARIABLES
    data = path.read_bytes()
    checksum = history.load(path.with_name(HISTORY))["variables_sha256"]
    if checksum not in ("", hashlib.sha256(data).hexdigest()):
        raise ValueError(f"{path} is damaged, or another run's: train again to replace it")
    variables: dict[str, Any] = flax.serialization.msgpack_restore(data)
    return variables


def _package_versions() -> dict[str, str]:
    packages = ("jax_mnist", "jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets")
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in packages}


def _device_kind(device: jax.Device) -> str:
    """The device's model; JAX calls every CPU "cpu", where Linux knows more."""
    if device.platform == "cpu" and _CPU_INFO.exists():
        model_name = re.search(r"^model name\s*: (.+)$", _CPU_INFO.read_text(), re.MULTILINE)
        return model_name[1] if model_name else device.device_kind
    return device.device_kind
