"""Statistics over runs: against SciPy, by hand, and on simulated studies of known truth."""

import numpy as np
import pytest
import scipy.stats
from records import make_record

from jax_mnist.analysis import statistics
from jax_mnist.analysis.statistics import Difference


def of_variants(accuracies):
    """Records from a dict of name to final accuracies, one per seed."""
    return [
        make_record(name, seed=seed, accuracies=(0.9, value))
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def test_the_mean_and_interval_of_a_worked_example():
    # Mean 5, standard error sqrt(10 / 4 / 5) = 0.7071; t of 4 degrees at 97.5 % is 2.7764.
    interval = statistics.mean_interval([3, 4, 5, 6, 7])
    np.testing.assert_allclose(interval, (5, 5 - 1.96324, 5 + 1.96324), atol=1e-4)


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


def test_holm_by_a_worked_example():
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, then 1 x 0.04, which may not be below the one before.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.9]) == [1, 1]
    assert statistics.holm([]) == []


def test_intervals_cover_the_truth_as_often_as_they_say():
    """2,000 studies of histories of 5 seeds, with luck that variants share and their own."""
    rng = np.random.default_rng(0)
    studies, seeds, better = 2000, 5, 0.07
    shared = rng.normal(0, 0.05, (studies, seeds))
    base, other = 99.4 + shared + rng.normal(0, 0.03, (2, studies, seeds))
    other += better
    means, effects = [], []
    for accuracies in zip(base / 100, other / 100, strict=True):
        variants = statistics.by_variant(
            of_variants(dict(zip(("bn", "l2"), accuracies, strict=True)))
        )
        finals = [statistics.final_accuracy(run) for run in variants["bn"].values()]
        means.append(statistics.mean_interval(finals))
        effects += statistics.differences(
            variants, statistics.final_accuracy, [("l2", "bn")]
        ).values()
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
    false_alarms = np.mean([min(statistics.holm(p)) < 0.05 for p in raw])
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


def test_measures_of_a_run():
    record = make_record(accuracies=(0.5, 0.9, 0.8, 0.85, 0.95, 0.9), mistakes=4)
    assert statistics.final_accuracy(record) == 90
    assert statistics.errors(record) == 4
    assert statistics.largest_drop(record) == pytest.approx(10)
    assert statistics.spread(record) == pytest.approx(100 * np.std([0.9, 0.8, 0.85, 0.95, 0.9]))
    assert statistics.seconds(record) == 6 * 12.5
    assert statistics.largest_drop(make_record(accuracies=(0.8, 0.9))) == 0
    assert statistics.largest_drop(make_record(accuracies=(0.8,))) == 0


def test_differences_pair_the_seeds_that_both_have():
    records = of_variants({"bn": (0.90, 0.92, 0.91), "l2": (0.93, 0.94)})
    (found,) = statistics.differences(
        statistics.by_variant(records), statistics.final_accuracy, [("l2", "bn")]
    ).values()
    assert found.mean == pytest.approx(2.5)
    expected = scipy.stats.ttest_rel([93, 94], [90, 92])
    assert found.p == pytest.approx(expected.pvalue)
    strangers = statistics.by_variant([*records, make_record("a", 7)])
    found_too = statistics.differences(
        strangers, statistics.final_accuracy, [("a", "bn"), ("l2", "bn")]
    )
    assert found_too == {("l2", "bn"): found}


def diverged(name, seed, epochs=1):
    record = make_record(name, seed, accuracies=(0.9,) * (epochs - 1) + (0.098,))
    record["metrics"]["train_loss"][-1] = np.nan
    return record


def test_a_run_that_diverged_counts_as_a_collapse_and_is_not_sound():
    record = diverged("l2", 0)
    assert statistics.final_accuracy(record) == pytest.approx(9.8)
    assert statistics.largest_drop(record) == statistics.spread(record) == 90
    variants = statistics.by_variant([record, make_record("l2", 1), diverged("l1", 0)])
    assert {name: list(runs) for name, runs in statistics.sound(variants).items()} == {"l2": [1]}


