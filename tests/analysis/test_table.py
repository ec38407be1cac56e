"""The table of a study and its statistics: against SciPy, by hand, on studies of known truth."""

import io

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from records import diverged, make_record, of_variants, study

from jax_mnist.analysis import table
from jax_mnist.runs.record import METRICS


def test_a_row_has_the_measures_of_a_run():
    record = make_record("l2", 3, accuracies=(0.5, 0.9, 0.8, 0.85, 0.95, 0.9), mistakes=4)
    (row,) = table.of_records([record]).to_dict("records")
    assert row == {
        "variant": "l2", "seed": 3, "accuracy_percent": 90, "loss": 0.05, "errors": 4,
        "best_accuracy_percent": 95, "best_epoch": 5,
        "spread_pp": float(f"{100 * np.std([0.9, 0.8, 0.85, 0.95, 0.9]):.6g}"),
        "largest_drop_pp": 10, "diverged": 0, "seconds": 75,
    }  # fmt: skip
    for accuracies in ((0.8, 0.9), (0.8,), (0.8, 0.8)):
        (drop,) = table.of_records([make_record(accuracies=accuracies)]).largest_drop_pp
        assert str(drop) == "0.0"  # and not -0.0
    lost = table.of_records([diverged("l2", 0)]).iloc[0]
    assert (lost.accuracy_percent, lost.diverged) == (9.8, 1)
    assert lost.spread_pp == lost.largest_drop_pp == table.COLLAPSE == 90


def test_a_table_is_written_and_read_without_loss():
    records = [*study(names=("gbn", "bn")), diverged("bn", 7)]
    runs = table.of_records(records[::-1])
    assert [*runs.variant] == ["bn"] * 4 + ["gbn"] * 3 and [*runs.seed[:4]] == [0, 1, 2, 7]
    text = table.to_csv(runs)
    back = pd.read_csv(io.StringIO(text))
    pd.testing.assert_frame_equal(back, runs, check_exact=True, check_dtype=False)
    assert text.splitlines()[1] == "bn,0,98.6,0.05,6,98.6,3,3.92032,0,0,37.5"


def test_names_are_no_formulas_of_a_spreadsheet():
    records = [make_record("=1+1"), diverged('-a, "b"', 3)]
    for text in (table.to_csv(table.of_records(records)), table.to_csv(table.epochs(records))):
        lines = text.splitlines()
        assert lines[1].startswith("'=1+1,0,") and lines[-1].startswith('"\'-a, ""b""",3,')


def test_every_epoch_of_every_run_is_a_row():
    records = [*study(seeds=2, names=("bn", "l2")), diverged("l2", 5, epochs=2)]
    epochs = table.epochs(records)
    assert [*epochs] == ["variant", "seed", "epoch", *METRICS] and len(epochs) == 4 * 3 + 2
    one = epochs[(epochs.variant == "l2") & (epochs.seed == 1)]
    assert [*one.epoch] == [1, 2, 3]
    for metric in METRICS:
        np.testing.assert_array_equal(one[metric], records[3]["metrics"][metric])
    back = pd.read_csv(io.StringIO(table.to_csv(epochs)))
    pd.testing.assert_frame_equal(back, epochs, rtol=1e-5)


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
        table.of_records(records)


def test_the_mean_and_interval_of_a_worked_example():
    # Mean 5, standard error sqrt(10 / 4 / 5) = 0.7071; t of 4 degrees at 97.5 % is 2.7764.
    runs = table.of_records(of_variants({"a": [0.3, 0.4, 0.5, 0.6, 0.7], "b": [0.1, 0.99, 0.99]}))
    means = table.accuracies(runs)
    np.testing.assert_allclose(means.loc["a"], (50, 50 - 19.6324, 50 + 19.6324), atol=1e-3)
    assert means.loc["b", "low"] == 0 and means.loc["b", "high"] == 100


