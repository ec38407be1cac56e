"""Those tables of docs/results.md whose runs are committed beside it are of these runs."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from jax_mnist.analysis import claims, statistics

DOCS = Path(__file__).parents[1] / "docs"
COMMITTED = [*DOCS.glob("sweeps/*.csv"), *DOCS.glob("*.csv"), *DOCS.glob("*/results.csv")]


def rows(path):
    with open(DOCS / path, newline="") as file:
        return [*csv.DictReader(file)]


def accuracies(*paths, column="accuracy_percent"):
    """The accuracy in per cent of each variant and seed, or another column."""
    found = {}
    for path in paths:
        for row in rows(path):
            runs = found.setdefault(row["variant"], {})
            runs[int(row["seed"])] = float(row[column])
    return found


def numbers(*cells):
    """The numbers in some cells, with <0.001 in the middle of its range."""
    text = " ".join(cells).replace("\N{MINUS SIGN}", "-").replace("<0.001", "0.0005")
    return [*map(float, re.findall(r"[-+]?\d+\.\d+", text))]


def rounded(*values):
    """Values to compare with what is shown to three digits."""
    return pytest.approx(values, abs=5.1e-4)


def mean(runs):
    return np.mean([*runs.values()])


def table(words):
    """The cells of the first table after some words, row by row, without markup."""
    _, _, text = (DOCS / "results.md").read_text().partition(words)
    lines = iter(text.splitlines())
    found = []
    for line in lines:
        if line.startswith("|"):
            cells = line.replace("**", "").replace("`", "").split("|")[1:-1]
            found.append([cell.strip() for cell in cells])
        elif found:
            break
    return found[2:]


def results(variants, baseline):
    """By name, what is shown of a variant: its mean, and its difference, interval and p."""
    others = [name for name in variants if name != baseline]
    found = {baseline: ()} | statistics.differences(variants, float, others, baseline)
    return {name: rounded(mean(variants[name]), *of) for name, of in found.items()}


def test_what_more_regularisers_do_is_the_difference_of_their_runs():
    found = accuracies("regularizers/results.csv")
    shown = table("## More regularisers, ten seeds")
    assert {name: numbers(*cells) for name, *cells, _ in shown} == results(found, "gbn_l2")


def test_the_strengths_are_compared_by_the_runs_of_the_sweeps():
    fields = {
        "label smoothing": "label_smoothing",
        "dropout of channels before the last layer": "dropout",
        "sharpness-aware minimisation": "sam",
        "average of the weights": "ema",
        "cutout, pixels": "cutout",
        "elastic deformation, pixels": "elastic",
        "mixup": "mixup",
    }
    base = "label_smoothing=0.0"
    found = accuracies(*(f"sweeps/{field}.csv" for field in fields.values()))
    (_, _, *nothing), *others = table("### More regularisers: their strengths")
    shown, field = {base: numbers(*nothing)}, ""
    for name, strength, *cells in others:
        field = fields[name] if name else field
        shown[f"{field}={float(strength)}"] = numbers(*cells)
    assert shown == results(found, base)


def test_the_rates_of_the_plain_recipe():
    found = accuracies("sweeps/plain_rate.csv")
    for rate, by_seed, average in table("## A plain recipe"):
        runs = found.pop(f"learning_rate={rate}")
        assert numbers(by_seed) == [*runs.values()]
        assert numbers(average) == rounded(mean(runs))
    assert not found


def test_the_variants_by_the_plain_recipe():
    found = accuracies("plain/results.csv")
    shown = table("With this rate all eight variants")
    assert {name: numbers(*cells[:-2]) for name, *cells in shown} == results(found, "bn")
    spreads = accuracies("plain/results.csv", column="spread_pp")
    drops = accuracies("plain/results.csv", column="largest_drop_pp")
    for name, *_, spread, largest_drop in shown:
        assert numbers(spread) == rounded(mean(spreads[name]))
        assert float(largest_drop) == pytest.approx(mean(drops[name]), abs=5.1e-3)


def test_the_claims_by_the_plain_recipe():
    columns = {
        "accuracy": "accuracy_percent",
        "spread": "spread_pp",
        "largest drop": "largest_drop_pp",
    }
    shown = {claim: cells for claim, *cells in table("The original's claims, judged by")}
    for claim in claims.CLAIMS:
        found = accuracies("plain/results.csv", column=columns[claim.measured])
        judged = claims.judge_claim(claim._replace(measure=float), found)
        _, verdict, rival, *effect = shown[claim.text]
        assert (verdict, rival) == (judged.verdict, judged.rival)
        assert numbers(*effect) == rounded(*judged.effect)


def test_the_best_recipe_reaches_the_mean_of_its_runs():
    (runs,) = accuracies("recipes/results.csv").values()
    _, _, text = (DOCS / "results.md").read_text().partition("(../configs/best.py) end at")
    average, low, high, worst, best, *_ = numbers(text)
    assert average == round(mean(runs), 2)
    assert [low, high] == rounded(*statistics.mean_interval([*runs.values()])[1:3])
    assert [worst, best] == [min(runs.values()), max(runs.values())]


def test_what_was_tried_on_the_best_recipe():
    found = accuracies("sweeps/best.csv")
    shown = table("Nor did what has been tried")
    each = [numbers(cells[1]) for cells in shown]
    assert all([*runs.values()] in each for runs in found.values())
    for values, (_, _, average, _) in zip(each, shown, strict=True):
        assert not average or numbers(average) == rounded(np.mean(values))


def test_few_epochs_reach_the_means_of_their_runs():
    held_out = accuracies("sweeps/fast.csv") | {
        "epochs=1": accuracies("sweeps/fast_1.csv")["ema=0.0,batch_size=64,learning_rate=0.2"],
        "epochs=8": accuracies("sweeps/fast_8.csv")["ema=0.998,learning_rate=0.2"],
    }
    tested = accuracies("fast.csv")
    for epochs, of_held_out, *of_tested, _ in table("### Few epochs"):
        name = f"epochs={epochs}"
        assert numbers(of_held_out) == rounded(mean(held_out[name]))
        runs = [*tested.get(name, {}).values()]
        expected = statistics.mean_interval(runs)[:3] if runs else ()
        assert numbers(*of_tested) == rounded(*expected)


def test_what_was_tried_with_three_epochs():
    found = accuracies("sweeps/fast_3.csv")
    shown = numbers(*(cell for _, cell in table("With three epochs, where")))
    assert sorted(shown) == rounded(*sorted(map(mean, found.values())))


def test_recomputed_statistics_change_the_accuracies_by_the_differences_of_the_runs():
    found = {}
    for row in rows("sweeps/recompute_stats.csv"):
        change = float(row["recomputed"]) - float(row["accuracy_percent"])
        found.setdefault(row["run"].rpartition("/")[2], []).append(change)
    changes = {name: np.mean(values) for name, values in found.items()}
    shown = numbers(*(change for _, change, _ in table("## Statistics of the norms")))
    assert sorted(shown) == rounded(*sorted(changes.values()))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_runs_are_linked(path):
    folder = path.parent.relative_to(DOCS)
    text = (DOCS / "results.md").read_text()
    assert f"]({path.relative_to(DOCS)})" in text or f"]({folder})" in text
