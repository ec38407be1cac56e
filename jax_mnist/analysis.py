"""What a record says about a run: its mistakes, its confusions, its accuracy. Pure functions."""

from typing import NamedTuple

import numpy as np

from jax_mnist.history import Record


class Mistake(NamedTuple):
    """One misclassified validation image."""

    image: np.ndarray  # uint8 [28, 28]
    label: int  # the true class
    prediction: int  # the class the network named
    probability: float  # what it gave that wrong class, in [0, 1]
    position: int  # in the validation set


class Summary(NamedTuple):
    """The accuracy of a run; accuracies are fractions in [0, 1]."""

    final_accuracy: float
    best_accuracy: float
    best_epoch: int  # counted from 1; the first one with the best accuracy
    errors: int  # misclassified validation images after the last epoch
    examples: int  # all validation images


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


def has_diverged(record: Record) -> bool:
    """Whether training stopped at a loss that is not finite; the last epoch is the one it did.

    Args:
        record: as `history.load` returns it.
    """
    return not np.isfinite(record["metrics"]["train_loss"][-1])
