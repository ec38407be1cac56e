"""Those tables of docs/results.md whose runs are committed beside it are of these runs."""

import csv
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from jax_mnist.analysis import claims, plain, planning, statistics
from jax_mnist.runs import study

DOCS = Path(__file__).parents[1] / "docs"
COMMITTED = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.csv"))


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


def after(words, page="results.md"):
    """The text of a page after some words."""
    return (DOCS / page).read_text().partition(words)[2]


def table(words, page="results.md"):
    """The cells of the first table after some words, row by row, without markup."""
    found = []
    for line in after(words, page).splitlines():
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


FIELDS = {
    "nothing": "label_smoothing",
    "label smoothing": "label_smoothing",
    "dropout of channels before the last layer": "dropout",
    "dropout after the max-pool": "dropout",
    "sharpness-aware minimisation": "sam",
    "average of the weights": "ema",
    "cutout, pixels": "cutout",
    "elastic deformation, pixels": "elastic",
    "mixup": "mixup",
}
SWEEPS = [f"sweeps/{field}.csv" for field in dict.fromkeys(FIELDS.values())]


def strengths(words):
    """By variant, the cells of a table of strengths; a row without a name is of the one above."""
    found, field = {}, ""
    for name, strength, *cells in table(words):
        field = FIELDS[name] if name else field
        found[f"{field}={float(strength or 0)}"] = cells
    return found


def test_the_strengths_are_compared_by_the_runs_of_the_sweeps():
    found = accuracies(*SWEEPS)
    shown = strengths("### More regularisers: their strengths")
    expected = results(found, "label_smoothing=0.0")
    assert {name: numbers(*cells) for name, cells in shown.items()} == expected


def test_the_strengths_are_compared_on_a_second_fold():
    first = accuracies(*SWEEPS)
    second = accuracies("sweeps/second_fold.csv")
    shown = strengths("trained again with other")
    assert set(shown) == set(second)
    for name, cells in shown.items():
        of_folds = [mean(first[name]), mean(second[name])]
        assert numbers(*cells) == rounded(*of_folds, np.mean(of_folds))
    expected = statistics.differences(second, float, list(second)[1:], "label_smoothing=0.0")
    text = after("On the second fold, too")
    low, high, p, *_ = numbers(text)
    assert [low, high] == rounded(*(f(e.mean for e in expected.values()) for f in (min, max)))
    assert min(e.p for e in expected.values()) > p


def test_the_rates_of_the_plain_recipe():
    found = accuracies("sweeps/plain_rate.csv")
    for rate, by_seed, average in table("## A plain recipe"):
        runs = found.pop(f"learning_rate={rate}")
        assert numbers(by_seed) == [*runs.values()]
        assert numbers(average) == rounded(mean(runs))
    assert not found


def check_stability(path, name, spread, largest_drop):
    """The means over seeds of a variant that are shown in a table."""
    spreads, drops = (accuracies(path, column=f"{c}_pp") for c in ("spread", "largest_drop"))
    assert numbers(spread) == rounded(mean(spreads[name]))
    assert float(largest_drop) == pytest.approx(mean(drops[name]), abs=5.1e-3)


def test_the_eight_variants():
    found = accuracies("study/results.csv")
    wrong = accuracies("study/results.csv", column="errors")
    shown = table("## Eight variants, ten seeds")
    assert [row[0] for row in shown] == list(claims.ORIGINAL) == list(found)
    for name, _, _, _, accuracy, interval, best, worst, errors, *stability in shown:
        runs = [*found[name].values()]
        assert numbers(accuracy, interval) == rounded(*statistics.mean_interval(runs)[:3])
        assert numbers(best, worst) == [max(runs), min(runs)]
        assert float(errors) == pytest.approx(mean(wrong[name]), abs=0.051)
        check_stability("study/results.csv", name, *stability)


