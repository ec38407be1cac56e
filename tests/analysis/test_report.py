"""The report says what the records hold, whatever their texts."""

import csv
import itertools

import numpy as np
import pytest
from records import diverged, make_record, of_variants, study

from jax_mnist.analysis import claims, plain, report, statistics
from jax_mnist.analysis.markup import interval, p_value
from jax_mnist.analysis.run import final_accuracy
from jax_mnist.runs.record import load_record, save_record

MINUS = "\N{MINUS SIGN}"


def cells(text, first):
    """The cells of the only table row that begins with `first`."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_files(written):
    assert {path.name for path in written[0].iterdir()} == {
        "report.md", "report.html", "results.csv",
        "accuracy.png", "loss.png", "differences.png", "hardest.png",
    }  # fmt: skip


def test_the_tables_have_the_numbers(written):
    folder, variants, _ = written
    text = (folder / "report.md").read_text()
    results, _, differences = text.partition("## Differences")
    for name, runs in variants.items():
        accuracies = [final_accuracy(run) for run in runs.values()]
        estimate = statistics.mean_interval(accuracies)
        mean = estimate.mean
        best = name == "gbn_l1_l2"
        row = cells(results, f"**`{name}`** (highest)" if best else f"`{name}`")
        assert row[1] == (f"**{mean:.3f}**" if best else f"{mean:.3f}")
        assert row[2] == interval(estimate)
        assert row[-6:-3] == ["6.0", f"{max(accuracies):.2f}", f"{min(accuracies):.2f}"]
        assert row[-1] == "38"  # three epochs of 12.5 s
    found = statistics.differences(variants, final_accuracy, list(variants)[1:], "bn")["l2"]
    row = cells(differences.partition("## Claims")[0], "`l2`")
    assert row[1:3] == [f"{found.mean:+.3f}", p_value(found.p)]
    assert row[3] == f"{found.low:+.3f} to {found.high:+.3f}".replace("-", MINUS)
    assert "With only 3 seeds, intervals are wide." in text
    assert "**It is a &lt;short&gt; study.**" in text
    assert f"```bash\n{written.command}\n```" in text


def test_the_runs_are_written_for_other_programs(written):
    lines = list(csv.DictReader((written.folder / "results.csv").open()))
    assert len(lines) == 24
    record = written.variants["l2"][1]
    (line,) = [line for line in lines if line["variant"] == "l2" and line["seed"] == "1"]
    assert float(line["accuracy_percent"]) == pytest.approx(final_accuracy(record))
    assert float(line["loss"]) == pytest.approx(record["metrics"]["validation_loss"][-1])
    assert (line["errors"], line["best_epoch"], line["diverged"]) == ("6", "3", "0")
    assert line["best_accuracy_percent"] == line["accuracy_percent"]
    assert line["seconds"] == "37.5"
    rough = make_record("=1+1", accuracies=(0.9, 0.8, 0.99))
    lines = plain.results_csv([rough, diverged('-a, "b"', 3)]).splitlines()
    assert lines[1].startswith("'=1+1,0,99,")
    assert lines[1].endswith(",7.7603,10,0,37.5")  # spread and largest drop
    assert lines[2].startswith('"\'-a, ""b""",3,9.8,') and lines[2].endswith(",90,90,1,12.5")


def test_all_combinations_of_settings_show_the_mean_effect_of_each():
    records = []
    for ghost, l2, seed in itertools.product((0, 1), (0, 1), range(3)):
        accuracy = 0.98 + 0.001 * ghost - 0.002 * l2 + 0.0004 * ghost * l2 + 0.0003 * seed * l2
        record = make_record(f"{ghost}{l2}", seed, accuracies=(0.9, accuracy))
        record["config"] |= {"norm": "ghost" if ghost else "batch", "l2": 5e-4 * l2}
        records.append(record)
    effects = report.text(records).partition("## Effects")[2]
    # By seed: -0.18, -0.15, -0.12 pp, with p = 0.013 as one of two.
    assert cells(effects, "L2 decay 0.0005")[1:] == [
        f"{MINUS}0.150", "0.026", f"{MINUS}0.225 to {MINUS}0.075"
    ]  # fmt: skip
    assert cells(effects, "ghost normalisation")[1] == "+0.120"
    assert "over the 2 pairs" in effects
    for incomplete in (records[:-3], [r for r in records if r["config"]["norm"] == "batch"]):
        assert "## Effects" not in report.text(incomplete)


