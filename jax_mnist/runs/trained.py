"""What a finished run leaves, its record and its variables: making and loading them."""

import functools
import hashlib
import operator
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.serialization
import jax
import numpy as np
from ml_collections import ConfigDict

from jax_mnist.config import with_defaults
from jax_mnist.files import PathLike
from jax_mnist.nn.cnn import parameter_count
from jax_mnist.runs.folder import HISTORY, VARIABLES, finished_folders
from jax_mnist.runs.loop import Job, Progress, evaluate
from jax_mnist.runs.record import METRICS, SCHEMA, Record, RecordError, has_diverged, load_record
from jax_mnist.training import recipe
from jax_mnist.training.augment import Normalization
from jax_mnist.training.parts import Overrides
from jax_mnist.training.state import inference_variables

_CPU_INFO = Path("/proc/cpuinfo")
_PACKAGES = ("jax_mnist", "jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets")


def make_results(job: Job, progress: Progress) -> list[tuple[Record, bytes]]:
    """The record of every run, and the file of its variables; empty if the run diverged."""
    evaluations = evaluate(job, progress.state)
    variables = jax.device_get(jax.vmap(inference_variables)(job.hyper, progress.state))
    images, labels = jax.device_get(job.validation)
    device = jax.devices()[0]
    results = []
    for number, (run, evaluation) in enumerate(zip(job.runs, evaluations, strict=True)):
        of_run = jax.tree.map(operator.itemgetter(number), variables)
        epochs = progress.epochs_of(number)
        prediction = evaluation.probabilities.argmax(-1).astype(np.int32)
        wrong = np.flatnonzero(prediction != labels).astype(np.int32)
        record = {
            "schema": SCHEMA,
            "name": run.name,
            "config": run.settings(),
            "seed": run.config.seed,
            "predictions": {
                "label": labels.astype(np.int32),
                "prediction": prediction,
                "probabilities": evaluation.probabilities.astype(np.float32),
            },
            "mistakes": {"index": wrong, "images": images[wrong, :, :, 0]},
            "normalization": job.recipe.normalization._asdict(),
            "label_names": list(job.label_names),
            "packages": {"python": platform.python_version()}
            | {package: metadata.version(package) for package in _PACKAGES},
            "device": {
                "platform": device.platform,
                "kind": _device_kind(device),
                "count": 1 if job.mesh is None else job.mesh.size,
            },
            "metrics": {key: np.array([epoch[key] for epoch in epochs]) for key in METRICS},
            "parameters": parameter_count(of_run["params"]),
        }
        data = b"" if has_diverged(record) else flax.serialization.msgpack_serialize(of_run)
        record["variables_sha256"] = hashlib.sha256(data).hexdigest() if data else ""
        results.append((record, data))
    return results


def _device_kind(device: jax.Device) -> str:
    """The device's model; that of a CPU, which JAX just calls "cpu", comes from Linux."""
    if device.platform == "cpu" and _CPU_INFO.exists():
        model_name = re.search(r"^model name\s*: (.+)$", _CPU_INFO.read_text(), re.MULTILINE)
        return model_name[1] if model_name else device.device_kind
    return device.device_kind


def load_variables(workdir: PathLike) -> dict[str, Any]:
    """The final variables of a run, as NumPy arrays: `{"params": ..., "batch_stats": ...}`.

    Example::

        record = load_record("runs/gbn/history.pkl")
        network = recipe.make_model(ConfigDict(record["config"]))
        variables = load_variables("runs/gbn")
        test = datasets.load("mnist", "test")
        print(evaluation.evaluate(network, variables, test).accuracy)

    Raises:
      OSError: The file cannot be read.
      RecordError: The file is damaged or belongs to another run, or the history beside it, which
        has the file's checksum, cannot be read.
    """
    path = Path(workdir) / VARIABLES
    data = path.read_bytes()
    checksum = load_record(path.with_name(HISTORY))["variables_sha256"]
    if checksum != hashlib.sha256(data).hexdigest():
        raise RecordError(f"{path} is damaged or belongs to another run: train again to replace it")
    variables: dict[str, Any] = flax.serialization.msgpack_restore(data)
    return variables


class TrainedNetwork(NamedTuple):
    """The replicas of a finished run that did not diverge.

    Attributes:
      records: One record per replica, in the order of their folders; see `record`.
      model: The network.
      variables: `{"params": ..., "batch_stats": ...}`, each leaf with a leading axis of replicas.
    """

    records: list[Record]
    model: nn.Module
    variables: dict[str, Any]

    @property
    def normalization(self) -> Normalization:
        """The mean and standard deviation of the pixels, as in training."""
        return Normalization(**self.records[0]["normalization"])

    @property
    def transposed(self) -> bool:
        """Whether the network was trained on transposed images, as those of EMNIST are."""
        return bool(self.records[0]["config"].get("dataset") == "emnist/digits")


def load_network(workdir: PathLike, model: nn.Module | None = None) -> TrainedNetwork:
    """Loads the trained network of a finished run.

    Args:
      workdir: The folder of the run. It may hold one run, or several replicas in subfolders
        `seed-N`; replicas that diverged are left out.
      model: The network that was passed to `trainer.train`, if one was.

    Raises:
      RecordError: The folder holds no finished run, its history cannot be read, every replica
        diverged, `model` is not what was trained, or the weights are damaged or belong to another
        network.
      OSError: The weights cannot be read.
    """
    folders = finished_folders(Path(workdir))
    if not folders:
        raise RecordError(f"{workdir} holds no finished run: train one, or name another folder")
    records = {folder: load_record(folder / HISTORY) for folder in folders}
    records = {folder: r for folder, r in records.items() if not has_diverged(r)}
    if not records:
        raise RecordError(f"{workdir} holds a run that diverged: it has no weights to use")
    config = next(iter(records.values()))["config"]
    names = config.get("model"), Overrides(model).names().get("model")
    if names[0] != names[1]:
        stored, passed = ("of the config" if name is None else str(name)[:64] for name in names)
        raise RecordError(
            f"{workdir} holds the network {stored}, not the network {passed}: pass the model to "
            "predict.load_network that was passed to train"
        )
    model = model or recipe.make_model(ConfigDict(with_defaults(config)))
    expected = {"batch_stats": {}} | jax.eval_shape(  # which a network without norms lacks
        functools.partial(model.init, train=False), jax.random.key(0), np.zeros((1, 28, 28, 1))
    )
    variables = {folder: load_variables(folder) for folder in records}
    for folder, of_folder in variables.items():
        if jax.tree.map(np.shape, of_folder) != jax.tree.map(np.shape, expected):
            raise RecordError(f"{folder} holds weights of another network")
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *variables.values())
    return TrainedNetwork(list(records.values()), model, stacked)
