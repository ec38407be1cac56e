"""What many records say together: intervals over seeds, differences between variants, claims.

A variant is the records of one name, a run one seed of it. The unit of every interval and test is
the seed: they cover the luck of initialisation, order and augmentation, not of the test images.

A run that diverged has its record too. In claims about variants it counts with the accuracy that it
came to, and with a spread and a drop of all that lies between 100 % and chance; `sound` leaves such
runs out.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from jax_mnist.analysis import run as analysis
from jax_mnist.runs import history
from jax_mnist.runs.history import Record

LEVEL = 0.05  # of significance; intervals are 95 %
LAST_EPOCHS = 5  # that the spread is measured over
COLLAPSE = 90.0  # percentage points between 100 % and the chance of ten classes

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

    The effect is the difference, in the claimed direction, to the closest rival; of a contradicted
    claim, to the rival that contradicts it most.
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


def sound(variants: Variants) -> dict[str, dict[int, Record]]:
    """The runs that did not diverge, and the variants that have any."""
    kept = {
        name: {seed: run for seed, run in runs.items() if not history.has_diverged(run)}
        for name, runs in variants.items()
    }
    return {name: runs for name, runs in kept.items() if runs}


# Measures: one number of a run.


def final_accuracy(record: Record) -> float:
    """Validation accuracy after the last epoch, in percent."""
    return 100 * float(record["metrics"]["validation_accuracy"][-1])


def errors(record: Record) -> float:
    """Misclassified validation images after the last epoch."""
    return float(len(record["mistakes"]["index"]))


def spread(record: Record) -> float:
    """Standard deviation of the validation accuracy over the last epochs, in percentage points.

    Of a run that diverged: `COLLAPSE`.
    """
    if history.has_diverged(record):
        return COLLAPSE
    return 100 * float(record["metrics"]["validation_accuracy"][-LAST_EPOCHS:].std())


def largest_drop(record: Record) -> float:
    """Largest fall of the validation accuracy from one epoch to the next, percentage points.

    Of a run that diverged: `COLLAPSE`.
    """
    if history.has_diverged(record):
        return COLLAPSE
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
    variants: Variants, measure: Measure, pairs: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], Difference]:
    """The first less the second of each pair of variants, over the seeds that both have.

    A pair without such a seed is left out. The p-values are corrected for the number of pairs that
    are not, see `holm`.
    """
    found = {}
    for first, second in pairs:
        if seeds := sorted(variants[first].keys() & variants[second].keys()):
            a, b = ([measure(variants[name][seed]) for seed in seeds] for name in (first, second))
            found[first, second] = paired_difference(a, b)
    return _corrected(found)


def _corrected(found: Mapping[Any, Difference]) -> dict[Any, Difference]:
    corrected = holm([difference.p for difference in found.values()])
    return {key: d._replace(p=p) for (key, d), p in zip(found.items(), corrected, strict=True)}


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


ORIGINAL = ("bn", "l1", "l2", "l1_l2", "gbn", "gbn_l1", "gbn_l2", "gbn_l1_l2")  # its variants


class _Claim(NamedTuple):
    text: str
    measure: Measure
    what: str
    unit: str
    sign: int  # 1 where the claim says that the subject has more
    subject: str
    rivals: tuple[str, ...]
    but: tuple[str, ...] = ()  # of the rivals


_CLAIMS = (
    _Claim("L2 has the highest accuracy", final_accuracy, "accuracy", "pp", 1, "l2", ORIGINAL),
    _Claim("L2 is the most stable", spread, "spread", "pp", -1, "l2", ORIGINAL),
    _Claim(
        *("GBN alone is better than all but L2", final_accuracy, "accuracy", "pp", 1),
        *("gbn", ORIGINAL, ("l2",)),
    ),
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

    A claim about a variant is judged by its paired differences to its rivals; that two classes are
    confused more than others, by the mean errors of a run between them, seed by seed (averaged over
    the variants), less those between every two classes that the original does not name. A
    claim gets the verdict `'not in this study'` where a variant that it is about is missing, or
    has no seed in common with the subject.

    Args:
      variants: with the runs that diverged, see the module.
    """
    verdicts = []
    for claim in _CLAIMS:
        rivals = [name for name in claim.rivals if name not in (claim.subject, *claim.but)]
        effects = {}
        if {claim.subject, *rivals, *claim.but} <= variants.keys():
            pairs = [(claim.subject, n) if claim.sign > 0 else (n, claim.subject) for n in rivals]
            found = differences(variants, claim.measure, pairs)
            if len(found) == len(pairs):
                effects = dict(zip(rivals, found.values(), strict=True))
        verdicts.append(_verdict(claim.text, claim.what, claim.unit, effects))
    between = _errors_between(sound(variants))
    others = between.keys() - set(CLOSE_CALLS)
    for pair in CLOSE_CALLS:
        effects = {}
        if pair in between:
            by_rival = {o: paired_difference(between[pair], between[o]) for o in sorted(others)}
            effects = {f"{a} and {b}": d for (a, b), d in _corrected(by_rival).items()}
        text = f"{pair[0]} and {pair[1]} are confused more than any pair not named"
        verdicts.append(_verdict(text, "errors between them", "images", effects))
    return verdicts


def _errors_between(variants: Variants) -> dict[tuple[int, int], list[float]]:
    """Of every two classes, the mean errors of a run between them, of each seed."""
    seeds = sorted({seed for runs in variants.values() for seed in runs})
    means = []
    for seed in seeds:
        runs = [runs[seed] for runs in variants.values() if seed in runs]
        mean = np.mean([analysis.confusion_matrix(run) for run in runs], axis=0)
        means.append(mean + mean.T)
    pairs = itertools.combinations(range(len(means[0])), 2) if means else ()
    return {(a, b): [float(mean[a, b]) for mean in means] for a, b in pairs}


def _verdict(claim: str, measure: str, unit: str, effects: Mapping[str, Difference]) -> Verdict:
    if not effects:
        return Verdict(claim, measure, unit, "", None, "not in this study")
    verdict = verdict_of(list(effects.values()))
    decisive = [n for n, d in effects.items() if verdict != "contradicted" or d.p < LEVEL]
    rival = min(decisive, key=lambda name: effects[name].mean)
    return Verdict(claim, measure, unit, rival, effects[rival], verdict)