def test_verdicts_are_those_of_the_rule(written):
    folder, variants, _ = written
    text = (folder / "report.md").read_text().partition("## Claims")[2]
    verdicts = claims.judge(variants)
    assert len(verdicts) == 7
    for verdict in verdicts:
        assert cells(text, verdict.claim)[1].strip("*") == verdict.verdict


def test_the_claims_of_the_original_need_its_variants_and_its_data(written):
    text = report.text(study(seeds=2, names=claims.ORIGINAL[1:]))
    assert "original" not in text and "**" not in text.partition("## Errors")[2]
    records = study(seeds=2, names=claims.ORIGINAL)
    assert "Of the 7 claims of the original" in report.text(records)
    for record in records:
        record["config"]["dataset"] = "fashion_mnist"
    text = report.text(records)
    assert "original" not in text and "**" not in text.partition("## Errors")[2]
    assert "compared on Fashion\\-MNIST\n" in text and "one taken for the other" in text


def test_the_verdicts_of_another_study_are_shown_beside(tmp_path):
    records, other = study(names=claims.ORIGINAL), study(names=claims.ORIGINAL[::-1])
    report.write(records, tmp_path, beside={"constant": other})
    text = (tmp_path / "report.md").read_text().partition("## Claims")[2]
    assert "| verdict | verdict in `constant` | effect |" in text
    both = [
        {v.claim: v.verdict for v in claims.judge(statistics.by_variant(found))}
        for found in (records, other)
    ]
    assert both[0] != both[1]
    for claim, verdict in both[0].items():
        assert cells(text, claim)[1:3] == [f"**{verdict}**", both[1][claim]]


def test_more_regularizers_are_judged_in_any_study_that_has_them():
    records = of_variants({"gbn_l2": np.linspace(0.98, 0.981, 4), "mixup": [0.985] * 4})
    for record in records[4:]:
        record["config"]["mixup"] = 0.1
    text = report.text(records)
    assert "The original's claim that more regularisation techniques can help is supported." in text
    claim = cells(text.partition("## Claims")[2], claims.MORE_REGULARIZERS)
    assert claim[1:3] == ["**supported**", "+0.450 pp"]
    assert claim[-2:] == ["accuracy of mixup", "gbn\\_l2"]


@pytest.mark.parametrize(
    "records", [study(1, ("bn", "l1")), study(names=("l2", "gbn")), study(1, ("a",))]
)
@pytest.mark.filterwarnings("error")
def test_few_seeds_or_variants_give_what_is_possible(tmp_path, records):
    report.write(records, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "nan" not in text
    assert ("A single seed gives no interval" in text) == (len({r["seed"] for r in records}) == 1)
    variants = {record["name"] for record in records}
    assert ("## Differences" in text) == (len(variants) > 1)
    assert ("(highest)" in text) == (len(variants) > 1)
    assert " 1 seeds" not in text and "1 comparisons" not in text


def test_diverged_runs_are_named_and_left_out(written):
    bad = [diverged("l2", 7, epochs=2), diverged("worse", 0), diverged("worse", 1)]
    text = report.text([*study(names=claims.ORIGINAL), *bad])
    assert "**Diverged: 3 of 27 runs.**" in text and "`l2` seed 7 in epoch 2" in text
    results = text.partition("## Differences")[0]
    expected = (written[0] / "report.md").read_text().partition("## Differences")[0]
    for name, number in {"bn": "0 of 3", "l2": "1 of 4"}.items():
        found = cells(results, f"`{name}`")
        del found[3]  # the description: the epochs of the configs differ
        assert found == [*cells(expected, f"`{name}`"), number]
    assert cells(results, "`worse`") == ["`worse`", "", "", "epochs 1", *[""] * 6, "2 of 2"]
    assert "Runs that diverged count in claims about variants" in text
    with pytest.raises(ValueError, match="every run diverged"):
        report.text(bad)


def test_variants_without_a_common_seed_leave_a_report_that_says_so():
    others = [make_record("l2", seed, accuracies=(0.9, 0.97)) for seed in (7, 8)]
    text = report.text([*study(names=("bn", "l1")), *others])
    assert "No seed in common with `bn`: `l2`." in text
    assert cells(text.partition("## Differences")[0], "`l2`")[1] == "97.000"
    text = report.text([*study(names=("bn",)), *others])
    assert "No seed in common with `bn`: `l2`." in text and "| p |" not in text


def test_a_variant_of_one_seed_is_named():
    alone = make_record("l2", 0, accuracies=(0.9, 0.97))
    text = report.text([*study(names=("bn", "l1")), alone], "study.py '``` b'")
    assert "**A single seed gives no interval and decides nothing: `l2`.**" in text
    assert "**With only 3 seeds of a variant, intervals are wide.**" in text
    assert "````bash\nstudy.py '``` b'\n````" in text


def test_machines_and_versions_are_named_once():
    records = study(seeds=2)
    records[1]["packages"] = records[1]["packages"] | {"jax": "0.99"}
    records[2]["device"] = {"platform": "gpu", "kind": "Some GPU", "count": 2}
    made = report.text(records).rpartition("They were made on")[2]
    assert made.startswith(" `cpu` and 2 times `Some GPU` (`gpu`), with `python 3.11.7`, ")
    assert "`jax 0.10.2 or 0.99`" in made and made.count("python") == 1


def test_runs_without_mistakes_have_no_pictures_of_them(tmp_path):
    report.write([make_record("bn", seed, mistakes=0) for seed in (0, 1)], tmp_path)
    assert "No run misclassified an image." in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "hardest.png").exists()


