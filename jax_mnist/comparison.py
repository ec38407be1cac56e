"""What many records say together: intervals over seeds, differences between variants, claims.

A variant is the records of one name, a run one seed of it. The unit of every interval and test is
the seed: they cover the luck of initialisation, order and augmentation, not of the test images.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from jax_mnist import analysis
from jax_mnist.history import Record

LEVEL = 0.05  # of significance; intervals are 95 %
LAST_EPOCHS = 5  # that the spread is measured over

Variants = Mapping[str, Mapping[int, Record]]
Measure = Callable[[Record], float]


class Interval(NamedTuple):
    """A mean and its 95 % interval; the ends are NaN where one value, or no spread, gives none."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """A mean paired difference, its 95 % interval (NaN as in `Interval`) and its p-value."""

    mean: float
    low: float
    high: float
    p: float


class HardImage(NamedTuple):
    """A validation image that runs get wrong."""

    image: np.ndarray  # uint8 [28, 28]
    label: int  # the true class
    prediction: int  # the wrong class that most of them name
    votes: int  # how many runs get it wrong
    position: int  # in the validation set


class Confusion(NamedTuple):
    """Two classes taken for one another: mean errors of a run."""

    classes: tuple[int, int]
    both: float
    forward: float  # the first taken for the second
    backward: float


class Verdict(NamedTuple):
    """A claim and what the runs say of it.

    The effect is the difference, in the claimed direction, to the closest rival.
    """

    claim: str
    measure: str
    unit: str
    rival: str
    effect: Difference | None
    verdict: str


def by_variant(records: Sequence[Record]) -> dict[str, dict[int, Record]]:
    """Records by name and, within it, by seed.

    Raises:
      ValueError: there are none, two have the same name and seed, or they are not of the same
        validation images.
    """
    if not records:
        raise ValueError("no records to compare")
    labels = records[0]["predictions"]["label"]
    variants: dict[str, dict[int, Record]] = {}
    for record in records:
        runs = variants.setdefault(record["name"], {})
        if record["seed"] in runs:
            raise ValueError(f"two records are of {record['name']!r}, seed {record['seed']}")
        if not np.array_equal(record["predictions"]["label"], labels):
            raise ValueError(f"{record['name']!r} was validated on other images than the first")
        runs[record["seed"]] = record
    return {name: dict(sorted(runs.items())) for name, runs in variants.items()}


# Measures: one number of a run.


def final_accuracy(record: Record) -> float:
    """Validation accuracy after the last epoch, in percent."""
    return 100 * float(record["metrics"]["validation_accuracy"][-1])


def errors(record: Record) -> float:
    """Misclassified validation images after the last epoch."""
    return float(len(record["mistakes"]["index"]))


def spread(record: Record) -> float:
    """Standard deviation of the validation accuracy over the last epochs, in percentage points."""
    return 100 * float(record["metrics"]["validation_accuracy"][-LAST_EPOCHS:].std())


def largest_drop(record: Record) -> float:
    """Largest fall of the validation accuracy from one epoch to the next, percentage points."""
    steps = np.diff(record["metrics"]["validation_accuracy"])
    return 100 * float(np.max(-steps, initial=0.0))


def seconds(record: Record) -> float:
    """Of the whole run."""
    return float(record["metrics"]["seconds"].sum())


# Statistics.


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The mean of `values [n]` and its 95 % interval by Student's t with `n - 1` degrees."""
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(mean, np.nan, np.nan)
    half = scipy.stats.sem(values) * scipy.stats.t.ppf(1 - LEVEL / 2, len(values) - 1)
    return Interval(mean, mean - float(half), mean + float(half))