def test_the_differences_between_the_eight_variants():
    found = accuracies("study/results.csv")
    of_readme = table("## Results", "../README.md")
    assert {name: numbers(*cells) for name, _, _, _, *cells in of_readme} == results(found, "bn")
    differences = statistics.differences(found, float, list(found)[1:], "bn")
    shown = table("The differences from batch norm alone")
    assert {name: numbers(*cells) for name, *cells in shown} == {
        name: rounded(*of) for name, of in differences.items()
    }


def test_what_ten_seeds_could_show():
    found = accuracies("study/results.csv")
    level = statistics.LEVEL / (len(found) - 1)
    shown = table("### What ten seeds could show")
    assert [row[0] for row in shown] == [name for name in found if name != "bn"]
    for name, deviation, alone, corrected, least in shown:
        differences = np.subtract(*([*found[n].values()] for n in (name, "bn")))
        spread = float(np.std(differences, ddof=1))
        assert numbers(deviation, least) == rounded(
            spread, planning.smallest_effect(spread, len(differences), level)
        )
        assert int(alone) == planning.seeds_needed(0.05, spread)
        assert int(corrected) == planning.seeds_needed(0.05, spread, level)


def test_the_variants_by_the_plain_recipe():
    found = accuracies("plain/results.csv")
    shown = table("With this rate all eight variants")
    assert {name: numbers(*cells[:-2]) for name, *cells in shown} == results(found, "bn")
    for name, *_, spread, largest_drop in shown:
        check_stability("plain/results.csv", name, spread, largest_drop)


PAIRS = {  # of variants that differ in one regulariser alone, with and without it
    "ghost batch norm": "gbn bn, gbn_l1 l1, gbn_l2 l2, gbn_l1_l2 l1_l2",
    "L1": "l1 bn, l1_l2 l2, gbn_l1 gbn, gbn_l1_l2 gbn_l2",
    "L2": "l2 bn, l1_l2 l1, gbn_l2 gbn, gbn_l1_l2 gbn_l1",
}


def by_pair(regularizer, values):
    """The differences in some values, or in lists of them, of the variants of each pair."""
    pairs = (pair.split() for pair in PAIRS[regularizer].split(", "))
    return [np.subtract(values[with_it], values[without]) for with_it, without in pairs]


def effects(variants):
    """The mean effect of each regulariser."""
    found = {name: [*runs.values()] for name, runs in variants.items()}
    return statistics.holm(
        {
            regularizer: statistics.mean_interval(np.mean(by_pair(regularizer, found), axis=0))
            for regularizer in PAIRS
        }
    )


@pytest.mark.parametrize(
    "path, words",
    [
        ("study/results.csv", "### Three effects"),
        ("plain/results.csv", "The effects of the three regularisers"),
    ],
)
def test_the_effects_of_the_three_regularisers(path, words):
    assert {name: numbers(*cells) for name, *cells in table(words)} == {
        name: rounded(*effect) for name, effect in effects(accuracies(path)).items()
    }


def test_the_answer_of_the_readme():
    of_study, of_plain = (
        effects(accuracies(f"{name}/results.csv"))["L2"] for name in ("study", "plain")
    )
    text = after("The answer depends on the recipe", "../README.md")
    in_plain = (-of_plain.mean, -of_plain.high, -of_plain.low)
    assert numbers(text)[:6] == rounded(*of_study[:3], *in_plain)
    text = after("In short:")
    assert numbers(text)[:6] == rounded(*of_study[:3], *in_plain)


def test_the_first_runs_by_the_plain_recipe():
    before, now = (accuracies(f"plain/{name}.csv") for name in ("before", "results"))
    again = {name: {seed: now[name][seed] for seed in runs} for name, runs in before.items()}
    mixed = {name: now[name] | runs for name, runs in before.items()}
    text = after("The effect of L2 over these seven")
    l2, l1 = [*effects(before)["L2"], *effects(again)["L2"]], effects(mixed)["L1"]
    assert numbers(text)[:10] == rounded(*l2, l1.mean, l1.p)


