"""The record of one run, and the file that holds it.

A record is a nested dictionary of plain Python values and NumPy arrays:

    schema            int, `SCHEMA`
    name              str, the variant, printable
    config            dict, the whole configuration; `model`, `loss` and `optimizer` are among it if
                      the caller replaced them (`training.parts`)
    seed              int
    parameters        int, the number of trained parameters
    metrics           dict of float64 [epochs]: train_loss, train_accuracy, validation_loss,
                      validation_accuracy, learning_rate, seconds; accuracies lie in [0, 1]
    normalization     dict: mean float, std float, as in `augment.normalize`
    predictions       dict, for the validation set after the last epoch: label int32 [N],
                      prediction int32 [N], probabilities float32 [N, classes]
    mistakes          dict: index int32 [M], ascending positions of the wrong predictions;
                      images uint8 [M, 28, 28]
    label_names       list of str, one per class
    packages          dict of str, package name to version
    device            dict: platform str, kind str, count int
    variables_sha256  str, the SHA-256 of the file of final variables, empty if there is none

The file `history.pkl` is a pickle of plain Python values, followed by its SHA-256. `load` is safe
for files from strangers. Without this package, `pickle.load` reads a file that you trust; each
array is a dictionary there:

    with open("history.pkl", "rb") as file:
        record = pickle.load(file)
    loss = record["metrics"]["validation_loss"]
    loss = np.frombuffer(loss["data"], loss["dtype"]).reshape(loss["shape"])
"""

import hashlib
import os
from typing import Any, NamedTuple

import numpy as np

from jax_mnist import files
from jax_mnist.files import PathLike
from jax_mnist.runs import safe_pickle

SCHEMA = 3
METRICS = (
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "learning_rate",
    "seconds",
)

Record = dict[str, Any]

_MAX_BYTES = 2**28  # far above any real record
_CHECKSUM = b"sha256:"


class HistoryError(ValueError):
    """A record or a history file that cannot be used; the message is one line."""


def save(path: PathLike, record: Record) -> None:
    """Validates a record and writes it atomically: a reader sees the old file or the new one.

    Args:
      path: The file. Its folder is created if it is missing.
      record: As described in the module's docstring. NumPy scalars become Python scalars.

    Raises:
      HistoryError: The record is not valid, or the file could not be written.
    """
    try:
        data = safe_pickle.dumps(record)
        data += _CHECKSUM + hashlib.sha256(data).hexdigest().encode()
        _parse(data)  # never write what `load` would reject
        files.write_atomically(path, data)
    except (OSError, safe_pickle.NotPlainError) as error:
        raise HistoryError(str(error)) from error


def load(path: PathLike) -> Record:
    """Reads and validates a record that `save` wrote; nothing in the file is trusted or run.

    Returns:
      The record. Its arrays are C-contiguous, writable and in native byte order.

    Raises:
      HistoryError: The file cannot be read, is damaged, holds anything but plain values, or does
        not hold a valid record.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MAX_BYTES:
                raise HistoryError(f"larger than the {_MAX_BYTES} bytes a history may have")
            return _parse(file.read(size))
    except OSError as error:
        raise HistoryError(f"{os.fspath(path)!r}: cannot be read: {error.strerror}") from error
    except HistoryError as error:
        raise HistoryError(f"{os.fspath(path)!r}: {error}") from error


def has_diverged(record: Record) -> bool:
    """Whether the training or validation loss of the last epoch is not finite.

    An overflow in the very last update leaves all training losses finite; only the validation loss
    shows it.
    """
    metrics = record["metrics"]
    return not np.isfinite([metrics["train_loss"][-1], metrics["validation_loss"][-1]]).all()


class Mistake(NamedTuple):
    """One misclassified validation image."""

    image: np.ndarray  # uint8 [28, 28]
    label: int  # the true class
    prediction: int  # the predicted class
    probability: float  # the probability given to the predicted class, in [0, 1]
    position: int  # in the validation set


def rank_mistakes(record: Record, count: int) -> list[Mistake]:
    """Returns the misclassified images with the most confident predictions, most confident first.

    Args:
      record: As `load` returns it.
      count: The maximum number of images; fewer are returned if there are fewer mistakes.

    Returns:
      Mistakes by descending probability of the wrong prediction. Equal probabilities stay in the
      order of the data, and NaN comes last.

    Raises:
      ValueError: `count` is negative.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, it is {count}")
    predictions, mistakes = record["predictions"], record["mistakes"]
    index = mistakes["index"]
    wrong = predictions["prediction"][index]
    probability = predictions["probabilities"][index, wrong]
    order = np.argsort(-probability, kind="stable")[:count]
    return [
        Mistake(
            image=mistakes["images"][i],
            label=int(predictions["label"][index[i]]),
            prediction=int(wrong[i]),
            probability=float(probability[i]),
            position=int(index[i]),
        )
        for i in order
    ]


