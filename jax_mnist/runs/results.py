"""The files of a trained run: its record and its variables."""

import hashlib
import operator
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np

from jax_mnist import files
from jax_mnist.data.datasets import Dataset
from jax_mnist.nn.cnn import parameter_count
from jax_mnist.runs import history
from jax_mnist.runs.history import Record
from jax_mnist.runs.loop import Program, Progress, evaluate
from jax_mnist.runs.run import HISTORY, VARIABLES, Run
from jax_mnist.training import mesh as mesh_lib
from jax_mnist.training.evaluation import Evaluation
from jax_mnist.training.state import inference_variables

_CPU_INFO = Path("/proc/cpuinfo")


def make(program: Program, progress: Progress) -> list[tuple[Record, dict[str, Any]]]:
    """The record and the variables of every run; every process must call this.

    Returns:
      Records as `history` describes them, and variables as NumPy arrays.
    """
    evaluations = evaluate(program, progress.state, probabilities=True)
    variables = jax.vmap(inference_variables)(program.hyper, progress.state)
    variables = mesh_lib.fetch(program.mesh, variables)
    validation = jax.device_get(program.validation)
    results = []
    for number, (run, evaluation) in enumerate(zip(program.runs, evaluations, strict=True)):
        epochs = progress.epochs_of(number)
        metrics = {key: np.array([epoch[key] for epoch in epochs]) for key in history.METRICS}
        of_run = jax.tree.map(operator.itemgetter(number), variables)
        record = _record(program, run, validation, evaluation)
        record |= {"metrics": metrics, "parameters": parameter_count(of_run["params"])}
        sound = not history.has_diverged(record)
        record["variables_sha256"] = hashlib.sha256(_to_bytes(of_run)).hexdigest() if sound else ""
        results.append((record, of_run))
    return results


def _record(program: Program, run: Run, validation: Dataset, evaluation: Evaluation) -> Record:
    images, labels = validation
    prediction = evaluation.probabilities.argmax(-1).astype(np.int32)
    wrong = np.flatnonzero(prediction != labels).astype(np.int32)
    device = jax.devices()[0]
    return {
        "schema": history.SCHEMA,
        "name": run.name,
        "config": run.settings(),
        "seed": run.config.seed,
        "predictions": {
            "label": labels.astype(np.int32),
            "prediction": prediction,
            "probabilities": evaluation.probabilities.astype(np.float32),
        },
        "mistakes": {"index": wrong, "images": images[wrong, :, :, 0]},
        "normalization": program.recipe.normalization._asdict(),
        "label_names": list(program.label_names),
        "packages": _package_versions(),
        "device": {
            "platform": device.platform,
            "kind": _device_kind(device),
            "count": 1 if program.mesh is None else program.mesh.size,
        },
    }


def save(workdir: Path, record: Record, variables: dict[str, Any]) -> None:
    """Writes the variables, unless the run diverged, then the record, which marks it finished."""
    if record["variables_sha256"]:
        files.write_atomically(workdir / VARIABLES, _to_bytes(variables))
    history.save(workdir / HISTORY, record)


def _to_bytes(variables: dict[str, Any]) -> bytes:
    data: bytes = flax.serialization.msgpack_serialize(variables)
    return data


def _package_versions() -> dict[str, str]:
    packages = ("jax_mnist", "jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets")
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in packages}


def _device_kind(device: jax.Device) -> str:
    """The device's model; that of a CPU, which JAX just calls "cpu", comes from Linux."""
    if device.platform == "cpu" and _CPU_INFO.exists():
        model_name = re.search(r"^model name\s*: (.+)$", _CPU_INFO.read_text(), re.MULTILINE)
        return model_name[1] if model_name else device.device_kind
    return device.device_kind