def test_the_earlier_study():
    before = {row.pop("variant"): row for row in rows("study/before.csv")}
    means = {name: float(row["accuracy_percent"]) for name, row in before.items()}
    of_study, of_regularizers = (
        {name: mean(runs) for name, runs in accuracies(path).items()}
        for path in ("study/results.csv", "regularizers/results.csv")
    )
    shown = table("## The earlier study")
    assert [row[0] for row in shown] == [name for name in before if name != "bn"]
    for name, *cells, this, more in shown:
        row = before[name]
        assert numbers(*cells) == [
            float(row[c]) for c in ("difference_pp", "low_pp", "high_pp", "p")
        ]
        assert numbers(cells[0]) == rounded(means[name] - means["bn"])
        assert numbers(this) == rounded(of_study[name] - of_study["bn"])
        assert not more or numbers(more) == rounded(of_regularizers[name] - of_regularizers["bn"])
    text = after("From the means of the earlier")
    expected = rounded(*(np.mean(by_pair(regularizer, means)) for regularizer in PAIRS))
    assert numbers(text)[:3] == expected


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """By name, the runs of the studies whose records are committed."""
    folder, found = tmp_path_factory.mktemp("records"), {}
    for name in ("study", "plain"):
        with tarfile.open(DOCS / name / "records.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        found[name] = study.finished(folder / "runs" / name)
    return found


@pytest.mark.parametrize("name", ["study", "plain"])
def test_the_committed_runs_are_those_of_the_records(records, name):
    assert len(records[name]) == 80
    ours = plain.results_csv(records[name])
    committed = (DOCS / name / "results.csv").read_text()
    assert sorted(ours.splitlines()) == sorted(committed.splitlines())


def test_the_claims_are_judged_by_the_records(records):
    of_study, of_plain = (
        {found.claim: found for found in claims.judge(statistics.by_variant(records[name]))}
        for name in ("study", "plain")
    )
    shown = table("## The original's claims")
    assert [row[0] for row in shown] == [*of_study]
    for text, verdict, measure, rival, *effect in shown:
        found = of_study[text]
        assert (verdict, rival) == (found.verdict, found.rival)
        assert found.measure.startswith(measure)
        assert numbers(*effect) == rounded(*found.effect)
    shown = table("The original's claims, judged by")
    assert [row[0] for row in shown] == [*of_plain]
    for text, before, verdict, rival, *effect in shown:
        found = of_plain[text]
        assert (before, verdict, rival) == (of_study[text].verdict, found.verdict, found.rival)
        assert numbers(*effect) == rounded(*found.effect)


def test_the_longer_recipes_reach_the_means_of_their_runs():
    found = accuracies("recipes/results.csv")
    losses = accuracies("recipes/results.csv", column="loss")
    expected = results(found, "warped")
    for (name, _, average, interval, *difference, loss), of_seeds in zip(
        table("### The best on held-out images"), found.values(), strict=True
    ):
        runs = [*of_seeds.values()]
        assert numbers(average, interval) == rounded(*statistics.mean_interval(runs)[:3])
        assert numbers(average, *difference) == expected[name]
        assert float(loss) == pytest.approx(mean(losses[name]), abs=5.1e-5)
    (taught,) = statistics.differences(found, float, ["distilled"], "best").values()
    text = after("not shown to add")
    assert numbers(text)[:3] == rounded(*taught[:3])
    (of_loss,) = statistics.differences(losses, float, ["distilled"], "best").values()
    assert numbers(text)[3:6] == pytest.approx(of_loss[:3], abs=5.1e-5)
    assert numbers(text)[6:7] == rounded(of_loss.p)
    text = after("(../configs/best.py) end at")
    runs = [*found["best"].values()]
    average, low, high, worst, best, *_ = numbers(text)
    assert average == round(np.mean(runs), 2)
    assert [low, high] == rounded(*statistics.mean_interval(runs)[1:3])
    assert [worst, best] == [min(runs), max(runs)]
    ((teacher,),) = (of.values() for of in accuracies("recipes/teacher.csv").values())
    stated = f"[{teacher:.2f} % of the test images](recipes/teacher.csv)"
    assert stated in " ".join(text.split())


def test_the_recipes_are_compared_with_variants_of_the_study():
    found = accuracies("study/results.csv") | accuracies("recipes/results.csv")
    text = after("with the same seeds, `best` is above")
    shown = iter(numbers(text))
    for name, reference, figures in (
        ("best", "gbn_l2", 4), ("best", "l1_l2", 4), ("warped", "gbn_l2", 4), ("warped", "l1_l2", 3)
    ):  # fmt: skip
        (of,) = statistics.differences(found, float, [name], reference).values()
        assert [next(shown) for _ in range(figures)] == rounded(*of[:figures])


def test_what_was_tried_on_the_warped_recipe():
    variants = {
        "none": "warped",
        "a rate that ends at 5 % of its peak": "final_rate=0.05",
        "Muon, learning rate 0.01": "optimizer=muon,learning_rate=0.01",
        "Muon, learning rate 0.03": "optimizer=muon,learning_rate=0.03",
        "60 epochs": "epochs=60",
        "60 epochs, to 5 %, average of 0.9995": "epochs=60,final_rate=0.05,ema=0.9995",
        "60 epochs, Muon, learning rate 0.03": "epochs=60,optimizer=muon,learning_rate=0.03",
        "distillation from two networks of width 2": "distillation=0.9,width=2",
        "distillation from one of them, 60 epochs": "distillation=0.9,width=2,epochs=60",
    }
    found = accuracies("sweeps/best_changes.csv")
    losses = accuracies("sweeps/best_changes.csv", column="loss")
    repeated = [name for name in variants.values() if len(found[name]) > 1]
    shown = table("These changes were then compared with it")
    assert [row[0] for row in shown] == list(variants)
    differences = statistics.differences(found, float, repeated[1:], "warped")
    for change, by_seed, average, *difference, loss in shown:
        runs = found[variants[change]]
        assert numbers(by_seed) == [*runs.values()]
        assert not average or numbers(average) == rounded(mean(runs))
        assert numbers(*difference) == rounded(*differences.get(variants[change], ()))
        assert float(loss) == pytest.approx(mean(losses[variants[change]]), abs=5.1e-5)
    of_loss = statistics.differences(losses, float, repeated[1:], "warped")
    shorter, longer = list(variants.values())[-2:]
    (without,) = statistics.differences(found, float, [longer], "epochs=60").values()
    text = after("the difference by the teacher")
    assert numbers(text)[:3] == rounded(*without[:3])
    text = after("shown to lower the loss")
    shown = numbers(text)
    for name in (shorter, longer):
        lower = of_loss[name]
        expected = (-lower.mean, -lower.high, -lower.low)
        assert shown[:3] == pytest.approx(expected, abs=5.1e-5)
        assert shown[3:4] == rounded(lower.p)
        shown = shown[4:]


def test_what_was_tried_on_the_warped_recipe_before():
    found = accuracies("sweeps/best.csv")
    shown = table("Earlier, on another processor, `warped` was compared with these")
    each = [numbers(cells[1]) for cells in shown]
    assert all([*runs.values()] in each for runs in found.values())
    for values, (_, _, average, _) in zip(each, shown, strict=True):
        assert not average or numbers(average) == rounded(np.mean(values))


def test_the_first_choice_of_a_rate_and_a_decay():
    found = accuracies("sweeps/choice.csv")
    shown = table("The peak learning rate and the strengths of decay")
    for rate, decay, accuracy in shown:
        kind, strength = decay.lower().split() if decay != "none" else ("l2", "0")
        (run,) = found[f"learning_rate={rate},{kind}={float(strength)}"].values()
        assert float(accuracy.removesuffix(" %")) == run
    assert len(shown) == len(found)


def test_dropout_after_the_max_pool_and_more_strengths_of_sam():
    found = accuracies("sweeps/dropout_pool.csv", "sweeps/sam_more.csv")
    shown = strengths("Dropout of channels after the max-pool, and")
    expected = results(found, "dropout=0.0")
    assert {name: numbers(*cells) for name, cells in shown.items()} == {
        name: expected[name] for name in found if name != "dropout=0.0"
    }


def test_few_epochs_reach_the_means_of_their_runs():
    held_out = accuracies("sweeps/fast.csv") | {
        "epochs=1": accuracies("sweeps/fast_1.csv")["ema=0.0,batch_size=64,learning_rate=0.2"],
        "epochs=8": accuracies("sweeps/fast_8.csv")["ema=0.998,learning_rate=0.2"],
    }
    tested, seconds = (accuracies("fast.csv", column=c) for c in ("accuracy_percent", "seconds"))
    shown = table("### Few epochs")
    assert {f"epochs={row[0]}" for row in shown} == set(held_out) | set(tested)
    for epochs, of_held_out, *of_tested in shown:
        name = f"epochs={epochs}"
        assert numbers(of_held_out) == rounded(*(mean(held_out[n]) for n in held_out if n == name))
        expected = ()
        if name in tested:
            interval = statistics.mean_interval([*tested[name].values()])
            expected = (*interval[:3], np.median([seconds[name][seed] for seed in (2, 3, 4)]))
        assert numbers(*of_tested) == rounded(*expected)
    briefly = numbers(after("- **Few epochs**"))
    for i, epochs in enumerate((10, 8, 2)):
        interval = statistics.mean_interval([*tested[f"epochs={epochs}"].values()])
        assert briefly[3 * i : 3 * i + 3] == pytest.approx(interval[:3], abs=5.1e-3)
    before = [*accuracies("fast_before.csv")["epochs=8"].values()]
    text = after("on an older AMD EPYC, reached")
    both = [*before, *tested["epochs=8"].values()]
    assert numbers(text)[:2] == rounded(np.mean(before), np.mean(both))
    (more,) = statistics.differences(tested, float, ["epochs=10"], "epochs=9").values()
    _, _, text = text.partition("because it passes here")
    assert numbers(text)[:3] == rounded(*more[:3])


def test_a_run_of_two_epochs_alone_takes_the_seconds_of_its_rounds():
    taken = {cores: [] for cores in ("2", "1")}
    for row in rows("fast_alone.csv"):
        taken[row["cores"]].append(float(row["seconds"]))
    text = after("gains little from both cores")
    assert numbers(text)[:4] == [f(found) for found in taken.values() for f in (min, max)]


def test_what_was_tried_with_three_epochs():
    found = accuracies("sweeps/fast_3.csv")
    shown = numbers(*(cell for _, cell in table("With three epochs, where")))
    assert sorted(shown) == rounded(*sorted(map(mean, found.values())))


def test_fashion_mnist():
    found = accuracies("fashion/results.csv")
    expected = results(found, "bn")
    shown = table("## Fashion-MNIST")
    assert [row[0] for row in shown] == [*found]
    for name, accuracy, interval, *difference in shown:
        runs = [*found[name].values()]
        assert numbers(accuracy, interval) == rounded(*statistics.mean_interval(runs)[:3])
        assert numbers(accuracy, *difference) == expected[name]


def test_recomputed_statistics_change_the_accuracies_by_the_differences_of_the_runs():
    found = {}
    for row in rows("sweeps/recompute_stats.csv"):
        change = float(row["recomputed"]) - float(row["accuracy_percent"])
        found.setdefault(row["run"].rpartition("/")[2], []).append(change)
    changes = {name: np.mean(values) for name, values in found.items()}
    shown = numbers(*(change for _, change, _ in table("## Statistics of the norms")))
    assert sorted(shown) == rounded(*sorted(changes.values()))


@pytest.mark.parametrize("path", COMMITTED)
def test_committed_runs_are_linked(path):
    assert f"]({path})" in (DOCS / "results.md").read_text()