def test_the_hardest_images_are_those_with_most_votes():
    records = [make_record(mistakes=m, seed=m) for m in (1, 2, 3)]  # 0; 0, 39; 0, 20, 39
    hardest = statistics.hardest(records, 2)
    assert [(image.position, image.votes) for image in hardest] == [(0, 3), (39, 2)]
    assert [(image.label, image.prediction) for image in hardest] == [(0, 2), (9, 1)]
    np.testing.assert_array_equal(hardest[0].image, records[0]["mistakes"]["images"][0])
    assert len(statistics.hardest(records, 25)) == 3
    assert statistics.hardest([make_record(mistakes=0)], 25) == []


def test_confusions_count_both_ways_for_a_mean_run():
    record = make_record(mistakes=40)  # every image of class c is called c + 2
    other = make_record(mistakes=0)
    found = statistics.confusions([record, other])
    assert len(found) == 10
    assert all(pair.both == 2 for pair in found)
    assert found[0] == ((0, 2), 2, 2, 0)
    assert ((0, 8), 2, 0, 2) in found
    assert statistics.confusions([other]) == []


def effect(mean, p):
    return Difference(mean, mean - 1, mean + 1, p)


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ([effect(0.1, 0.01), effect(0.2, 0.04)], "supported"),
        ([effect(0.1, 0.01), effect(0.2, 0.06)], "undecided"),
        ([effect(0.1, 0.01), effect(-0.2, 0.06)], "undecided"),
        ([effect(0.1, 0.01), effect(-0.2, 0.04)], "contradicted"),
    ],
)
def test_the_rule_of_verdicts(effects, verdict):
    assert statistics.verdict_of(effects) == verdict


@pytest.mark.parametrize(
    ("better", "verdict"),
    [
        ((5e-3, 6e-3, 5e-3, 5e-3), "supported"),
        ((-5e-3, -6e-3, -5e-3, -5e-3), "contradicted"),
        ((5e-3, -6e-3, 5e-3, -3e-3), "undecided"),
    ],
)
def test_a_claim_follows_the_numbers(better, verdict):
    l1 = np.array([0.98, 0.985, 0.981, 0.979])
    variants = statistics.by_variant(of_variants({"l1": l1, "l2": l1 + better}))
    claims = {c.claim: c for c in statistics.judge_claims(variants)}
    claim = claims["L2 is better than L1"]
    assert claim.verdict == verdict
    assert claim.rival == "l1"
    assert claim.effect.mean == pytest.approx(100 * np.mean(better))
    assert claims["GBN alone is better than all but L2"].verdict == "not in this study"
    assert claims["GBN alone is better than all but L2"].effect is None


def eight(seeds=range(5), but=(), **finals):
    """Records of the original's variants, all alike but for luck and what `finals` says."""
    rng = np.random.default_rng(0)
    return [
        make_record(name, seed, accuracies=(0.992, finals.get(name, 0.98) + rng.normal(0, 1e-4)))
        for name in statistics.ORIGINAL
        for seed in seeds
        if name not in but
    ]


def claims_of(records):
    return {c.claim: c for c in statistics.judge_claims(statistics.by_variant(records))}


def test_instability_is_not_judged_by_survivors():
    claim = "L1 and L2 together are unstable"
    assert claims_of(eight())[claim].verdict == "undecided"
    for seeds, verdict in ((range(2), "undecided"), (range(5), "supported")):
        lost = [diverged("l1_l2", seed, epochs=1 + seed % 2) for seed in seeds]
        kept = [r for r in eight() if not (r["name"] == "l1_l2" and r["seed"] in seeds)]
        found = claims_of([*kept, *lost])
        assert found[claim].effect.mean == pytest.approx(88.8 * len(seeds) / 5, abs=0.1)
        assert found[claim].verdict == verdict
        assert all(verdict.effect is not None for verdict in found.values())


