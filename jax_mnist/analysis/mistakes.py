"""Which images and which classes many runs get wrong."""

import collections
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jax_mnist.analysis.run import confusion_matrix
from jax_mnist.runs.record import Record


class HardImage(NamedTuple):
    """A validation image that runs get wrong.

    Attributes:
      image: uint8 [28, 28].
      label: The true class.
      prediction: The most frequent wrong class.
      votes: How many runs get it wrong.
      position: In the validation set.
      by_variant: For each variant that gets it wrong, how many runs predict which wrong class.
    """

    image: np.ndarray
    label: int
    prediction: int
    votes: int
    position: int
    by_variant: dict[str, dict[int, int]]


class Confusion(NamedTuple):
    """Two classes and the mean number of errors per run between them."""

    classes: tuple[int, int]
    both: float
    forward: float  # images of the first class taken for the second
    backward: float


def hardest(records: Sequence[Record], count: int) -> list[HardImage]:
    """Returns at most `count` validation images, those that most runs get wrong first.

    The records must share their validation images. Ties stay in the order of the data.
    """
    label = records[0]["predictions"]["label"]
    predictions = np.stack([record["predictions"]["prediction"] for record in records])
    wrong = predictions != label  # [runs, images]
    votes = wrong.sum(axis=0)
    images: dict[int, np.ndarray] = {}
    for mistakes in (record["mistakes"] for record in records):
        images |= zip(mistakes["index"].tolist(), mistakes["images"], strict=True)
    return [
        HardImage(
            image=images[i],
            label=int(label[i]),
            prediction=int(np.bincount(predictions[wrong[:, i], i]).argmax()),
            votes=int(votes[i]),
            position=i,
            by_variant=_by_variant(records, i),
        )
        for i in np.argsort(-votes, kind="stable")[:count].tolist()
        if votes[i]
    ]


def _by_variant(records: Sequence[Record], position: int) -> dict[str, dict[int, int]]:
    counts: dict[str, collections.Counter[int]] = {}
    for record in records:
        label, prediction = (
            int(record["predictions"][key][position]) for key in ("label", "prediction")
        )
        if prediction != label:
            counts.setdefault(record["name"], collections.Counter())[prediction] += 1
    return {name: dict(counter.most_common()) for name, counter in counts.items()}


def confusions(records: Sequence[Record]) -> list[Confusion]:
    """Returns every pair of classes that some run confuses, most errors first."""
    mean = np.mean([confusion_matrix(record) for record in records], axis=0)
    pairs = [
        Confusion((a, b), float(mean[a, b] + mean[b, a]), float(mean[a, b]), float(mean[b, a]))
        for a, b in itertools.combinations(range(len(mean)), 2)
    ]
    return sorted((p for p in pairs if p.both), key=lambda p: (-p.both, p.classes))
