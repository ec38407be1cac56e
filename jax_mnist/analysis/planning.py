"""How many seeds a paired comparison needs, planned from a study at hand."""

import bisect
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special

from jax_mnist.analysis import run, statistics
from jax_mnist.analysis.statistics import LEVEL, Variants

POWER = 0.8
MAX_SEEDS = 100_000
MIN_SEEDS = 3  # fewer say next to nothing of a standard deviation


class Plan(NamedTuple):
    """What the comparison of a variant with the baseline needs.

    Attributes:
      deviation: The standard deviation over seeds of their paired difference.
      alone: The fewest seeds that show the planned difference with a power of `POWER`, at most
        `MAX_SEEDS`, if this is the only comparison.
      corrected: The same at the strictest level of Holm's correction, that for the smallest of the
        p-values of all variants.
      shown: The difference that the seeds of the study at hand show with that power at that level.
    """

    deviation: float
    alone: int
    corrected: int
    shown: float


def power(effect: float, deviation: float, seeds: int, level: float = LEVEL) -> float:
    """The probability that a two-sided paired t-test shows a difference.

    If the differences are normal, the square of the statistic has the noncentral F distribution
    (Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988).

    Args:
      effect: The true mean of the differences.
      deviation: Their standard deviation, above 0, in the same unit.
      seeds: How many there are, at least 2.
      level: Of significance.
    """
    freedom, noncentrality = seeds - 1, seeds * (effect / deviation) ** 2
    critical = scipy.special.stdtrit(freedom, 1 - level / 2) ** 2
    return 1 - float(scipy.special.ncfdtr(1, freedom, noncentrality, critical))


def seeds_needed(effect: float, deviation: float, level: float = LEVEL) -> int:
    """The fewest seeds, at most `MAX_SEEDS`, that show a difference with a power of `POWER`."""
    seeds = range(2, MAX_SEEDS)
    return seeds.start + bisect.bisect_left(
        seeds, POWER, key=lambda n: power(effect, deviation, n, level)
    )


def smallest_effect(deviation: float, seeds: int, level: float = LEVEL) -> float:
    """The difference that so many seeds show with a power of `POWER`."""
    high = 10 * scipy.special.stdtrit(seeds - 1, 1 - level / 2)  # more than enough, in deviations
    effect = scipy.optimize.brentq(lambda e: power(e, 1, seeds, level) - POWER, 0, high)
    return deviation * float(effect)


def plan(variants: Variants, baseline: str, effect: float) -> dict[str, Plan]:
    """Plans the comparison of every other variant with the baseline in accuracy.

    Args:
      variants: The runs of the study at hand, without those that diverged.
      baseline: The name of the baseline.
      effect: The difference to show, above 0, in percentage points.

    Returns:
      The plan of each variant that has at least `MIN_SEEDS` differences from the baseline, which
      are not all equal.
    """
    differences = {
        name: np.subtract(*statistics.paired(variants, run.final_accuracy, name, baseline))
        for name in variants
        if name != baseline
    }
    compared = sum(len(values) > 0 for values in differences.values())
    plans = {}
    for name, values in differences.items():
        if len(values) < MIN_SEEDS or np.ptp(values) <= 1e-9:
            continue
        deviation, level = float(np.std(values, ddof=1)), LEVEL / compared
        plans[name] = Plan(
            deviation=deviation,
            alone=seeds_needed(effect, deviation),
            corrected=seeds_needed(effect, deviation, level),
            shown=smallest_effect(deviation, len(values), level),
        )
    return plans
