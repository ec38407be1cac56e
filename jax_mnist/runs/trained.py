"""The network of a finished run: its records and variables."""

import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from jax_mnist.config import with_defaults
from jax_mnist.runs import history
from jax_mnist.runs.history import HistoryError, Record
from jax_mnist.runs.run import HISTORY, finished_folders
from jax_mnist.runs.variables import load_variables
from jax_mnist.training import recipe
from jax_mnist.training.augment import Normalization
from jax_mnist.training.parts import Parts


class TrainedNetwork(NamedTuple):
    """The replicas of a finished run that did not diverge.

    Attributes:
      records: One record per replica, in the order of their folders; `history` describes them.
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


def load(workdir: str | os.PathLike[str], model: nn.Module | None = None) -> TrainedNetwork:
    """Loads the trained network of a finished run.

    Args:
      workdir: The folder of the run. It may hold one run, or several replicas in subfolders
        `seed-N`; replicas that diverged are left out.
      model: The network that was passed to `trainer.train`, if one was.

    Raises:
      HistoryError: The folder holds no finished run, its history cannot be read, every replica
        diverged, `model` is not what was trained, or the weights are damaged or belong to another
        network.
      OSError: The weights cannot be read.
    """
    records = _load_records(Path(workdir))
    config = next(iter(records.values()))["config"]
    trained, given = config.get("model"), Parts(model).names().get("model")
    if trained != given:
        raise HistoryError(
            f"{workdir} holds {_network(trained)}, not {_network(given)}: pass the model "
            "to predict.load that was passed to train"
        )
    model = model or recipe.make_model(ConfigDict(with_defaults(config)))
    variables = {folder: load_variables(folder) for folder in records}
    expected = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), np.zeros((1, 28, 28, 1))
    )
    expected = {"batch_stats": {}} | expected  # of a network without norms
    for folder, found in variables.items():
        if jax.tree.map(np.shape, found) != jax.tree.map(np.shape, expected):
            raise HistoryError(f"{folder} holds weights of another network")
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *variables.values())
    return TrainedNetwork(list(records.values()), model, stacked)


def _network(name: str | None) -> str:
    return "the config's network" if name is None else f"the network {name:.64}"


def _load_records(workdir: Path) -> dict[Path, Record]:
    """Returns the records of all replicas that did not diverge, by folder; at least one."""
    folders = finished_folders(workdir)
    if not folders:
        raise HistoryError(f"{workdir} holds no finished run: train one, or name another folder")
    records = {folder: history.load(folder / HISTORY) for folder in folders}
    finite = {f: record for f, record in records.items() if not history.has_diverged(record)}
    if not finite:
        raise HistoryError(f"{workdir} holds a run that diverged: it has no weights to use")
    return finite
