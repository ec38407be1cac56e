"""A study as one table: a row for each run, with the columns of `results.csv`.

Everything that is said about a study is computed from this table, whether its runs were just
trained or were read from a file:

    import pandas as pd
    from jax_mnist.analysis import table

    runs = pd.read_csv("docs/study/results.csv")
    table.accuracies(runs)  # of each variant the mean and its 95 % interval
    wide = table.by_seed(runs)  # the accuracies, seeds by variants
    table.differences(wide, "bn")  # paired by seed, with p-values after Holm's correction

The unit of every interval and test is the seed: they cover the randomness of initialisation, data
order and augmentation, but not the choice of the validation images. An estimate has the columns
`mean`, `low` and `high`, the ends of its 95 % interval, and `p`, the p-value of the hypothesis that
the true mean is 0.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.optimize
import scipy.special
import scipy.stats

from jax_mnist.runs.record import Record, has_diverged

LEVEL = 0.05  # of significance; intervals are 95 %
LAST_EPOCHS = 5  # the epochs that `spread_pp` covers
COLLAPSE = 90.0  # `spread_pp` and `largest_drop_pp` of a run that diverged: from 100 % to chance
MIN_SEEDS = 3  # fewer say next to nothing of a standard deviation

_ESTIMATE = ("mean", "low", "high", "p")


# From records to tables.


def of_records(records: Sequence[Record]) -> pd.DataFrame:
    """The table of a study: its variants in the order of the records, their seeds ascending.

    `accuracy_percent`, `loss` and `errors` are of the validation images after the last epoch,
    `best_accuracy_percent` is that after `best_epoch`; `spread_pp` is the standard deviation of the
    accuracy over the last 5 epochs, `largest_drop_pp` its largest fall from one epoch to the next;
    `diverged` is 1 if the last loss is not finite; `seconds` are those of the whole run.

    Raises:
      ValueError: There are no records, two are of one variant and seed, or they were validated on
        different images.
    """
    if not records:
        raise ValueError("no records to compare")
    labels = records[0]["predictions"]["label"]
    for record in records:
        if not np.array_equal(record["predictions"]["label"], labels):
            raise ValueError(f"{record['name']!r} was validated on other images than the first")
    runs = pd.DataFrame(map(_row, records))
    for run in runs[runs.duplicated(["variant", "seed"])].itertuples():
        raise ValueError(f"two records are of {run.variant!r}, seed {run.seed}")
    order = np.lexsort([runs.seed, pd.factorize(runs.variant)[0]])
    return runs.iloc[order].reset_index(drop=True)


def _row(record: Record) -> dict[str, Any]:
    metrics, diverged = record["metrics"], has_diverged(record)
    percent = 100 * metrics["validation_accuracy"]
    falls = percent[:-1] - percent[1:]  # not -np.diff, whose largest value may be -0
    row = {
        "variant": record["name"],
        "seed": record["seed"],
        "accuracy_percent": percent[-1],
        "loss": metrics["validation_loss"][-1],
        "errors": len(record["mistakes"]["index"]),
        "best_accuracy_percent": percent.max(),
        "best_epoch": 1 + int(percent.argmax()),
        "spread_pp": COLLAPSE if diverged else percent[-LAST_EPOCHS:].std(),
        "largest_drop_pp": COLLAPSE if diverged else np.max(falls, initial=0.0),
        "diverged": int(diverged),
        "seconds": round(float(metrics["seconds"].sum()), 1),
    }
    return {key: float(f"{v:.6g}") if isinstance(v, np.floating) else v for key, v in row.items()}


def epochs(records: Sequence[Record]) -> pd.DataFrame:
    """A row for each epoch of each run: `variant`, `seed`, `epoch` and every metric of a record.

    Accuracies are fractions here, as in the records. With pandas, the mean curve of each variant
    is `epochs.groupby(["variant", "epoch"]).validation_accuracy.mean()`.
    """
    tables = {(r["name"], r["seed"]): pd.DataFrame(r["metrics"]) for r in records}
    epochs = pd.concat(tables, names=["variant", "seed", "epoch"]).reset_index()
    return epochs.assign(epoch=epochs.epoch + 1)


def to_csv(table: pd.DataFrame) -> str:
    """A table of `of_records` or `epochs` as CSV, which `pd.read_csv` reads.

    A name that a spreadsheet could take for a formula begins with an apostrophe.
    """
    formula = table.variant.str.match(r"[=+\-@\t\r]")
    columns = {"variant": table.variant.where(~formula, "'" + table.variant)}
    if "epoch" not in table:
        columns["seconds"] = table.seconds.map("{:.1f}".format)
    return table.assign(**columns).to_csv(
        index=False, float_format="%.6g", na_rep="nan", lineterminator="\n"
    )


# What follows from a table.


def estimate(values: Sequence[float] | np.ndarray | pd.Series) -> dict[str, float]:
    """The mean of `values [n]`, its 95 % interval by Student's t, and its two-sided p-value.

    If all values are equal but for rounding, there is no interval: its ends are NaN, and p is 1.
    """
    values, low, high, p = np.asarray(values, np.float64), np.nan, np.nan, 1.0
    if np.ptp(values) > 1e-9:
        test = scipy.stats.ttest_1samp(values, 0)
        low, high = test.confidence_interval(1 - LEVEL)
        p = test.pvalue
    return dict(zip(_ESTIMATE, map(float, (values.mean(), low, high, p)), strict=True))


def holm(p: Sequence[float] | pd.Series) -> np.ndarray:
    """Corrects p-values for their number.

    Holm, "A simple sequentially rejective multiple test procedure", 1979: the k-th smallest of n
    is multiplied by `n - k + 1`, is at most 1, and is at least the one before.
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(len(p), 0, -1)))
    return corrected


