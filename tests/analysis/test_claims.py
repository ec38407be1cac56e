"""Claims are judged by their rule, on records of known truth."""

import numpy as np
import pytest
from records import diverged, make_record, of_variants

from jax_mnist.analysis import claims, statistics
from jax_mnist.analysis.statistics import Estimate


def effect(mean, p):
    return Estimate(mean, mean - 1, mean + 1, p)


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
    assert claims.verdict(effects) == verdict


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
    judged = {c.claim: c for c in claims.judge(variants)}
    claim = judged["L2 is better than L1"]
    assert claim.verdict == verdict
    assert claim.rival == "l1"
    assert claim.effect.mean == pytest.approx(100 * np.mean(better))
    assert judged["GBN alone is better than all but L2"].verdict == "not in this study"
    assert judged["GBN alone is better than all but L2"].effect is None


def eight(seeds=range(5), but=(), **finals):
    """Records of the original's variants, all alike but for luck and what `finals` says."""
    rng = np.random.default_rng(0)
    return [
        make_record(name, seed, accuracies=(0.992, finals.get(name, 0.98) + rng.normal(0, 1e-4)))
        for name in claims.ORIGINAL
        for seed in seeds
        if name not in but
    ]


def claims_of(records):
    return {c.claim: c for c in claims.judge(statistics.by_variant(records))}


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
    for missing in set(claims.ORIGINAL) - {"l2"}:
        assert claims_of(eight(l2=0.985, but=[missing]))[claim].verdict == "not in this study"
    strangers = [r for r in eight() if r["name"] != "bn"] + [make_record("bn", 77)]
    assert claims_of(strangers)[claim].verdict == "not in this study"


@pytest.mark.parametrize(
    ("finals", "verdict", "best"),
    [
        ({"mixup": 0.986, "cutout": 0.984}, "supported", "mixup"),
        ({"mixup": 0.984, "cutout": 0.983}, "contradicted", "mixup"),
        ({"mixup": 0.984, "cutout": 0.985}, "undecided", "cutout"),
        ({"mixup": 0.984, "cutout": 0.985, "longer": 0.99}, "undecided", "cutout"),
        ({"mixup": 0.984, "cutout": 0.985, "own_model": 0.99}, "undecided", "cutout"),
        ({"longer": 0.99, "own_model": 0.99, "without": 0.99}, None, None),
    ],
)
def test_whether_more_regularizers_help_is_judged_by_those_that_add_nothing_else(
    finals, verdict, best
):
    base = {"norm": "ghost", "l2": 5e-4, "dropout": 0.1}
    changes = {
        "gbn_l2": {},
        "mixup": {"mixup": 0.1, "tensorboard": True},
        "cutout": {"cutout": 4.0, "dropout_position": "max-pool"},
        "longer": {"mixup": 0.1, "epochs": 30},
        "own_model": {"mixup": 0.1, "model": "another"},
        "without": {"dropout": 0.0},
    }
    found = more_regularizers({"gbn_l2": 0.985} | finals, {n: base | c for n, c in changes.items()})
    assert (found.verdict if found else None) == verdict
    assert (found.measure if found else None) == (best and f"accuracy of {best}")


def more_regularizers(means, configs, noise=lambda name: 1e-4):
    rng = np.random.default_rng(0)
    finals = {name: mean + rng.normal(0, noise(name), 5) for name, mean in means.items()}
    records = of_variants(finals)
    for record in records:
        record["config"] = configs[record["name"]]
    return claims.judge_more_regularizers(statistics.by_variant(records))


def test_a_regularizer_that_is_shown_to_help_is_named_rather_than_a_lucky_one():
    means = {"gbn_l2": 0.985, "mixup": 0.986, "cutout": 0.988}
    configs = {"gbn_l2": {}, "mixup": {"mixup": 0.1}, "cutout": {"cutout": 4.0}}
    found = more_regularizers(means, configs, lambda name: 4e-3 if name == "cutout" else 1e-4)
    assert (found.verdict, found.measure) == ("supported", "accuracy of mixup")
    assert found.effect.p < 0.05


def test_less_spread_is_more_stable_and_the_closest_rival_is_shown():
    def run(name, seed, last):
        return make_record(name, seed, accuracies=(0.9, 0.98, 0.98 + last, 0.98, 0.98 + last))

    sizes = dict.fromkeys(claims.ORIGINAL, 8e-3) | {"l2": 1e-3, "gbn": 5e-3}
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
    others = [name for name in claims.ORIGINAL if name not in finals]
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

    judged = claims_of([run(seed) for seed in range(4)])
    found = judged["1 and 7 are confused more than any pair not named"]
    assert found.verdict == verdict
    if errors:
        assert found.rival == "3 and 5"
        between = sum(n for pair, n in errors.items() if set(pair) == {1, 7})
        assert found.effect.mean == pytest.approx(between + 1.5 - errors[3, 5])
