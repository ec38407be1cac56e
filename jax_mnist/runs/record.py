"""The record of one run, and `history.pkl`, the file that holds it.

The file holds plain Python values alone, so that the standard library reads it without this
package, and pandas makes tables of it:

    with open("runs/gbn/history.pkl", "rb") as file:
        record = pickle.load(file)
    record["metrics"]["validation_accuracy"]  # a list of floats, one for each epoch
    pd.DataFrame(record["metrics"])  # a row for each epoch
    pd.DataFrame(record["predictions"]["probabilities"], columns=record["label_names"])

`pickle.load` runs whatever a file asks for: use it for files that you trust. `load_record` is safe
for files from strangers, checks the whole record, and returns it with arrays in place of lists.
"""

import hashlib
import io
import itertools
import os
import pickle
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import numpy as np

from jax_mnist import files
from jax_mnist.files import PathLike

SCHEMA = 4
# Each key with its type, or with the dtype and the axes of its array: E epochs, N validation
# examples, C classes, M mistakes. Other plain values may lie beside them, but no other metrics.
FIELDS: dict[str, Any] = {
    "schema": int,
    "name": str,  # of the variant
    "config": dict,  # the whole configuration, and the names of parts that the caller replaced
    "seed": int,
    "parameters": int,  # the number of trained parameters
    "label_names": list,  # a string for each class
    "packages": dict,  # name to version
    "variables_sha256": str,  # of the file of final variables; empty if there is none
    "device.platform": str,
    "device.kind": str,
    "device.count": int,
    "normalization.mean": float,
    "normalization.std": float,
    "metrics.train_loss": (np.float64, "E"),
    "metrics.train_accuracy": (np.float64, "E"),  # a fraction, not percent
    "metrics.validation_loss": (np.float64, "E"),
    "metrics.validation_accuracy": (np.float64, "E"),
    "metrics.learning_rate": (np.float64, "E"),
    "metrics.seconds": (np.float64, "E"),
    "predictions.label": (np.int32, "N"),  # after the last epoch
    "predictions.prediction": (np.int32, "N"),
    "predictions.probabilities": (np.float32, "N C"),
    "mistakes.index": (np.int32, "M"),  # where label and prediction differ, ascending
    "mistakes.images": (np.uint8, "M 28 28"),
}
METRICS = tuple(key.split(".")[1] for key in FIELDS if key.startswith("metrics."))

Record = dict[str, Any]

_MAX_BYTES = 2**27  # twice as much as 40,000 wrong predictions of ten classes take
_MAX_DEPTH = 16
_MAX_VALUES = 10_000  # beside arrays, of which a record has about 130
_CHECKSUM = b"sha256:"

# What a file may do. None of these opcodes of protocol 3 names, calls or repeats anything, so every
# value has its own bytes, and reading a file takes at most some thirty times its size of memory. A
# row of numbers is a list, or the next thousand numbers of one, and may begin or end a list of
# lists. All else counts as steps, among them whatever can be a key: many keys could be chosen so
# that their hashes collide. `re` needs memory for each repetition, so these are bounded too.
_PROTOCOL = 3
_HEADER = pickle.PROTO + bytes([_PROTOCOL])
_NUMBER = rb"(?:K.|M..|J.{4}|G.{8})"
_ROW = re.compile(rb"(?:\]\()?(?:\]?\(%b{1,1000}e|\]%ba)e?" % (_NUMBER, _NUMBER), re.DOTALL)
_STEP = re.compile(rb"[\](}aesuN\x88\x89]|%b|[XB](....)|[C\x8a](.)" % _NUMBER, re.DOTALL)


class RecordError(ValueError):
    """A record, or the file of one, that cannot be used; the message is one line."""


def save_record(path: PathLike, record: Record) -> None:
    """Validates a record and writes it atomically: a reader sees the old file or the new one.

    Args:
      path: The file. Its folder is created if it is missing.
      record: As `FIELDS` describes it. NumPy scalars become Python scalars.

    Raises:
      RecordError: The record is not valid, or the file could not be written.
    """
    file = io.BytesIO()
    pickler = pickle.Pickler(file, _PROTOCOL)
    pickler.fast = True  # write a repeated value again rather than a reference to the first
    pickler.dump(_plain(record | {"schema": SCHEMA}, itertools.count()))
    data = file.getvalue()
    data += _CHECKSUM + hashlib.sha256(data).hexdigest().encode()
    _parse(data)  # never write what `load_record` would reject
    try:
        files.write_atomically(path, data)
    except OSError as error:
        raise RecordError(str(error)) from error