def by_seed(
    runs: pd.DataFrame, column: str = "accuracy_percent", diverged: bool = False
) -> pd.DataFrame:
    """One column of a table, with a row for each seed and a column for each variant.

    A seed that a variant lacks is NaN; so is a run that diverged, unless `diverged` is true.
    Variants without any value are left out.
    """
    runs = runs if diverged else runs[runs.diverged == 0]
    wide = runs.pivot(index="seed", columns="variant", values=column)
    return wide[runs.variant.unique()]


def accuracies(runs: pd.DataFrame) -> pd.DataFrame:
    """The mean accuracy of each variant in per cent, of the runs that did not diverge.

    Returns:
      For each variant `mean`, and the ends `low` and `high` of its interval, within 0 to 100.
    """
    return _estimates(by_seed(runs)).drop(columns="p").clip(0, 100)


def differences(wide: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """The paired differences of all other variants to a baseline.

    Args:
      wide: A table of `by_seed`. A pair takes the seeds that both variants have; variants without
        such a seed are left out.
      baseline: One of its columns.

    Returns:
      For each other variant an estimate, whose p-value is corrected for their number (`holm`).
    """
    return _estimates(paired(wide, baseline), corrected=True)


def paired(wide: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """By seed, how much each other variant is above a baseline; see `differences`."""
    pairs = wide.drop(columns=baseline).sub(wide[baseline], axis="index")
    return pairs.dropna(axis="columns", how="all")


def effects(wide: pd.DataFrame, settings: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """What each setting does on average, in a study of all combinations of several settings.

    The effect of a setting is the mean difference over the pairs of variants that differ in it
    alone, by seed, over the seeds that all variants have.

    Args:
      wide: A table of `by_seed`.
      settings: The settings (columns) of each variant (rows). If the variants are not all
        combinations of two values of each, the result is empty.
      baseline: The variant with the values that an effect leads away from.

    Returns:
      For each setting an estimate, whose p-value is corrected for their number.
    """
    changed = settings != settings.loc[baseline]
    wide = wide.dropna()
    factorial = len(changed) == len(changed.drop_duplicates()) == 2 ** changed.shape[1] > 2
    complete = {*wide} == {*changed.index} and len(wide) > 0
    if not (factorial and complete and (settings.nunique() == 2).all()):
        return _estimates(pd.DataFrame(), corrected=True)
    names = changed.index
    effects = {
        field: wide[names[changed[field]]].mean(axis=1) - wide[names[~changed[field]]].mean(axis=1)
        for field in changed
    }
    return _estimates(pd.DataFrame(effects), corrected=True)


def could_show(values: Sequence[float] | pd.Series, level: float, power: float = 0.8) -> float:
    """The true mean that as many seeds show with a probability of `power`.

    If the values are normal, the square of the statistic of the two-sided t-test has the
    noncentral F distribution (Cohen, "Statistical Power Analysis for the Behavioral Sciences").

    Args:
      values: The differences of the seeds at hand, from which the standard deviation is estimated;
        NaN is left out.
      level: Of significance. Holm's correction for n comparisons asks `LEVEL / n` of the smallest.
      power: The probability.

    Returns:
      The mean in the unit of the values; NaN if there are fewer than `MIN_SEEDS`, or all are equal.
    """
    values = pd.Series(values).dropna()
    number = len(values)
    if number < MIN_SEEDS or np.ptp(values) <= 1e-9:
        return np.nan
    critical = scipy.special.stdtrit(number - 1, 1 - level / 2)

    def missing(effect: float) -> float:  # of the power, for a mean in standard deviations
        shown = 1 - scipy.special.ncfdtr(1, number - 1, number * effect**2, critical**2)
        return shown - power

    return float(np.std(values, ddof=1) * scipy.optimize.brentq(missing, 0, 10 * critical))


def ranking(runs: pd.DataFrame) -> pd.DataFrame:
    """Ranks the combinations of a sweep by their mean accuracy.

    A combination of which a run diverged is not ranked: it comes last and has no numbers.

    Returns:
      For each combination `seeds`, `diverged`, `accuracy_percent`, and its interval `low` to
      `high`. Equal accuracies have no interval; of fewer than `MIN_SEEDS` seeds it reaches from the
      lowest to the highest accuracy.
    """
    groups = runs.rename(columns={"variant": "combination"}).groupby("combination", sort=False)
    ranked = groups.agg(seeds=("seed", "size"), diverged=("diverged", "sum"))
    ranked = ranked.join(accuracies(runs).rename(columns={"mean": "accuracy_percent"}))
    ends = groups.accuracy_percent.agg(["min", "max"])
    few = ranked.seeds < MIN_SEEDS
    ranked.loc[few, ["low", "high"]] = ends[few].to_numpy()
    ranked.loc[ranked.diverged > 0, ["accuracy_percent", "low", "high"]] = np.nan
    return ranked.sort_values("accuracy_percent", ascending=False, kind="stable").round(4)


def _estimates(wide: pd.DataFrame, corrected: bool = False) -> pd.DataFrame:
    rows = [estimate(wide[name].dropna()) for name in wide]
    estimates = pd.DataFrame(rows, [*wide], _ESTIMATE, dtype=float)
    return estimates.assign(p=holm(estimates.p)) if corrected else estimates