def _parse(data: bytes) -> Record:
    """Parses and validates the contents of a file."""
    if len(data) > _MAX_BYTES:
        raise HistoryError(f"larger than the {_MAX_BYTES} bytes a history may have")
    start = max(0, len(data) - len(_CHECKSUM) - 64)
    data, checksum = data[:start], data[start:]
    if checksum != _CHECKSUM + hashlib.sha256(data).hexdigest().encode():
        raise HistoryError("damaged, or not a history: its checksum is missing or differs")
    try:
        record = safe_pickle.loads(data)
    except safe_pickle.NotPlainError as error:
        raise HistoryError(f"not a history: {error}") from error
    _check_fields(record)
    _check_metrics(record["metrics"])
    _check_predictions(record)
    return record


def _check_fields(record: object) -> None:
    if type(record) is not dict:
        raise HistoryError(f"a record is a dict, this is a {type(record).__name__}")
    schema = record.get("schema")
    if type(schema) is not int:
        raise HistoryError("not a record: it has no schema number")
    if schema != SCHEMA:
        raise HistoryError(
            f"it has schema {schema!s:.9}, this version of jax_mnist reads schema {SCHEMA}: "
            "install the version that wrote it, or train again"
        )
    _typed(record, dict, "config", "metrics", "normalization")
    _typed(record, dict, "predictions", "mistakes")
    _typed(record, dict, "packages", "device")
    _typed(record, int, "seed", "parameters")
    _typed(record, str, "name", "variables_sha256")
    _typed(record, list, "label_names")
    _typed(record["normalization"], float, "mean", "std")
    _typed(record["device"], str, "platform", "kind")
    _typed(record["device"], int, "count")
    _typed(record["packages"], str, *record["packages"])
    if not all(map(safe_pickle.is_label, (record["name"], *record["label_names"]))):
        raise HistoryError("name and label_names are printable text of at most 64 characters")


def _check_metrics(metrics: Record) -> None:
    epochs = len(_array(metrics, METRICS[0], np.float64, (-1,)))
    if not epochs:
        raise HistoryError("the record holds no epoch")
    for key in {*METRICS, *metrics}:
        _array(metrics, key, np.float64, (epochs,))
    for key in ("train_accuracy", "validation_accuracy"):
        if not np.all((metrics[key] >= 0) & (metrics[key] <= 1)):
            raise HistoryError(f"{key} leaves [0, 1]: give fractions, not percent")


def _check_predictions(record: Record) -> None:
    classes = len(record["label_names"])
    predictions, mistakes = record["predictions"], record["mistakes"]
    labels = _array(predictions, "label", np.int32, (-1,))
    predicted = _array(predictions, "prediction", np.int32, (len(labels),))
    _array(predictions, "probabilities", np.float32, (len(labels), classes))
    if not len(labels):
        raise HistoryError("the record holds no prediction")
    if min(labels.min(), predicted.min()) < 0 or max(labels.max(), predicted.max()) >= classes:
        raise HistoryError(f"label or prediction leaves the {classes} classes of label_names")
    index = _array(mistakes, "index", np.int32, (-1,))
    _array(mistakes, "images", np.uint8, (len(index), 28, 28))
    if not np.array_equal(index, np.flatnonzero(labels != predicted)):
        raise HistoryError("mistakes index is not where label and prediction differ, ascending")


def _typed(mapping: Record, kind: type, *keys: str) -> None:
    for key in keys:
        if type(mapping.get(key)) is not kind:
            raise HistoryError(f"{key} is missing or not of type {kind.__name__}")


def _array(mapping: Record, key: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """Returns an array of the mapping after checking its type and shape; -1 is any size."""
    value = mapping.get(key)
    if not isinstance(value, np.ndarray):
        raise HistoryError(f"{key} is missing or not an array")
    fits = value.ndim == len(shape) and all(
        size in (-1, found) for size, found in zip(shape, value.shape, strict=True)
    )
    if value.dtype != dtype or not fits:
        expected = f"{dtype.__name__} {list(shape)}".replace("-1", "any")
        raise HistoryError(f"{key} must be {expected}, it is {value.dtype} {list(value.shape)}")
    return value