def test_the_best_of_eight_is_judged_among_all_eight():
    claim = "L2 has the highest accuracy"
    assert claims_of(eight(l2=0.985))[claim].verdict == "supported"
    assert claims_of(eight(l2=0.985, gbn_l1_l2=0.99))[claim].verdict == "contradicted"
    for missing in set(statistics.ORIGINAL) - {"l2"}:
        assert claims_of(eight(l2=0.985, but=[missing]))[claim].verdict == "not in this study"
    strangers = [r for r in eight() if r["name"] != "bn"] + [make_record("bn", 77)]
    assert claims_of(strangers)[claim].verdict == "not in this study"


def test_less_spread_is_more_stable_and_the_closest_rival_is_shown():
    def run(name, seed, last):
        return make_record(name, seed, accuracies=(0.9, 0.98, 0.98 + last, 0.98, 0.98 + last))

    sizes = dict.fromkeys(statistics.ORIGINAL, 8e-3) | {"l2": 1e-3, "gbn": 5e-3}
    records = [
        run(name, seed, size + 1e-4 * seed * number)
        for seed in range(5)
        for number, (name, size) in enumerate(sizes.items())
    ]
    claim = claims_of(records)["L2 is the most stable"]
    assert claim.verdict == "supported"
    assert claim.rival == "gbn"
    assert claim.effect.low < claim.effect.mean < claim.effect.high
    assert claim.effect.mean > 0


def test_a_contradicted_claim_shows_what_contradicts_it():
    rough = np.array([9e-3, -8e-3, 5e-3, -1e-3, 2e-3])  # better on average, by luck perhaps
    finals = {"l1_l2": np.full(5, 0.98), "bn": 0.982 + rough, "gbn": np.full(5, 0.981)}
    others = [name for name in statistics.ORIGINAL if name not in finals]
    finals |= {name: np.full(5, 0.97) for name in others} | {"l2": np.full(5, 0.98)}
    luck = np.arange(5) * 1e-5
    records = of_variants({n: v + luck * i for i, (n, v) in enumerate(finals.items())})
    claim = claims_of(records)["L2 has the highest accuracy"]
    assert claim.verdict == "contradicted"
    assert claim.rival == "gbn" and claim.effect.p < 0.05


def confusing(seed, errors):
    """A run with so many errors of each kind: `{(true class, named class): count}`."""
    record = make_record("bn", seed, mistakes=0, examples=2000)
    predictions = record["predictions"]
    for (label, named), count in errors.items():
        right = (predictions["label"] == label) & (predictions["prediction"] == label)
        predictions["prediction"][np.flatnonzero(right)[:count]] = named
    index = np.flatnonzero(predictions["label"] != predictions["prediction"])
    record["mistakes"] = {
        "index": index.astype(np.int32), "images": np.zeros((len(index), 28, 28), np.uint8)
    }  # fmt: skip
    return record


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        ({(1, 7): 10, (7, 1): 10, (3, 5): 12}, "supported"),
        ({(1, 7): 20, (4, 9): 60, (3, 5): 12}, "supported"),  # the other one is no rival
        ({(1, 7): 20, (3, 5): 40}, "contradicted"),  # of 45 pairs, the second
        ({(1, 7): 20, (3, 5): 20}, "undecided"),
        ({}, "undecided"),
    ],
)
def test_what_is_confused_more_than_any_pair_that_is_not_named(errors, verdict):
    def run(seed):
        own = (0, 2, 1, 3)[seed]  # luck
        return confusing(seed, {k: v + own * (k == (1, 7)) for k, v in errors.items()})

    claims = claims_of([run(seed) for seed in range(4)])
    found = claims["1 and 7 are confused more than any pair not named"]
    assert found.verdict == verdict
    if errors:
        assert found.rival == "3 and 5"
        between = sum(n for pair, n in errors.items() if set(pair) == {1, 7})
        assert found.effect.mean == pytest.approx(between + 1.5 - errors[3, 5])
