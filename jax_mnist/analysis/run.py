"""Measures of one run, from its record: accuracy, errors, stability, confusions."""

from typing import NamedTuple

import numpy as np

from jax_mnist.runs.record import Record, has_diverged

LAST_EPOCHS = 5  # the epochs that `spread` covers
COLLAPSE = 90.0  # percentage points from 100 % down to chance with ten classes


class Summary(NamedTuple):
    """The validation accuracy of a run, as fractions in [0, 1]."""

    final_accuracy: float
    best_accuracy: float
    best_epoch: int  # the first epoch with the best accuracy, counted from 1


def summary(record: Record) -> Summary:
    """Returns the validation accuracy after the last epoch and after the best one."""
    accuracy = record["metrics"]["validation_accuracy"]
    best = int(np.argmax(accuracy))
    return Summary(float(accuracy[-1]), float(accuracy[best]), best + 1)


def confusion_matrix(record: Record) -> np.ndarray:
    """Counts the validation images by true class (rows) and predicted class (columns).

    Returns:
      int64 [classes, classes], which sums to the number of validation images.
    """
    classes = len(record["label_names"])
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (record["predictions"]["label"], record["predictions"]["prediction"]), 1)
    return counts


# Measures: functions from a record to one number, which `statistics` compares between variants. The
# instability of a run that diverged counts as `COLLAPSE`.


def final_accuracy(record: Record) -> float:
    """Returns the validation accuracy after the last epoch, in percent."""
    return 100 * float(record["metrics"]["validation_accuracy"][-1])


def errors(record: Record) -> int:
    """Returns the number of misclassified validation images after the last epoch."""
    return len(record["mistakes"]["index"])


def spread(record: Record) -> float:
    """Returns the standard deviation of the accuracy over `LAST_EPOCHS`, in percentage points."""
    if has_diverged(record):
        return COLLAPSE
    return 100 * float(record["metrics"]["validation_accuracy"][-LAST_EPOCHS:].std())


def largest_drop(record: Record) -> float:
    """Returns the largest fall of the accuracy from one epoch to the next, in percentage points."""
    if has_diverged(record):
        return COLLAPSE
    accuracies = record["metrics"]["validation_accuracy"]
    falls = accuracies[:-1] - accuracies[1:]  # not -np.diff, whose largest value may be -0
    return 100 * float(np.max(falls, initial=0.0))


def seconds(record: Record) -> float:
    """Returns the duration of the whole run, in seconds."""
    return float(record["metrics"]["seconds"].sum())
