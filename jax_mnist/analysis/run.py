"""What a record says about a run: its mistakes, its confusions, its accuracy. Pure functions."""

from typing import NamedTuple

import numpy as np

from jax_mnist.runs.history import Record


class Summary(NamedTuple):
    """The accuracy of a run; accuracies are fractions in [0, 1]."""

    final_accuracy: float
    best_accuracy: float
    best_epoch: int  # counted from 1; the first one with the best accuracy
    errors: int  # misclassified validation images after the last epoch
    examples: int  # all validation images


def confusion_matrix(record: Record) -> np.ndarray:
    """Counts the validation images by true class (rows) and predicted class (columns).

    Args:
        record: as `history.load` returns it.

    Returns:
        int64 [classes, classes]; it sums to the number of validation images.
    """
    classes = len(record["label_names"])
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (record["predictions"]["label"], record["predictions"]["prediction"]), 1)
    return counts


def summary(record: Record) -> Summary:
    """Returns the accuracy at the last epoch and at the best one, and the number of errors.

    Args:
        record: as `history.load` returns it.
    """
    accuracy = record["metrics"]["validation_accuracy"]
    best = int(np.argmax(accuracy))
    return Summary(
        final_accuracy=float(accuracy[-1]),
        best_accuracy=float(accuracy[best]),
        best_epoch=best + 1,
        errors=len(record["mistakes"]["index"]),
        examples=len(record["predictions"]["label"]),
    )