def test_an_unwritable_folder_ends_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written") as error:
        report.write(study(1, ("a",)), tmp_path / "file" / "deeper")
    assert "\n" not in str(error.value)


def test_histories_make_the_same_report_as_records(tmp_path):
    records = study()
    for number, record in enumerate(records):
        save_record(tmp_path / f"{number:02}.pkl", record)
    loaded = [load_record(path) for path in sorted(tmp_path.glob("*.pkl"))]
    assert report.text(loaded) == report.text(records)


def opening_of(records):
    """The title and the first paragraph of the report."""
    title, answer = report.text(records).split("\n\n")[:2]
    return title, answer


def test_a_variant_is_described_by_its_teacher():
    records = study(names=("bn", "taught"))
    for record in records:
        record["config"]["teacher"] = "runs/wide" if record["name"] == "taught" else ""
    results, _, _ = report.text(records).partition("## Diff")
    assert "| baseline: no teacher |" in results and "| teacher runs/wide |" in results


def test_the_title_names_what_is_compared():
    assert opening_of(study(names=("bn",)))[0] == "# `bn` on MNIST"
    assert opening_of(study(names=("a", "b")))[0] == "# `a` and `b` compared on MNIST"
    records = study(names=("bn", "l1", "l2", "l3"))
    for record in records:
        record["config"] |= {
            "norm": "batch",
            "l1": 1e-5 * (record["name"] == "l1"),
            "dataset": "/a/my_data",
        }
    assert opening_of(records)[0] == "# 4 variants of L1 decay compared on my\\_data"
    assert cells(report.text(records).partition("## Diff")[0], "`bn`")[3] == "baseline: L1 decay 0"
    for record in records:
        if record["name"] == "l2":
            record["config"]["norm"] = "ghost"
    assert "| ghost normalisation |" in report.text(records)


