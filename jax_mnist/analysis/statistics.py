"""Statistics over seeds: records grouped by variant, intervals, paired differences.

A variant is all records of one name; each of its runs has another seed. The unit of every interval
and test is the seed: they cover the randomness of initialisation, data order and augmentation, but
not the choice of the validation images.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special

from jax_mnist.runs.record import Record, has_diverged

LEVEL = 0.05  # of significance; intervals are 95 %

Variants = Mapping[str, Mapping[int, Record]]  # records by name and by seed
Measure = Callable[[Record], float]


class Estimate(NamedTuple):
    """A mean, its 95 % interval, and the p-value of the hypothesis that the true mean is 0.

    If all values are equal, there is no interval: the ends are NaN, and p is 1.
    """

    mean: float
    low: float
    high: float
    p: float


def by_variant(records: Sequence[Record]) -> dict[str, dict[int, Record]]:
    """Groups records by name and, within a name, by ascending seed.

    Raises:
      ValueError: There are no records, two have the same name and seed, or they were validated on
        different images.
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


def without_diverged(variants: Variants) -> dict[str, dict[int, Record]]:
    """Drops the runs that diverged, and the variants that have no other runs."""
    kept = {
        name: {seed: run for seed, run in runs.items() if not has_diverged(run)}
        for name, runs in variants.items()
    }
    return {name: runs for name, runs in kept.items() if runs}


def mean_interval(values: Sequence[float] | np.ndarray, rounding: float = 0.0) -> Estimate:
    """Estimates the mean of `values [n]` by Student's t with `n - 1` degrees of freedom.

    Values count as equal if they differ by at most `rounding`. The test is two-sided.
    """
    values = np.asarray(values, np.float64)
    mean, freedom = float(values.mean()), len(values) - 1
    if not freedom or np.ptp(values) <= rounding:
        return Estimate(mean, np.nan, np.nan, 1.0)
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    half = float(scipy.special.stdtrit(freedom, 1 - LEVEL / 2)) * error
    p = 2 * float(scipy.special.stdtr(freedom, -abs(mean) / error))
    return Estimate(mean, mean - half, mean + half, p)


def accuracy_interval(accuracies: Sequence[float]) -> Estimate:
    """`mean_interval` of accuracies in per cent, within 0 to 100."""
    estimate = mean_interval(accuracies)
    low, high = np.clip([estimate.low, estimate.high], 0, 100).tolist()
    return estimate._replace(low=low, high=high)


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Estimates the mean of `a - b`, both `[n]` over the same seeds, as `scipy.stats.ttest_rel`."""
    return mean_interval(np.subtract(a, b), rounding=1e-9 * np.abs(a).max())


def holm(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Corrects the p-values of estimates for their number.

    Holm, "A simple sequentially rejective multiple test procedure", 1979: the k-th smallest of n
    is multiplied by `n - k + 1`, is at most 1, and is at least the one before.
    """
    ascending = sorted(estimates, key=lambda name: estimates[name].p)
    factors = np.arange(len(ascending), 0, -1)
    p = np.minimum(1.0, factors * [estimates[name].p for name in ascending])
    corrected = dict(zip(ascending, np.maximum.accumulate(p).tolist(), strict=True))
    return {name: estimate._replace(p=corrected[name]) for name, estimate in estimates.items()}


def differences(
    variants: Variants, measure: Measure, names: Iterable[str], reference: str
) -> dict[str, Estimate]:
    """Subtracts a reference from other variants, paired over the seeds that both have.

    Variants that have no such seed are left out; the p-values are corrected for the number of the
    others.
    """
    pairs = {name: paired(variants, measure, name, reference) for name in names}
    return holm({name: paired_difference(a, b) for name, (a, b) in pairs.items() if a})


def mean_difference(
    variants: Variants, measure: Measure, pairs: Sequence[tuple[str, str]]
) -> Estimate | None:
    """Estimates the mean of `a - b` over pairs `(a, b)` of variants, paired by seed.

    Only seeds that all of these variants have are used; None if there are none.
    """
    seeds = set.intersection(*(set(variants[name]) for pair in pairs for name in pair))
    if not seeds:
        return None
    a, b = (
        [
            float(np.mean([measure(variants[pair[side]][seed]) for pair in pairs]))
            for seed in sorted(seeds)
        ]
        for side in (0, 1)
    )
    return paired_difference(a, b)


def paired(
    variants: Variants, measure: Measure, name: str, reference: str
) -> tuple[list[float], list[float]]:
    """A measure of a variant and of a reference, over the seeds that both have, ascending."""
    runs, theirs = variants.get(name, {}), variants.get(reference, {})
    seeds = sorted(runs.keys() & theirs.keys())
    return [measure(runs[seed]) for seed in seeds], [measure(theirs[seed]) for seed in seeds]
