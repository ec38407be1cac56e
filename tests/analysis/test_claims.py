"""Claims are judged by their rule, on records of known truth."""

import numpy as np
import pandas as pd
import pytest
from records import diverged, make_record, of_variants

from jax_mnist.analysis import claims
from jax_mnist.analysis.study import Study


def judged(records):
    return {verdict.claim: verdict for verdict in claims.judge(Study(records))}


@pytest.mark.parametrize(
    ("mean", "p", "verdict"),
    [
        (0.2, 0.04, "supported"),
        (0.2, 0.06, "undecided"),
        (-0.2, 0.06, "undecided"),
        (-0.2, 0.04, "contradicted"),
    ],
)
def test_the_rule_of_verdicts(mean, p, verdict):
    assert claims.decide(pd.DataFrame({"mean": [0.1, mean], "p": [0.01, p]})) == verdict


def eight(seeds=range(5), **finals):
    """Records of the original's variants, all alike but for luck and what `finals` says."""
    rng = np.random.default_rng(0)
    return [
        make_record(name, seed, accuracies=(0.992, finals.get(name, 0.98) + rng.normal(0, 1e-4)))
        for name in claims.ORIGINAL
        for seed in seeds
    ]


@pytest.mark.parametrize(
    ("finals", "verdict", "rival"),
    [
        ({"l2": 0.985}, "supported", None),
        ({"l2": 0.985, "gbn_l1_l2": 0.99}, "contradicted", "gbn_l1_l2"),
        ({}, "undecided", None),
    ],
)
def test_the_best_of_eight_is_judged_among_all_eight(finals, verdict, rival):
    claim = judged(eight(**finals))["L2 has the highest accuracy"]
    assert claim.verdict == verdict and claim.rival == (rival or claim.rival)


def test_claims_need_all_rivals_and_shared_seeds():
    without = [record for record in eight() if record["name"] != "bn"]
    assert judged(without) == {}
    claim = judged([*without, make_record("bn", 77)])["L2 has the highest accuracy"]
    assert claim.verdict == "not in this study" and np.isnan(claim.effect["mean"])


def test_instability_is_not_judged_by_survivors():
    for seeds, verdict in (((), "undecided"), ((0, 1), "undecided"), (range(5), "supported")):
        records = [
            diverged("l1_l2", r["seed"], epochs=1 + r["seed"] % 2)
            if r["name"] == "l1_l2" and r["seed"] in seeds
            else r
            for r in eight()
        ]
        verdicts = judged(records)
        claim = verdicts["L1 and L2 together are unstable"]
        assert claim.verdict == verdict
        assert claim.effect["mean"] == pytest.approx(88.8 * len(seeds) / 5, abs=0.1)
        assert all(np.isfinite(verdict.effect["mean"]) for verdict in verdicts.values())


def test_less_spread_is_more_stable_and_the_closest_rival_is_shown():
    records = []
    sizes = dict.fromkeys(claims.ORIGINAL, 8e-3) | {"l2": 1e-3, "gbn": 5e-3}
    for number, (name, size) in enumerate(sizes.items()):
        for seed in range(5):
            high = 0.98 + size + 1e-4 * seed * number
            records.append(make_record(name, seed, (0.9, 0.98, high, 0.98, high)))
    claim = judged(records)["L2 is the most stable"]
    assert (claim.verdict, claim.rival) == ("supported", "gbn")
    assert 0 < claim.effect.low < claim.effect["mean"] < claim.effect.high


def test_a_contradicted_claim_shows_what_contradicts_it():
    rough = np.array([9e-3, -8e-3, 5e-3, -1e-3, 2e-3])  # better on average, by luck perhaps
    finals = dict.fromkeys(claims.ORIGINAL, 0.97) | {"l1_l2": 0.98, "l2": 0.98, "gbn": 0.981}
    luck = np.arange(5) * 1e-5
    finals = {n: v + luck * i for i, (n, v) in enumerate(finals.items())} | {"bn": 0.982 + rough}
    claim = judged(of_variants(finals))["L2 has the highest accuracy"]
    assert (claim.verdict, claim.rival) == ("contradicted", "gbn") and claim.effect.p < 0.05


def with_errors(record, errors):
    """A record with so many errors of each kind: `{(true class, named class): count}`."""
    predictions = make_record(mistakes=0, examples=2000)["predictions"]
    for (label, named), count in errors.items():
        right = (predictions["label"] == label) & (predictions["prediction"] == label)
        predictions["prediction"][np.flatnonzero(right)[:count]] = named
    index = np.flatnonzero(predictions["label"] != predictions["prediction"])
    images = np.zeros((len(index), 28, 28), np.uint8)
    mistakes = {"index": index.astype(np.int32), "images": images}
    return record | {"predictions": predictions, "mistakes": mistakes}


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
    luck = (0, 2, 1, 3)
    records = [
        with_errors(r, {k: v + luck[r["seed"]] * (k == (1, 7)) for k, v in errors.items()})
        for r in eight(range(4))
    ]
    claim = judged(records)["1 and 7 are confused more than any pair not named"]
    assert claim.verdict == verdict
    if errors:
        assert claim.rival == "3 and 5"
        between = errors[1, 7] + errors.get((7, 1), 0)
        assert claim.effect["mean"] == pytest.approx(between + 1.5 - errors[3, 5])


CHANGES = {
    "gbn_l2": {},
    "mixup": {"mixup": 0.1, "tensorboard": True},
    "cutout": {"cutout": 4.0},
    "longer": {"mixup": 0.1, "epochs": 30},
    "own_model": {"mixup": 0.1, "model": "another"},
    "without": {"dropout": 0.0},
}


@pytest.mark.parametrize(
    ("finals", "noise", "verdict", "best"),
    [
        ({"mixup": 0.986, "cutout": 0.984}, 1e-4, "supported", "mixup"),
        ({"mixup": 0.984, "cutout": 0.983}, 1e-4, "contradicted", "mixup"),
        ({"mixup": 0.984, "cutout": 0.985}, 1e-4, "undecided", "cutout"),
        ({"mixup": 0.984, "cutout": 0.985, "longer": 0.99}, 1e-4, "undecided", "cutout"),
        ({"mixup": 0.984, "cutout": 0.985, "own_model": 0.99}, 1e-4, "undecided", "cutout"),
        ({"longer": 0.99, "own_model": 0.99, "without": 0.99}, 1e-4, None, None),
        ({"mixup": 0.986, "cutout": 0.988}, 4e-3, "supported", "mixup"),  # not a lucky one
    ],
)
def test_whether_more_regularizers_help_is_judged_by_those_that_add_nothing_else(
    finals, noise, verdict, best
):
    rng = np.random.default_rng(0)
    records = of_variants({
        name: mean + rng.normal(0, noise if name == "cutout" else 1e-4, 5)
        for name, mean in {"gbn_l2": 0.985, **finals}.items()
    })  # fmt: skip
    for record in records:
        base = {"norm": "ghost", "l2": 5e-4, "dropout": 0.1}
        record["config"] = base | CHANGES[record["name"]]
    claim = judged(records).get(claims.MORE_REGULARIZERS)
    assert (claim and claim.verdict) == verdict
    assert (claim and claim.measure) == (best and f"accuracy of {best}")
