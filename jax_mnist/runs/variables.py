"""The file of a run's final variables."""

import hashlib
from pathlib import Path
from typing import Any

import flax.serialization

from jax_mnist.files import PathLike
from jax_mnist.runs import history
from jax_mnist.runs.run import HISTORY, VARIABLES


def load_variables(workdir: PathLike) -> dict[str, Any]:
    """The final variables of a run, as NumPy arrays: `{"params": ..., "batch_stats": ...}`.

    Example::

        record = history.load("runs/gbn/history.pkl")
        network = recipe.make_model(ConfigDict(record["config"]))
        variables = load_variables("runs/gbn")
        test = datasets.load("mnist", "test")
        print(evaluation.evaluate(network, variables, test).accuracy)

    Raises:
      OSError: The file cannot be read.
      HistoryError: The file is damaged or belongs to another run, or the history beside it, which
        has the file's checksum, cannot be read.
    """
    path = Path(workdir) / VARIABLES
    data = path.read_bytes()
    checksum = history.load(path.with_name(HISTORY))["variables_sha256"]
    if checksum != hashlib.sha256(data).hexdigest():
        raise history.HistoryError(
            f"{path} is damaged or belongs to another run: train again to replace it"
        )
    variables: dict[str, Any] = flax.serialization.msgpack_restore(data)
    return variables