def load_record(path: PathLike) -> Record:
    """Reads and validates a record that `save_record` wrote; nothing in the file is trusted or run.

    Returns:
      The record, of this schema even if the file is of schema 3. Its arrays are C-contiguous,
      writable and in native byte order.

    Raises:
      RecordError: The file cannot be read, is damaged, holds anything but plain values, or does
        not hold a valid record.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _parse(file.read(min(size, _MAX_BYTES + 1)))
    except OSError as error:
        raise RecordError(f"{os.fspath(path)!r}: cannot be read: {error.strerror}") from error
    except RecordError as error:
        raise RecordError(f"{os.fspath(path)!r}: {error}") from error


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
    """Returns at most `count` misclassified images, those with the most confident predictions.

    They are sorted by descending probability of the wrong prediction. Equal probabilities stay in
    the order of the data, and NaN comes last.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, it is {count}")
    predictions, mistakes = record["predictions"], record["mistakes"]
    label, prediction, probabilities = (
        predictions[key][mistakes["index"]] for key in ("label", "prediction", "probabilities")
    )
    probability = probabilities[np.arange(len(prediction)), prediction]
    order = np.argsort(-probability, kind="stable")[:count]
    columns = (label, prediction, probability, mistakes["index"])
    return [*map(Mistake, mistakes["images"][order], *(c[order].tolist() for c in columns))]


def is_label(text: object) -> bool:
    """Whether a value is a string of 1 to 64 printable characters, as names and keys are."""
    return type(text) is str and text.isprintable() and 0 < len(text) <= 64


