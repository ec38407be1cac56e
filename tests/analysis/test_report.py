"""The report says what the records hold, whatever their texts."""

import numpy as np
import pandas as pd
import pytest
from records import diverged, make_record, of_variants, study

from jax_mnist.analysis import claims, report, table
from jax_mnist.analysis.study import Study
from jax_mnist.analysis.words import interval, p_value

MINUS = "\N{MINUS SIGN}"


def text_of(records, baseline="", **arguments):
    return report.markdown(Study(records, baseline), **arguments)


def with_config(records, **fields):
    for record in records:
        record["config"].update(fields)
    return records


def cells(text, first):
    """The cells of the first table row that begins with `first`."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_files_hold_the_numbers_of_the_table(written):
    folder, study, command = written.folder, written.study, written.command
    assert {path.name for path in folder.iterdir()} == {
        "report.md", "report.html", "results.csv", "epochs.csv",
        "accuracy.png", "loss.png", "differences.png", "hardest.png",
    }  # fmt: skip
    runs = pd.read_csv(folder / "results.csv")
    pd.testing.assert_frame_equal(runs, study.all_runs, check_dtype=False)
    assert len(pd.read_csv(folder / "epochs.csv")) == 24 * 3
    text = (folder / "report.md").read_text()
    assert text == report.markdown(study, command, "It is a <short> study.")
    results, _, differences = text.partition("## Differences")
    for name, finals in runs.groupby("variant").accuracy_percent:
        bold, best = ("**", " (highest)") if name == "gbn_l1_l2" else ("", "")
        row = cells(results, f"{bold}`{name}`{bold}{best}")
        assert row[1] == f"{bold}{finals.mean():.3f}{bold}"
        assert row[2] == interval(table.accuracies(runs).loc[name])
        assert row[-6:-3] == ["6.0", f"{finals.max():.2f}", f"{finals.min():.2f}"]
        assert row[-1] == "38"  # three epochs of 12.5 s
    for baseline in ("bn", "gbn"):
        row = cells(differences.partition(f"Differences to {baseline}<")[2], "`l2`")
        estimate = table.differences(study.wide, baseline).loc["l2"]
        numbers = [f"{estimate['mean']:+.3f}", p_value(estimate.p)]
        numbers += [f"{estimate.low:+.3f} to {estimate.high:+.3f}"]
        assert row[1:4] == [number.replace("-", MINUS) for number in numbers]
        assert row[4] == f"{table.could_show(study.wide.l2 - study.wide[baseline], 0.05 / 7):.3f}"
    assert "With only 3 seeds, intervals are wide." in text
    assert "**It is a &lt;short&gt; study.**" in text and f"```bash\n{command}\n```" in text
    verdicts = claims.judge(study)
    assert len(verdicts) == 7
    for verdict in verdicts:
        assert cells(differences, verdict.claim)[1] == f"**{verdict.verdict}**"


def test_all_combinations_of_settings_show_the_mean_effect_of_each():
    records = study(names=("bn", "l2", "gbn", "gbn_l2"))
    for record in records:
        norm = "ghost" if record["name"].startswith("gbn") else "batch"
        record["config"] |= {"norm": norm, "l2": 5e-4 * ("l2" in record["name"])}
    effects = text_of(records).partition("## Effects")[2]
    effect = Study(records).effects.loc["ghost normalisation"]
    shown = [f"{effect['mean']:+.3f}", p_value(effect.p), interval(effect, signs=True)]
    assert cells(effects, "ghost normalisation")[1:] == shown and "the 2 pairs" in effects
    assert len(cells(effects, "L2 decay 0.0005")) == 4
    assert "## Effects" not in text_of(records[:-3])


def test_the_claims_of_the_original_need_its_variants_and_its_data():
    text = text_of(study(seeds=2, names=claims.ORIGINAL[1:]))
    assert "original" not in text and "**" not in text.partition("## Errors")[2]
    records = study(seeds=2, names=claims.ORIGINAL)
    text = text_of(records)
    assert "Claims of the original: " in text
    assert "The original names the pairs in bold: 1 and 7, 4 and 9." in text
    text = text_of(with_config(records, dataset="fashion_mnist"))
    assert "original" not in text and "compared on Fashion\\-MNIST\n" in text


def test_the_verdicts_of_another_study_are_shown_beside(tmp_path):
    records, other = study(names=claims.ORIGINAL), study(names=claims.ORIGINAL[::-1])
    report.write(records, tmp_path, compare_claims_with={"constant": other})
    text = (tmp_path / "report.md").read_text().partition("## Claims")[2]
    assert "| verdict | verdict in `constant` | effect |" in text
    own, others = (claims.judge(Study(runs)) for runs in (records, other))
    assert [verdict.verdict for verdict in own] != [verdict.verdict for verdict in others]
    for here, there in zip(own, others, strict=True):
        assert cells(text, here.claim)[1:3] == [f"**{here.verdict}**", there.verdict]


def test_more_regularizers_are_judged_in_any_study_that_has_them():
    for name, shown in {"mixup": "mixup", "<b>mix_up|": "&lt;b&gt;mix\\_up&#124;"}.items():
        records = of_variants({"gbn_l2": np.linspace(0.98, 0.981, 4), name: [0.985] * 4})
        with_config(records[4:], mixup=0.1)
        text = text_of(records)
        assert "Claims of the original: 1 supported." in text and "<b>" not in text
        claim = cells(text.partition("## Claims")[2], claims.MORE_REGULARIZERS)
        assert claim[1:3] == ["**supported**", "+0.450 pp"]
        assert claim[-2:] == [f"accuracy of {shown}", "gbn\\_l2"]


@pytest.mark.parametrize(
    "records", [study(1, ("bn", "l1")), study(names=("l2", "gbn")), study(1, ("a",))]
)
@pytest.mark.filterwarnings("error")
def test_few_seeds_or_variants_give_what_is_possible(tmp_path, records):
    report.write(records, tmp_path)
    text = (tmp_path / "report.md").read_text()
    seeds, variants = ({record[key] for record in records} for key in ("seed", "name"))
    assert ("A single seed gives no interval" in text) == (len(seeds) == 1)
    assert ("## Differences" in text) == ("(highest)" in text) == (len(variants) > 1)
    assert not any(words in text for words in ("nan", " 1 seeds", "1 comparisons"))


def test_diverged_runs_are_named_and_left_out(written):
    bad = [diverged("l2", 7, epochs=2), diverged("worse", 0), diverged("worse", 1)]
    text = text_of([*study(names=claims.ORIGINAL), *bad])
    assert "**Diverged: 3 of 27 runs.**" in text and "`l2` seed 7 in epoch 2" in text
    results = text.partition("## Differences")[0]
    expected = (written.folder / "report.md").read_text().partition("## Differences")[0]
    for name, number in {"bn": "0 of 3", "l2": "1 of 4"}.items():
        row = cells(results, f"`{name}`")
        del row[3]  # the description: the epochs of the configs differ
        assert row == [*cells(expected, f"`{name}`"), number]
    assert cells(results, "`worse`") == ["`worse`", "", "", "epochs 1", *[""] * 6, "2 of 2"]
    assert "Runs that diverged (3 here) count in claims about variants" in text
    with pytest.raises(ValueError, match="every run diverged"):
        text_of(bad)
    assert "| difference to `l2`, pp |" in text_of(study(), "l2")
    with pytest.raises(ValueError, match="baseline 'l3' has no run"):
        text_of(study(), "l3")


def test_variants_without_a_common_seed_leave_a_report_that_says_so():
    others = [make_record("l2", seed, accuracies=(0.9, 0.97)) for seed in (7, 8)]
    for names in (("bn", "l1"), ("bn",)):
        text = text_of([*study(names=names), *others])
        assert "No seed in common with the baseline: `l2`." in text
        assert cells(text.partition("## Differences")[0], "`l2`")[1] == "97.000"
        assert ("| p |" in text) == ("l1" in names)


def test_a_variant_of_one_seed_is_named():
    alone = make_record("l2", 0, accuracies=(0.9, 0.97))
    text = text_of([*study(names=("bn", "l1")), alone], command="study.py '``` b'")
    assert "**A single seed gives no interval and decides nothing: `l2`.**" in text
    assert "The command was" not in text_of([alone])
    assert "**With only 3 seeds of a variant, intervals are wide.**" in text
    assert "````bash\nstudy.py '``` b'\n````" in text


def test_machines_and_versions_are_named_once():
    records = study(seeds=2)
    records[1]["packages"] = records[1]["packages"] | {"jax": "0.99"}
    records[2]["device"] = {"platform": "gpu", "kind": "Some GPU", "count": 2}
    machines = "They were made on `cpu` and 2 times `Some GPU` (`gpu`)"
    assert f"{machines}, with `python 3.11.7`, `jax 0.10.2 or 0.99`.\n" in text_of(records)


def test_runs_without_mistakes_have_no_pictures_of_them(tmp_path):
    report.write([make_record("bn", seed, mistakes=0) for seed in (0, 1)], tmp_path)
    assert "No run misclassified an image." in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "hardest.png").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written") as error:
        report.write(study(1, ("a",)), tmp_path / "file" / "deeper")
    assert "\n" not in str(error.value)


def test_the_hardest_images_and_classes_are_those_with_most_errors():
    records = [make_record("gbn", mistakes=m, seed=m) for m in (1, 2)]  # 0; 0, 39
    records.append(make_record("bn", mistakes=3))  # 0, 20, 39
    records[1]["predictions"]["prediction"][0] = 5
    study = Study(records)
    assert [*study.hardest.index] == [0, 39, 20] and [*study.hardest.runs] == [3, 2, 1]
    assert [*study.hardest.true] == [0, 9, 0] and [*study.hardest.said] == [2, 1, 2]
    np.testing.assert_array_equal(study.hardest.image[39], records[1]["mistakes"]["images"][1])
    who = report.markdown(study).partition("Who gets them wrong")[2]
    assert cells(who, "1") == ["1", "0", "0", "3", "2 (1), 5 (1)", "2 (1)"]
    assert cells(who, "3") == ["3", "20", "0", "1", "", "2 (1)"]
    every = Study([make_record(mistakes=40), make_record("b", mistakes=0)])  # c is called c + 2
    (first, *_), pairs = every.confusions.itertuples(index=False), every.confusions
    assert len(pairs) == 10 and (pairs.both == 2).all() and first == (0, 2, 2, 0, 2)
    assert (0, 8, 0, 2, 2) in [*pairs.itertuples(index=False)]
    assert "| 1 | 0 and 2 | 2.00 | 0 for 2: 2.00, 2 for 0: 0.00 |" in report.markdown(every)


def opening_of(records):
    """The title and the answer of the report."""
    title, *paragraphs = text_of(records).partition("\n\n**")[0].split("\n\n")
    return title, " ".join(paragraphs).replace(MINUS, "-")


def test_the_title_and_the_descriptions_name_what_is_compared():
    assert opening_of(study(names=("bn",)))[0] == "# `bn` on MNIST"
    assert opening_of(study(names=("a", "b")))[0] == "# `a` and `b` compared on MNIST"
    records = with_config(study(1, ("bn", "l1", "l2", "l3")), norm="batch", dataset="/a/my_data")
    with_config(records[1:2], l1=1e-5)
    assert opening_of(records)[0] == "# 4 variants of L1 decay compared on my\\_data"
    assert cells(text_of(records).partition("## Diff")[0], "`bn`")[3] == "baseline: L1 decay 0"
    with_config(records[2:3], norm="ghost", teacher="runs/wide")
    assert "| ghost normalisation, teacher runs/wide |" in text_of(records)


def test_records_of_other_versions_are_compared_by_the_fields_that_they_have():
    records = study(seeds=2, names=("bn", "l2"))
    with_config(records[:2], removed=1)  # of a version that knew no `dropout`, but another field
    with_config(records[2:], l2=5e-4, dropout=0.0)
    results = text_of(records).partition("## Diff")[0]
    assert cells(results, "`bn`")[3] == "baseline: L2 decay 0, removed 1"
    assert cells(results, "**`l2`** (highest)")[3] == "L2 decay 0.0005"
    assert "`dropout=0.0`" in text_of(records)


def test_the_opening_says_what_is_shown_and_what_is_not():
    base = np.array([0.98, 0.981, 0.983, 0.982])
    luck = np.array([1e-4, -1e-4, 2e-4, -2e-4])
    better, worse = base + 0.005 + luck, base - 0.003 + luck
    records = of_variants({"bn": base, "up": better, "down": worse, "same": base + luck})
    assert opening_of(records)[1] == (
        "The highest mean accuracy on 40 test images is 98.650 % (95 % interval 98.439 to "
        "98.861), that of `up`. Compared with `bn`, in percentage points and at 95 % confidence "
        "after Holm's correction for 3 comparisons, shown to be more accurate: `up` (+0.500, "
        "interval +0.471 to +0.529); shown to be less accurate: `down` (-0.300, interval -0.329 "
        "to -0.271); not shown to differ: `same` (intervals from -0.029 to +0.029)."
    )
    assert opening_of(of_variants({"a": base, "b": base + luck}))[1] == (
        "The highest mean accuracy on 40 test images is 98.150 %, that of `a` and "
        "`b`. Compared with `a`, in percentage points and at 95 % "
        "confidence, not shown to differ: `b` (intervals from -0.029 to +0.029)."
    )
    _, answer = opening_of(of_variants({"a": [0.98], "b": [0.99]}))
    assert answer.endswith("takes two shared seeds with unequal differences.")
    assert opening_of(of_variants({"a": base}))[1] == (
        "The mean accuracy on 40 test images is 98.150 % (95 % interval 97.945 to 98.355), that "
        "of `a`."
    )


@pytest.mark.parametrize("split", ["test", "test[:40]", "train[-40:]", "test+train"])
def test_only_test_images_are_called_so(split):
    name = "test images" if split in ("test", "test[:40]") else f"images of `{split}`"
    text = text_of(with_config(study(seeds=2), validation_split=split))
    assert f"Each run was evaluated on 40 {name} after every epoch." in text
    assert ("test image" in text) == (name == "test images")


def test_sentences_follow_the_numbers():
    records = with_config(study(seeds=2), epochs=15, train_split="train[:600]")
    text = text_of(records)
    assert "Each run was trained for 15 epochs on `train[:600]` and evaluated on 40 test" in text
    records[-1]["config"]["epochs"] = 10
    assert "Each run was evaluated on 40 test images" in text_of(records)
    text = text_of(study(names=("bn", "l1")))
    assert "over the last 3 epochs" in text and "for 1 comparison (Holm)" in text
    text = text_of([make_record(accuracies=(0.97,), seed=seed) for seed in range(2)])
    assert "spread" not in text and "drop" not in text and "2 runs: 1 variant, seeds 0, 1." in text
    assert "over the last 5 epochs" in text_of([make_record(accuracies=(0.9,) * 7)])


def test_the_summary_fits_a_terminal():
    long = ["bn", "a_name_of_sixty_letters_" + "x" * 36, "worse"]
    records = [*study(names=long[:2]), diverged("worse", 0)]
    with_config(records, validation_split="train[-10000:]")
    summary = report.summary(Study(records), text_of(records))
    assert max(map(len, summary.splitlines())) <= 80 and not summary.endswith("\n")
    lines = [line.split() for line in summary.splitlines()]
    bn = Study(records).accuracies.loc["bn"]
    assert " ".join(lines[1]) == f"bn {bn['mean']:.3f} {interval(bn)} 6.0 38 0 of 3"
    assert lines[3] == ["worse", "1", "of", "1"]
    assert "difference to bn, pp" in summary and "`" not in summary and "\\" not in summary
    assert "a_name_of_sixty_lette…" in summary and "images of train[-10000:]" in summary
    records = study(names=("a<b_c", "d&e"))
    assert report.summary(Study(records), text_of(records)).count("a<b_c") == 3
