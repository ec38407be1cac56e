"""What a run records, and the file that holds it.

A record is a nested dictionary of plain Python values and NumPy arrays:

    schema         int, `SCHEMA`
    name           str, the variant, printable
    config         dict, the whole configuration
    seed           int
    parameters     int, the number of trained parameters
    metrics        dict of float64 [epochs]: train_loss, train_accuracy, validation_loss,
                   validation_accuracy, learning_rate, seconds; accuracies are fractions in [0, 1]
    normalization  dict: mean float, std float, those of `augment.normalize`
    predictions    dict, the validation set at the last epoch: label int32 [N], prediction int32
                   [N], probabilities float32 [N, classes]
    mistakes       dict: index int32 [M], ascending, into predictions; images uint8 [M, 28, 28]
    label_names    list of str, one per class
    packages       dict of str, package name to version
    device         dict: platform str, kind str, count int
    variables_sha256  str, of the file of the final variables; empty if there is none, or not known

The file is an ordinary pickle that `pickle.load` opens, and after it a checksum. Use `load` for one
that comes from somebody else: it makes such values only, whatever the file asks for.
"""

import hashlib
import itertools
import os
import pickle
from typing import Any, NamedTuple

import numpy as np

from jax_mnist.data import files
from jax_mnist.data.files import PathLike
from jax_mnist.runs import safe_pickle

SCHEMA = 2  # 1 had no normalization and no variables_sha256
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
_MAX_VALUES = 10_000  # an array takes some 20 steps, so this stays below safe_pickle.MAX_STEPS
_MAX_DEPTH = 32
_CHECKSUM = b"sha256:"
_PROTOCOL = 4  # one form for every array, readable by NumPy 1.26 too; protocol 5 has two


class HistoryError(ValueError):
    """A record or a history file that cannot be used; the message is one line."""


def save(path: PathLike, record: Record) -> None:
    """Checks a record and writes it atomically: the file is the old one or the new one.

    Args:
        path: the file; its folder is made if there is none.
        record: as the module's docstring describes it. NumPy scalars become Python scalars.

    Raises:
        HistoryError: the record is not valid, or the file could not be written.
    """
    data = pickle.dumps(_checked(record), protocol=_PROTOCOL)
    data += _CHECKSUM + hashlib.sha256(data).hexdigest().encode()
    try:
        _parsed(data)  # what `load` would refuse is never written
        files.write_atomically(path, data)
    except OSError as error:
        raise HistoryError(str(error)) from error


def load(path: PathLike) -> Record:
    """Reads a record, trusting nothing: only plain Python values and numeric arrays are made.

    Args:
        path: a file that `save` wrote, or any pickle of such a record (protocol 3 or newer), also
            of an older schema.

    Returns:
        The record in today's schema, with arrays that are C-contiguous, writable and in native
        byte order.

    Raises:
        HistoryError: the file cannot be read, is damaged, asks for anything else than such values,
            or holds no valid record.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_size(size)
            return _parsed(file.read(size))
    except OSError as error:
        raise HistoryError(f"{os.fspath(path)!r}: cannot be read: {error.strerror}") from error
    except HistoryError as error:
        raise HistoryError(f"{os.fspath(path)!r}: {error}") from error


def has_diverged(record: Record) -> bool:
    """Whether training stopped at a loss that is not finite; the last epoch is the one it did.

    Args:
        record: as `history.load` returns it.
    """
    return not np.isfinite(record["metrics"]["train_loss"][-1])


class Mistake(NamedTuple):
    """One misclassified validation image."""

    image: np.ndarray  # uint8 [28, 28]
    label: int  # the true class
    prediction: int  # the class the network named
    probability: float  # what it gave that wrong class, in [0, 1]
    position: int  # in the validation set


def rank_mistakes(record: Record, count: int) -> list[Mistake]:
    """Returns the misclassified images that the network was most sure about, surest first.

    Args:
        record: as `history.load` returns it.
        count: how many at most; there are fewer if the network made fewer mistakes.

    Returns:
        Mistakes by falling probability of the wrong answer; equal ones stay in the data's order,
        and a probability that is not a number comes last.

    Raises:
        ValueError: count is negative.
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


def _check_size(size: int) -> None:
    if size > _MAX_BYTES:
        raise HistoryError(f"larger than the {_MAX_BYTES} bytes a history may have")


def _parsed(data: bytes) -> Record:
    _check_size(len(data))
    start = len(data) - len(_CHECKSUM) - 64
    if data[start:].startswith(_CHECKSUM):  # a pickle made by hand has none
        data, checksum = data[:start], data[start + len(_CHECKSUM) :]
        if hashlib.sha256(data).hexdigest().encode() != checksum:
            raise HistoryError("damaged: its checksum differs")
    try:
        return _checked(safe_pickle.loads(data))
    except safe_pickle.UnpicklingError as error:
        raise HistoryError(f"not a history: {error}") from error