def test_differences_pair_the_seeds_that_both_have():
    records = of_variants({"bn": (0.90, 0.92, 0.91), "l2": (0.93, 0.94), "l1": (0.9, 0.95, 0.93)})
    runs = table.of_records([*records, make_record("a", 7), diverged("l2", 2), diverged("c", 0)])
    differences = table.differences(table.by_seed(runs), "bn")
    assert [*differences.index] == ["l2", "l1"]  # the others share no seed
    pairs = {"l2": ([93, 94], [90, 92]), "l1": ([90, 95, 93], [90, 92, 91])}
    tests = {name: scipy.stats.ttest_rel(a, b) for name, (a, b) in pairs.items()}
    for name, test in tests.items():
        ends = test.confidence_interval(0.95)
        np.testing.assert_allclose(differences.loc[name, ["low", "high"]], ends)
    np.testing.assert_allclose(differences["mean"], (2.5, 5 / 3))
    np.testing.assert_allclose(differences.p, table.holm([t.pvalue for t in tests.values()]))
    with_lost = table.by_seed(runs, diverged=True)
    assert with_lost.l2[2] == 9.8 and "c" in with_lost and "c" not in table.by_seed(runs)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("a", "b", "mean"),
    [([99.5], [99.4], 0.1), ([99.5, 99.6], [99.4, 99.5], 0.1), ([1, 2, 3], [1, 2, 3], 0)],
)
def test_differences_without_spread_decide_nothing(a, b, mean):
    estimate = table.estimate(np.subtract(a, b))
    assert estimate == pytest.approx(
        {"mean": mean, "low": np.nan, "high": np.nan, "p": 1}, nan_ok=True
    )


def test_holm_by_a_worked_example():
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, then 1 x 0.04, which may not be below the one before.
    assert table.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert table.holm([0.6, 0.9]).tolist() == [1, 1] and table.holm([]).tolist() == []


def test_without_a_difference_a_study_seldom_finds_one():
    """Of seven variants that do what the eighth does, any is called different in 5 % at most."""
    rng = np.random.default_rng(0)
    studies = map(pd.DataFrame, rng.normal(99.4, 0.05, (1000, 5, 8)))
    false_alarms = np.mean([table.differences(study, 0).p.min() < 0.05 for study in studies])
    assert 0.005 < false_alarms < 0.05 + 0.021  # three standard errors


def test_the_effect_of_a_setting_is_the_mean_over_the_pairs_that_differ_in_it_alone():
    settings = pd.DataFrame(
        {"norm": ["batch", "batch", "ghost", "ghost"], "l2": [0, 5e-4] * 2},
        ["00", "01", "10", "11"],
    )
    with_l2 = 97.8 + 0.03 * np.arange(3)
    wide = pd.DataFrame({"00": [98.0] * 3, "01": with_l2, "10": [98.1] * 3, "11": with_l2 + 0.14})
    effects = table.effects(wide, settings, "00")
    # By seed: -0.18, -0.15, -0.12 pp, with p = 0.013 as one of two.
    np.testing.assert_allclose(effects.loc["l2"], (-0.15, -0.2245, -0.0755, 0.0262), atol=1e-4)
    assert effects.loc["norm", "mean"] == pytest.approx(0.12)
    assert table.effects(wide, settings, "11")["mean"].tolist() == pytest.approx([-0.12, 0.15])
    for incomplete in (
        (wide.drop(columns="11"), settings),
        (wide.drop(columns="11"), settings.drop("11")),
        (wide[["00", "01"]], settings.loc[["00", "01"], ["l2"]]),
        (wide, settings.assign(l2=[0, 1, 0, 2])),
        (wide.assign(**{"11": np.nan}), settings),
    ):
        assert table.effects(*incomplete, "00").empty


def test_the_seeds_at_hand_show_a_difference_as_often_as_said():
    rng = np.random.default_rng(0)
    for seeds, level in ((10, 0.05), (5, 0.05 / 7)):
        values = rng.normal(0, 0.06, seeds)
        studies = rng.normal(table.could_show(values, level), values.std(ddof=1), (20_000, seeds))
        shown = (scipy.stats.ttest_1samp(studies, 0, axis=1).pvalue < level).mean()
        assert shown == pytest.approx(0.8, abs=0.015)
    # G*Power and Cohen's tables: 34 pairs for half a standard deviation.
    pairs = scipy.stats.zscore(rng.normal(size=34), ddof=1)
    assert table.could_show(pairs, 0.05) == pytest.approx(0.5, abs=0.01)
    for values in ([0.1, 0.2], [0.1, 0.1, 0.1]):
        assert np.isnan(table.could_show(values, 0.05))


def test_combinations_are_ranked_by_their_means_and_diverged_ones_come_last():
    finals = {"l2=1.0": [0.98] * 3, "l2=0.1": [0.99, 0.98, 0.97, 0.99], "l2=0.2": [0.9, 0.8]}
    ranked = table.ranking(table.of_records([diverged("l2=9.0", 0), *of_variants(finals)]))
    text = ranked.to_csv()
    assert text.splitlines() == [
        "combination,seeds,diverged,accuracy_percent,low,high",
        "l2=0.1,4,0,98.25,96.7265,99.7735",  # 3.182 standard errors
        "l2=1.0,3,0,98.0,,",  # equal accuracies have no interval
        "l2=0.2,2,0,85.0,80.0,90.0",  # the lowest and the highest
        "l2=9.0,1,1,,,",
    ]