def test_the_opening_says_what_is_shown_and_what_is_not():
    base = np.array([0.98, 0.981, 0.983, 0.982])
    luck = np.array([1e-4, -1e-4, 2e-4, -2e-4])
    better, worse = base + 0.005 + luck, base - 0.003 + luck
    records = of_variants({"bn": base, "up": better, "down": worse, "same": base + luck})
    answer = opening_of(records)[1].replace(MINUS, "-")
    assert answer == (
        "`up` has the highest mean accuracy, 98.650 % on 40 test images (95 % interval 98.439 to "
        "98.861). `up` (+0.500 percentage points, 95 % interval +0.471 to +0.529) is shown to be "
        "more accurate than `bn`, at 95 % confidence after Holm's correction for 3 comparisons. "
        "`down` (-0.300 percentage points, 95 % interval -0.329 to -0.271) is shown to be less "
        "accurate than `bn`, at 95 % confidence after Holm's correction for 3 comparisons. `same` "
        "is not shown to differ from `bn`: the 95 % interval of the difference reaches from "
        "-0.029 to +0.029 percentage points."
    )  # fmt: skip
    answer = opening_of(of_variants({"a": base, "b": base + luck}))[1].replace(MINUS, "-")
    assert answer == (
        "`a` and `b` have the highest mean accuracy, 98.150 % on 40 test images. `b` is not shown "
        "to differ from `a` at 95 % confidence: the 95 % interval of the difference reaches from "
        "-0.029 to +0.029 percentage points."
    )
    _, answer = opening_of(of_variants({"a": [0.98], "b": [0.99]}))
    assert answer.endswith("takes two shared seeds with unequal differences.")
    assert opening_of(of_variants({"a": base}))[1] == (
        "`a` has a mean accuracy of 98.150 % on 40 test images (95 % interval 97.945 to 98.355)."
    )


def test_the_name_of_a_regularizer_is_escaped_in_its_claim():
    name = "<b>mix_up|"
    records = of_variants({"gbn_l2": np.linspace(0.98, 0.981, 4), name: [0.985] * 4})
    for record in records[4:]:
        record["config"]["mixup"] = 0.1
    claim = report.text(records).partition("## Claims")[2].partition("## Errors")[0]
    assert "accuracy of &lt;b&gt;mix\\_up&#124; |" in claim and "<b>" not in claim


def test_another_baseline(tmp_path):
    records = study()
    report.write(records, tmp_path, baseline="l2")
    assert "| difference to `l2`, pp |" in (tmp_path / "report.md").read_text()
    assert "difference to l2, pp" in report.terminal_summary(records, "l2")
    with pytest.raises(ValueError, match="baseline 'l3' has no run"):
        report.write(records, tmp_path, baseline="l3")


def test_only_test_images_are_called_so():
    for split, name in {
        "test": "test images",
        "test[:40]": "test images",
        "train[-40:]": "images of `train[-40:]`",
        "test+train": "images of `test+train`",
    }.items():
        records = study(seeds=2)
        for record in records:
            record["config"]["validation_split"] = split
        text = report.text(records)
        assert f"Each run was evaluated on 40 {name} after every epoch." in text
        assert ("test image" in text) == (name == "test images")
        assert "validation image" not in text


def test_the_opening_says_how_long_the_runs_trained_on_what():
    records = study(seeds=2)
    for record in records:
        record["config"].update(epochs=15, train_split="train[:600]")
    text = report.text(records)
    assert "Each run was trained for 15 epochs on `train[:600]` and evaluated on 40 test" in text
    records[-1]["config"]["epochs"] = 10
    assert "Each run was evaluated on 40 test images" in report.text(records)


def test_sentences_follow_the_numbers():
    text = report.text(study(names=("bn", "l1")))
    assert "over the last 3 epochs" in text and "corrected" not in text
    text = report.text([make_record(accuracies=(0.97,), seed=seed) for seed in range(2)])
    assert "spread" not in text and "drop" not in text and "2 runs: 1 variant, seeds 0, 1." in text
    assert "over the last 5 epochs" in report.text([make_record(accuracies=(0.9,) * 7)])


def test_the_summary_fits_a_terminal():
    long = ["bn", "a_name_of_sixty_letters_" + "x" * 36, "worse"]
    records = [*study(names=long[:2]), diverged("worse", 0)]
    records[4]["config"]["validation_split"] = "train[-10000:]"
    summary = report.terminal_summary(records)
    assert max(map(len, summary.splitlines())) <= 80 and not summary.endswith("\n")
    lines = [line.split() for line in summary.splitlines()]
    accuracies = [final_accuracy(record) for record in records[:3]]
    mean, low, high, _ = statistics.mean_interval(accuracies)
    assert lines[1] == ["bn", *f"{mean:.3f} {low:.3f} to {high:.3f} 6.0 38 0 of 3".split()]
    assert lines[3] == ["worse", "1", "of", "1"]
    assert "difference to bn, pp" in summary and "`" not in summary
    assert "a_name_of_sixty_lette…" in summary
    with pytest.raises(ValueError, match="every run diverged"):
        report.terminal_summary(records[-1:])