def _checked(record: object) -> Record:
    """Returns a copy of the record that is known to be plain, complete and consistent."""
    if type(record) is not dict:
        raise HistoryError(f"a record is a dict, this is a {type(record).__name__}")
    schema = record.get("schema")
    if type(schema) is not int or schema < 1:
        raise HistoryError("not a record: it has no schema number")
    if schema > SCHEMA:
        newer = f"schema {schema!s:.9}, this reads up to {SCHEMA}"
        raise HistoryError(f"made by a newer jax_mnist ({newer}); upgrade")
    plain = _plain(record, "record", 0, itertools.count())
    if schema == 1:  # of MNIST and its constants always
        mnist = {"mean": 0.1307, "std": 0.3081}
        plain |= {"schema": 2, "normalization": mnist, "variables_sha256": ""}

    _typed(plain, dict, "config", "metrics", "predictions", "mistakes", "packages", "device")
    _typed(plain, dict, "normalization")
    _typed(plain, int, "seed", "parameters")
    _typed(plain, str, "name", "variables_sha256")
    _typed(plain, list, "label_names")
    _typed(plain["normalization"], float, "mean", "std")
    _typed(plain["device"], str, "platform", "kind")
    _typed(plain["device"], int, "count")
    _typed(plain["packages"], str, *plain["packages"])
    if not all(_printable(text) for text in (plain["name"], *plain["label_names"])):
        raise HistoryError("name and label_names are printable text of at most 64 characters")

    metrics = plain["metrics"]
    epochs = len(_array(metrics, METRICS[0], np.float64, -1))
    for key in {*METRICS, *metrics}:
        _array(metrics, key, np.float64, epochs)
    for key in ("train_accuracy", "validation_accuracy"):
        if not np.all((metrics[key] >= 0) & (metrics[key] <= 1)):
            raise HistoryError(f"{key} leaves [0, 1]: give fractions, not percent")

    classes = len(plain["label_names"])
    predictions, mistakes = plain["predictions"], plain["mistakes"]
    labels = _array(predictions, "label", np.int32, -1)
    predicted = _array(predictions, "prediction", np.int32, len(labels))
    _array(predictions, "probabilities", np.float32, len(labels), classes)
    if not epochs or not len(labels):
        raise HistoryError("the record holds no epoch, or no prediction")
    if min(labels.min(), predicted.min()) < 0 or max(labels.max(), predicted.max()) >= classes:
        raise HistoryError(f"label or prediction leaves the {classes} classes of label_names")
    index = _array(mistakes, "index", np.int32, -1)
    _array(mistakes, "images", np.uint8, len(index), 28, 28)
    if not np.array_equal(index, np.flatnonzero(labels != predicted)):
        raise HistoryError("mistakes index is not where label and prediction differ, ascending")
    return plain


def _plain(value: object, where: str, depth: int, visited: "itertools.count[int]") -> Any:
    """Copies a value, refusing all but plain types; bounded, for values may share or hold others.

    Exact types only: a subclass could bring its own behaviour along.
    """
    if depth > _MAX_DEPTH or next(visited) > _MAX_VALUES:
        raise HistoryError(f"more than {_MAX_VALUES} values, or more than {_MAX_DEPTH} deep")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is dict:
        if not all(_printable(key) for key in value):
            raise HistoryError(f"{where:.60} has a key that is not printable text")
        return {k: _plain(v, f"{where} {k:.40}", depth + 1, visited) for k, v in value.items()}
    if type(value) is list or type(value) is tuple:
        items = [_plain(item, f"{where} item", depth + 1, visited) for item in value]
        return items if type(value) is list else tuple(items)
    if type(value) is np.ndarray and value.dtype.str[1:] in safe_pickle.DTYPES:
        return np.asarray(value, safe_pickle.DTYPES[value.dtype.str[1:]], order="C")
    kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    raise HistoryError(f"{where:.60} is {kind:.60}: give plain Python values and numeric arrays")


def _printable(text: object) -> bool:
    return type(text) is str and text.isprintable() and 0 < len(text) <= 64


def _typed(mapping: Record, kind: type, *keys: str) -> None:
    for key in keys:
        if type(mapping.get(key)) is not kind:
            raise HistoryError(f"{key} is missing or not of type {kind.__name__}")


def _array(mapping: Record, key: str, dtype: type, *shape: int) -> np.ndarray:
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