class _Unpickler(pickle.Unpickler):
    """A second safeguard: even if a name got past the opcodes, it would not be looked up."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise RecordError("it asks for a name")


def _parse(data: bytes) -> Record:
    """Parses and validates the contents of a file."""
    if len(data) > _MAX_BYTES:
        raise RecordError(f"larger than the {_MAX_BYTES} bytes that a record may have")
    end = max(0, len(data) - len(_CHECKSUM) - 64)
    data, checksum = data[:end], data[end:]
    if checksum != _CHECKSUM + hashlib.sha256(data).hexdigest().encode():
        raise RecordError("damaged, or not a record: its checksum is missing or differs")
    _check_steps(data)
    try:
        record = _Unpickler(io.BufferedReader(io.BytesIO(data))).load()  # reads in large pieces
    except Exception as error:  # damaged data can raise anything
        raise RecordError(f"not a record: it is damaged ({type(error).__name__})") from error
    schema = record.get("schema") if type(record) is dict else None
    if schema not in (3, SCHEMA):
        raise RecordError(
            f"it has schema {schema!r:.9}, this version of jax_mnist reads schema {SCHEMA}: "
            "install the version that wrote it, or train again"
        )
    _read_fields(record, schema)
    record = _plain(record | {"schema": SCHEMA}, itertools.count(), lists=False)
    _check_values(record)
    return record


def _check_steps(data: bytes) -> None:
    """Checks that a pickle does nothing but make a bounded number of plain values."""
    position, steps = 2, 0
    while position < len(data) - 1 and steps < 2 * _MAX_VALUES:
        if row := _ROW.match(data, position):
            position = row.end()
        elif step := _STEP.match(data, position):
            steps += 1
            position = step.end() + int.from_bytes(step[1] or step[2] or b"", "little")
        else:
            break
    if not data.startswith(_HEADER) or data[position:] != pickle.STOP:
        raise RecordError(f"not a record: more than plain values, or too many, at byte {position}")


def _plain(
    value: Any, count: Iterator[int], lists: bool = True, key: str = "record", depth: int = 0
) -> Any:
    """Checks and copies plain values. Arrays become lists, or stay what they are."""
    if next(count) >= _MAX_VALUES or depth > _MAX_DEPTH:
        raise RecordError(f"{key:.60} is too deep, or one of more than {_MAX_VALUES} values")
    if type(value) is np.ndarray and value.dtype.kind in "iuf":
        return value.tolist() if lists else value
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_plain(item, count, lists, f"{key}[]", depth + 1) for item in value]
    if type(value) is not dict:
        raise RecordError(f"{key:.60} is {type(value).__name__:.60}: give plain Python values")
    if not all(map(is_label, value)):
        raise RecordError(f"{key:.60} has a key that is not 1 to 64 printable characters")
    return {k: _plain(item, count, lists, f"{key}.{k}", depth + 1) for k, item in value.items()}


def _read_fields(record: Record, schema: int) -> None:
    """Checks that a record has all `FIELDS`, and puts arrays in place of what stands for them."""
    sizes = {"28": 28}  # of axes
    read = _array_of_bytes if schema == 3 else _array_of_lists
    for field, kind in FIELDS.items():
        group, _, key = field.rpartition(".")
        holder = record.get(group) if group else record
        if type(holder) is not dict or key not in holder:
            raise RecordError(f"{field} is missing")
        if isinstance(kind, type):
            if type(holder[key]) is not kind:
                raise RecordError(f"{field} is not of type {kind.__name__}")
            if field == "label_names":
                sizes["C"] = len(holder[key])
            continue
        dtype, axes = kind[0], kind[1].split()
        try:
            array = read(holder[key], dtype, [sizes.get(axis, 0) for axis in axes])
            for axis, size in zip(axes, array.shape, strict=True):
                if sizes.setdefault(axis, size) != size:
                    raise ValueError("it does not fit the others")
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            shape = ", ".join(str(sizes.get(axis, axis)) for axis in axes)
            raise RecordError(f"{field} must be {dtype.__name__} [{shape}]") from error
        holder[key] = array


def _array_of_lists(value: Any, dtype: type, sizes: list[int]) -> np.ndarray:
    """Makes an array of nested lists; `sizes` are those of axes that an empty list leaves open."""
    objects = np.array(value, object)  # lists in it are of unequal lengths; text takes no copies
    wide = float if issubclass(dtype, np.floating) else int
    if {*map(type, objects.flat)} - {wide}:
        raise ValueError("other values than numbers of this kind")
    exact = objects.astype(wide).reshape(objects.shape if objects.size else sizes)
    with np.errstate(over="ignore"):
        array: np.ndarray = exact.astype(dtype)
    if not np.array_equal(array, exact, equal_nan=True):
        raise ValueError("numbers that this type cannot hold")
    return array


def _array_of_bytes(value: Any, dtype: type, sizes: list[int]) -> np.ndarray:
    """Reads an array of schema 3, in which arrays were dictionaries."""
    stored = np.dtype(dtype).newbyteorder("<")
    if value["dtype"] != stored.str:
        raise ValueError("another dtype")
    return np.frombuffer(value["data"], stored).reshape(value["shape"]).astype(dtype)


def _check_values(record: Record) -> None:
    if not all(map(is_label, (record["name"], *record["label_names"]))):
        raise RecordError("name and label_names are printable text of at most 64 characters")
    if {*map(type, record["packages"].values())} - {str}:
        raise RecordError("packages maps names to versions of type str")
    if record["metrics"].keys() != {*METRICS}:
        raise RecordError(f"metrics are {', '.join(METRICS)}")
    for key in ("train_accuracy", "validation_accuracy"):
        accuracy = record["metrics"][key]
        if not np.all((accuracy >= 0) & (accuracy <= 1)):
            raise RecordError(f"metrics.{key} leaves [0, 1]: give fractions, not percent")
    label, prediction = record["predictions"]["label"], record["predictions"]["prediction"]
    if not len(label) or not len(accuracy):
        raise RecordError("the record holds no epoch or no prediction")
    classes = len(record["label_names"])
    if not 0 <= min(label.min(), prediction.min()) <= max(label.max(), prediction.max()) < classes:
        raise RecordError(f"label or prediction leaves the {classes} classes of label_names")
    if not np.array_equal(record["mistakes"]["index"], np.flatnonzero(label != prediction)):
        raise RecordError("mistakes.index is not where label and prediction differ, ascending")
