"""A finished run: its network and weights, and what they say of images."""

import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jax_mnist.config import base
from jax_mnist.nn.cnn import CNN
from jax_mnist.runs import history, results
from jax_mnist.runs.history import HistoryError, Record
from jax_mnist.runs.run import HISTORY, seed_folders
from jax_mnist.training import augment, evaluation, recipe


class Trained(NamedTuple):
    """The replicas of a finished run.

    Attributes:
      records: of each replica, by folder; `history` says what they hold.
      model: the network.
      variables: `{"params": ..., "batch_stats": ...}`, each leaf with a leading axis of replicas.
    """

    records: list[Record]
    model: CNN
    variables: dict[str, Any]


def load(workdir: str | os.PathLike[str]) -> Trained:
    """A run from its folder; of several replicas those that did not diverge.

    Raises:
      HistoryError: the folder holds no finished run, or one that cannot be read or diverged.
      OSError: the variables cannot be read.
      ValueError: the variables are damaged, or of another network.
    """
    workdir = Path(workdir)
    folders = [workdir] if (workdir / HISTORY).exists() else []
    folders = folders or seed_folders(workdir, HISTORY)
    if not folders:
        raise HistoryError(f"{workdir} holds no finished run: train one, or name another folder")
    records = {folder: history.load(folder / HISTORY) for folder in folders}
    sound = [folder for folder, r in records.items() if not history.has_diverged(r)]
    if not sound:
        raise HistoryError(f"{workdir} holds a run that diverged: there are no weights to use")
    variables = [results.load_variables(folder) for folder in sound]
    # A field may be newer than the run.
    config = base().to_dict() | records[sound[0]]["config"]
    model = recipe.make_model(ConfigDict(config))
    expected = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), np.zeros((1, 28, 28, 1))
    )
    for folder, found in zip(sound, variables, strict=True):
        if not _same_shapes(found, expected):
            raise ValueError(f"{folder} holds weights of another network")
    return Trained(
        [records[folder] for folder in sound],
        model,
        jax.tree.map(lambda *leaves: np.stack(leaves), *variables),
    )


def _same_shapes(found: Any, expected: Any) -> bool:
    shapes = [jax.tree.map(np.shape, t) for t in (found, expected)]
    return shapes[0] == shapes[1]


def predict(trained: Trained, images: np.ndarray) -> np.ndarray:
    """Probabilities of images: the mean over the replicas.

    Args:
      trained: from `load`.
      images: uint8 `[batch, 28, 28]`, black 0.

    Returns:
      float32 `[batch, 10]`.
    """
    normalization = augment.Normalization(**trained.records[0]["normalization"])
    logits = evaluation.predict(trained.model, trained.variables, images[..., None], normalization)
    return np.asarray(jax.nn.softmax(logits).mean(0))
