"""Statistics over runs: against SciPy, by hand, and on simulated studies of known truth."""

import numpy as np
import pytest
import scipy.stats
from records import diverged, make_record, of_variants

from jax_mnist.analysis import statistics
from jax_mnist.analysis.run import final_accuracy
from jax_mnist.analysis.statistics import Estimate


def test_the_mean_and_interval_of_a_worked_example():
    # Mean 5, standard error sqrt(10 / 4 / 5) = 0.7071; t of 4 degrees at 97.5 % is 2.7764.
    interval = statistics.mean_interval([3, 4, 5, 6, 7])
    np.testing.assert_allclose(interval[:3], (5, 5 - 1.96324, 5 + 1.96324), atol=1e-4)


def test_the_paired_difference_is_scipys_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7))
    expected = scipy.stats.ttest_rel(a, b)
    low, high = expected.confidence_interval(0.95)
    found = statistics.paired_difference(a, b)
    np.testing.assert_allclose(found, ((a - b).mean(), low, high, expected.pvalue))
    # And that is the t-test of the differences against zero.
    assert found.p == pytest.approx(scipy.stats.ttest_1samp(a - b, 0).pvalue)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("a", "b", "mean"),
    [([99.5], [99.4], 0.1), ([99.5, 99.6], [99.4, 99.5], 0.1), ([1, 2, 3], [1, 2, 3], 0)],
)
def test_differences_without_spread_decide_nothing(a, b, mean):
    found = statistics.paired_difference(a, b)
    assert found.mean == pytest.approx(mean)
    assert np.isnan(found.low) and np.isnan(found.high)
    assert found.p == 1


def holm(*p_values):
    estimates = {str(i): Estimate(0, -1, 1, p) for i, p in enumerate(p_values)}
    found = statistics.holm(estimates)
    assert list(found) == list(estimates)
    return [estimate.p for estimate in found.values()]


def test_holm_by_a_worked_example():
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, then 1 x 0.04, which may not be below the one before.
    assert holm(0.01, 0.04, 0.03, 0.005) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(0.6, 0.9) == [1, 1]
    assert holm() == []


def test_intervals_cover_the_truth_as_often_as_they_say():
    """2,000 studies of 5 seeds, with luck that variants share and their own."""
    rng = np.random.default_rng(0)
    studies, seeds, better = 2000, 5, 0.07
    shared = rng.normal(0, 0.05, (studies, seeds))
    base, other = 99.4 + shared + rng.normal(0, 0.03, (2, studies, seeds))
    other += better
    means = [statistics.mean_interval(values) for values in base]
    effects = [statistics.paired_difference(*pair) for pair in zip(other, base, strict=True)]
    # Four standard errors of a share of 95 % in 2,000 are 2 %.
    assert np.mean([i.low <= 99.4 <= i.high for i in means]) == pytest.approx(0.95, abs=0.02)
    assert np.mean([d.low <= better <= d.high for d in effects]) == pytest.approx(0.95, abs=0.02)


def test_without_a_difference_a_study_seldom_finds_one():
    """Of seven variants that do what the eighth does, any is called different in 5 % at most."""
    rng = np.random.default_rng(0)
    studies, seeds = 1000, 5
    accuracies = rng.normal(99.4, 0.05, (studies, 8, seeds))
    raw = [
        [statistics.paired_difference(variant, study[0]).p for variant in study[1:]]
        for study in accuracies
    ]
    false_alarms = np.mean([min(holm(*p)) < 0.05 for p in raw])
    assert 0.005 < false_alarms < 0.05 + 0.021  # three standard errors
    assert np.mean([min(p) < 0.05 for p in raw]) > 0.15  # what the correction is for


def test_records_are_sorted_into_variants_and_seeds():
    records = [make_record("b", 1), make_record("a", 2), make_record("b", 0)]
    variants = statistics.by_variant(records)
    assert {name: list(runs) for name, runs in variants.items()} == {"b": [0, 1], "a": [2]}
    assert variants["b"][1] is records[0]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no records"),
        ([make_record("a", 1), make_record("a", 1)], "two records are of 'a', seed 1"),
        ([make_record("a"), make_record("b", examples=30)], "validated on other images"),
    ],
)
def test_records_that_cannot_be_compared_are_refused(records, message):
    with pytest.raises(ValueError, match=message):
        statistics.by_variant(records)


def test_differences_pair_the_seeds_that_both_have():
    records = of_variants({"bn": (0.90, 0.92, 0.91), "l2": (0.93, 0.94)})
    (found,) = statistics.differences(
        statistics.by_variant(records), final_accuracy, ["l2"], "bn"
    ).values()
    assert found.mean == pytest.approx(2.5)
    expected = scipy.stats.ttest_rel([93, 94], [90, 92])
    assert found.p == pytest.approx(expected.pvalue)
    strangers = statistics.by_variant([*records, make_record("a", 7)])
    found_too = statistics.differences(strangers, final_accuracy, ["a", "absent", "l2"], "bn")
    assert found_too == {"l2": found}
    assert statistics.differences(strangers, final_accuracy, ["l2"], "absent") == {}


def test_runs_that_diverged_can_be_left_out():
    records = [diverged("l2", 0), make_record("l2", 1), diverged("l1", 0)]
    kept = statistics.without_diverged(statistics.by_variant(records))
    assert {name: list(runs) for name, runs in kept.items()} == {"l2": [1]}