def paired_difference(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray
) -> Difference:
    """The mean of `a - b`, both `[n]` over the same seeds, with the paired t-test.

    Interval and p-value are those of `scipy.stats.ttest_rel`, two-sided. One pair, or differences
    that are all alike, let the test say nothing: then there is no interval, and p is 1.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    mean = float((a - b).mean())
    if len(a) < 2 or np.ptp(a - b) <= 1e-9 * np.abs(a).max(initial=0):  # but for rounding
        return Difference(mean, np.nan, np.nan, 1.0)
    test = scipy.stats.ttest_rel(a, b)
    low, high = test.confidence_interval(1 - LEVEL)
    return Difference(mean, float(low), float(high), float(test.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number.

    Holm, "A simple sequentially rejective multiple test procedure", 1979: the k-th smallest of n
    is multiplied by `n - k + 1`, at most 1, and is at least the one before.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    factors = np.arange(len(p), 0, -1)
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, p[order] * factors))
    return corrected.tolist()


def differences(
    variants: Variants, measure: Measure, pairs: Sequence[tuple[str, str]]
) -> list[Difference]:
    """The first less the second of each pair of variants, over the seeds that both have.

    The p-values are corrected for the number of pairs, see `holm`.

    Raises:
      ValueError: two variants have no seed in common.
    """
    found = []
    for first, second in pairs:
        seeds = sorted(variants[first].keys() & variants[second].keys())
        if not seeds:
            raise ValueError(f"{first!r} and {second!r} have no seed in common")
        a, b = ([measure(variants[name][seed]) for seed in seeds] for name in (first, second))
        found.append(paired_difference(a, b))
    corrected = holm([difference.p for difference in found])
    return [d._replace(p=p) for d, p in zip(found, corrected, strict=True)]


# Images and classes.


def hardest(records: Sequence[Record], count: int) -> list[HardImage]:
    """The validation images that most runs get wrong; equal ones in the data's order.

    Args:
      records: of the same validation images.
      count: how many at most.
    """
    wrong: dict[int, list[int]] = {}
    images: dict[int, np.ndarray] = {}
    for record in records:
        prediction = record["predictions"]["prediction"]
        for index, image in zip(
            record["mistakes"]["index"].tolist(), record["mistakes"]["images"], strict=True
        ):
            wrong.setdefault(index, []).append(int(prediction[index]))
            images[index] = image
    order = sorted(wrong, key=lambda index: (-len(wrong[index]), index))[:count]
    label = records[0]["predictions"]["label"]
    return [
        HardImage(
            image=images[index],
            label=int(label[index]),
            prediction=int(np.bincount(wrong[index]).argmax()),
            votes=len(wrong[index]),
            position=index,
        )
        for index in order
    ]


def confusions(records: Sequence[Record]) -> list[Confusion]:
    """Every two classes that some run confuses, most errors first."""
    mean = np.mean([analysis.confusion_matrix(record) for record in records], axis=0)
    pairs = [
        Confusion((a, b), float(mean[a, b] + mean[b, a]), float(mean[a, b]), float(mean[b, a]))
        for a, b in itertools.combinations(range(len(mean)), 2)
    ]
    return sorted(
        (pair for pair in pairs if pair.both), key=lambda pair: (-pair.both, pair.classes)
    )


# Claims.


class _Claim(NamedTuple):
    text: str
    measure: Measure
    what: str
    unit: str
    sign: int  # 1 where the claim says that the subject has more
    subject: str
    rivals: tuple[str, ...] | None  # all others, if None
    but: tuple[str, ...] = ()


_CLAIMS = (
    _Claim("L2 has the highest accuracy", final_accuracy, "accuracy", "pp", 1, "l2", None),
    _Claim("L2 is the most stable", spread, "spread", "pp", -1, "l2", None),
    _Claim("GBN alone is next to L2", final_accuracy, "accuracy", "pp", 1, "gbn", None, ("l2",)),
    _Claim(
        *("L1 and L2 together are unstable", largest_drop, "largest drop", "pp", 1),
        *("l1_l2", ("bn", "l1", "l2")),
    ),
    _Claim("L2 is better than L1", final_accuracy, "accuracy", "pp", 1, "l2", ("l1",)),
)
CLOSE_CALLS = ((1, 7), (4, 9))


def verdict_of(effects: Sequence[Difference]) -> str:
    """The rule: what differences in the claimed direction, p-values corrected, say of a claim.

    `'supported'` if all of them are positive with p below 0.05, `'contradicted'` if one is negative
    with p below 0.05, else `'undecided'`.
    """
    if any(effect.mean < 0 and effect.p < LEVEL for effect in effects):
        return "contradicted"
    if effects and all(effect.mean > 0 and effect.p < LEVEL for effect in effects):
        return "supported"
    return "undecided"


def judge_claims(variants: Variants) -> list[Verdict]:
    """The claims of the original system, each by the rule of `verdict_of`.

    A claim about a variant is judged by its paired differences to its rivals; that two classes
    are a close call, by the mean errors of a run between them, seed by seed (averaged over the
    variants), less those between two classes on average. A claim on variants that are missing
    gets the verdict `'not in this study'`.
    """
    verdicts = []
    for claim in _CLAIMS:
        others = claim.rivals or tuple(n for n in variants if n not in (claim.subject, *claim.but))
        effects: dict[str, Difference] = {}
        if {claim.subject, *(claim.rivals or ()), *claim.but} <= variants.keys():
            pairs = [(claim.subject, n) if claim.sign > 0 else (n, claim.subject) for n in others]
            found = differences(variants, claim.measure, pairs)
            effects = dict(zip(others, found, strict=True))
        verdicts.append(_verdict(claim.text, claim.what, claim.unit, effects))
    seeds = sorted(set.intersection(*(set(runs) for runs in variants.values())))
    classes = len(next(iter(next(iter(variants.values())).values()))["label_names"])
    for a, b in CLOSE_CALLS:
        effects = {}
        if seeds and b < classes:
            matrices = [
                np.mean([analysis.confusion_matrix(runs[s]) for runs in variants.values()], axis=0)
                for s in seeds
            ]
            pair = [m[a, b] + m[b, a] for m in matrices]
            average = [(m.sum() - m.trace()) / (classes * (classes - 1) / 2) for m in matrices]
            effects = {"two classes on average": paired_difference(pair, average)}
        text = f"{a} and {b} are a close call"
        verdicts.append(_verdict(text, "errors between them", "images", effects))
    return verdicts


def _verdict(claim: str, measure: str, unit: str, effects: dict[str, Difference]) -> Verdict:
    if not effects:
        return Verdict(claim, measure, unit, "", None, "not in this study")
    rival = min(effects, key=lambda name: effects[name].mean)
    return Verdict(claim, measure, unit, rival, effects[rival], verdict_of(list(effects.values())))
