"""How many seeds a comparison needs: against simulated studies, tables and SciPy."""

import numpy as np
import pytest
import scipy.stats
from records import of_variants

from jax_mnist.analysis import planning, statistics


def test_the_power_is_how_often_simulated_studies_show_the_difference():
    rng = np.random.default_rng(0)
    for effect, deviation, seeds, level in ((0.05, 0.06, 10, 0.05), (0.05, 0.04, 5, 0.01)):
        values = rng.normal(effect, deviation, (20_000, seeds))
        shown = (scipy.stats.ttest_1samp(values, 0, axis=1).pvalue < level).mean()
        assert planning.power(effect, deviation, seeds, level) == pytest.approx(shown, abs=0.015)
    assert planning.power(0, 1, 10) == pytest.approx(0.05)


def test_the_seeds_of_published_tables():
    # G*Power and Cohen's tables: 34 pairs for an effect of half a deviation, 15 for 0.8.
    assert planning.seeds_needed(0.5, 1) == 34
    assert planning.seeds_needed(0.08, 0.1) == 15
    assert planning.seeds_needed(50, 1) == 2
    assert planning.seeds_needed(1e-6, 1) == planning.MAX_SEEDS


def test_the_smallest_effect_is_the_one_for_which_the_seeds_suffice():
    for seeds, level in ((2, 0.05 / 7), (10, 0.05 / 7), (200, 0.05)):
        effect = planning.smallest_effect(0.3, seeds, level)
        assert planning.power(effect, 0.3, seeds, level) == pytest.approx(0.8)
        assert planning.seeds_needed(1.0001 * effect, 0.3, level) == seeds


def test_a_plan_is_made_of_the_differences_to_the_baseline():
    luck = np.array([1e-4, -2e-4, 3e-4, 0])
    finals = {"bn": 0.99 + luck, "l1": 0.991 + 3 * luck, "l2": 0.992 - luck, "same": 0.99 + luck}
    variants = statistics.by_variant(of_variants(finals))
    plans = planning.plan(variants, "bn", 0.05)
    assert list(plans) == ["l1", "l2"]  # the fourth has no spread
    deviation = 100 * 2 * luck.std(ddof=1)
    assert plans["l1"] == pytest.approx(
        planning.Plan(
            deviation,
            planning.seeds_needed(0.05, deviation),
            planning.seeds_needed(0.05, deviation, 0.05 / 3),
            planning.smallest_effect(deviation, 4, 0.05 / 3),
        )
    )
    assert plans["l1"].alone < plans["l1"].corrected
