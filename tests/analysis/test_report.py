"""The report says what the records hold, whatever their texts."""

import html
import re

import pytest
from records import diverged, make_record

from jax_mnist.analysis import claims, report, statistics
from jax_mnist.analysis.run import final_accuracy
from jax_mnist.runs import history


def study(seeds=3, names=("bn", "l1", "l2", "gbn")):
    return [
        make_record(
            name, seed, accuracies=(0.9, 0.98, 0.985 + 0.001 * n + 1e-4 * (seed * (3 + n) % 7))
        )
        for n, name in enumerate(names)
        for seed in range(seeds)
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    records = study()
    report.write(records, folder, command="python scripts/study.py --seeds=3")
    return folder, statistics.by_variant(records)


def cells(text, first):
    """The cells of the only table row that begins with `first`."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_files(written):
    assert {path.name for path in written[0].iterdir()} == {
        "report.md", "report.html", "accuracy.png", "loss.png", "differences.png", "hardest.png",
    }  # fmt: skip


def test_the_table_has_the_numbers(written):
    folder, variants = written
    text = (folder / "report.md").read_text()
    results, differences = text.split("## Differences")
    for name, runs in variants.items():
        accuracies = [final_accuracy(run) for run in runs.values()]
        mean, low, high, _ = statistics.mean_interval(accuracies)
        row = cells(results, f"`{name}`")
        assert row[1:3] == [f"{mean:.3f}", f"{low:.3f} to {high:.3f}"]
        assert row[3:6] == [f"{max(accuracies):.2f}", f"{min(accuracies):.2f}", "6.0"]
        assert row[8] == "38"  # three epochs of 12.5 s
    found = statistics.differences(variants, final_accuracy, ("l1", "l2", "gbn"), "bn")["l2"]
    row = cells(differences.split("## What was run")[0], "`l2`")
    assert row[1] == f"{found.mean:+.3f}"
    assert row[2] == f"{found.low:+.3f} to {found.high:+.3f}".replace("-", "\N{MINUS SIGN}")
    assert "With only 3 seeds of a variant" in text
    assert "by `python scripts/study.py --seeds=3`" in text


def test_verdicts_are_those_of_the_rule(written):
    folder, variants = written
    text = (folder / "report.md").read_text()
    verdicts = claims.judge(variants)
    assert len(verdicts) == 7
    for verdict in verdicts:
        assert cells(text, verdict.claim)[1].strip("*") == verdict.verdict


def test_of_other_data_the_original_claims_nothing():
    records = study(seeds=2)
    for record in records:
        record["config"]["dataset"] = "fashion_mnist"
    text = report.text(records)
    assert "original" not in text and "**" not in text.partition("## Errors")[2]
    assert "## Differences to `bn`" in text and "one taken for the other" in text


def test_the_page_needs_no_other_file(written):
    page = (written[0] / "report.html").read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page
    assert page.count("<table>") == page.count('<div class="table">') == 5
    assert 'name="viewport"' in page


def test_texts_from_strangers_stay_texts(tmp_path):
    names = ("bn", "<script>alert(1)</script>", "a|b`c*d_e_f![x](y)")
    records = study(seeds=2, names=names)
    for record in records:
        record["config"]["<b>"] = record["name"]
        record["device"]["kind"] = "x](http://a.b)<img src=http://a.b/c.png>\n# big"
        record["label_names"] = ["<i>0", *"123456789"]
    report.write(records, tmp_path)
    page = (tmp_path / "report.html").read_text()
    for tag in ("<script", "<b>", "<i>", "<img src=http", "<a ", "<em>d"):
        assert tag not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a|b`c*d_e_f![x](y)" in html.unescape(page)
    assert page.count("<h1>") == 1
    assert "<script" not in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    "records", [study(1, ("bn", "l1")), study(names=("l2", "gbn")), study(1, ("a",))]
)
@pytest.mark.filterwarnings("error")
def test_few_seeds_or_variants_give_what_is_possible(tmp_path, records):
    report.write(records, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "nan" not in text
    assert ("A single seed gives no interval" in text) == (len({r["seed"] for r in records}) == 1)
    assert ("## Differences" in text) == (records[0]["name"] == "bn")


def test_diverged_runs_are_named_and_left_out(written):
    bad = [diverged("l2", 7, epochs=2), diverged("worse", 0), diverged("worse", 1)]
    text = report.text([*study(), *bad])
    assert "**Diverged: 3 of 15 runs.**" in text and "`l2` seed 7 in epoch 2" in text
    results = text.partition("## Differences")[0]
    expected = (written[0] / "report.md").read_text().partition("## Differences")[0]
    for name, number in {"bn": "0 of 3", "l2": "1 of 4"}.items():
        assert cells(results, f"`{name}`") == [*cells(expected, f"`{name}`"), number]
    assert cells(results, "`worse`") == ["`worse`", *[""] * 8, "2 of 2"]
    assert "Runs that diverged count in claims about variants" in text
    with pytest.raises(ValueError, match="every run diverged"):
        report.text(bad)


def test_variants_without_a_common_seed_leave_a_report_that_says_so():
    others = [make_record("l2", seed, accuracies=(0.9, 0.97)) for seed in (7, 8)]
    text = report.text([*study(names=("bn", "l1")), *others])
    assert "No seed in common with `bn`: `l2`." in text
    assert cells(text.partition("## Differences")[0], "`l2`")[1] == "97.000"
    text = report.text([*study(names=("bn",)), *others])
    assert "No seed in common with `bn`: `l2`." in text and "## Differences" not in text


def test_a_variant_of_one_seed_is_named():
    alone = make_record("l2", 0, accuracies=(0.9, 0.97))
    text = report.text([*study(names=("bn", "l1")), alone], "study.py 'a b'")
    assert "**A single seed gives no interval and decides nothing: `l2`.**" in text
    assert "**With only 3 seeds of a variant, its intervals are wide.**" in text
    assert "by study.py 'a b'." in text


def test_every_machine_and_version_is_named():
    records = study(seeds=2)
    records[1]["packages"] = records[1]["packages"] | {"jax": "0.99"}
    records[2]["device"] = {"platform": "gpu", "kind": "Some GPU", "count": 1}
    made = report.text(records).rpartition("They were made on")[2]
    assert made.count("; ") == 2 and "`jax 0.99`" in made and "`Some GPU` (`gpu`)" in made


def test_runs_without_mistakes_have_no_pictures_of_them(tmp_path):
    report.write([make_record("bn", seed, mistakes=0) for seed in (0, 1)], tmp_path)
    assert "No run misclassified an image." in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "hardest.png").exists()


def test_an_unwritable_folder_ends_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written") as error:
        report.write(study(1, ("a",)), tmp_path / "file" / "deeper")
    assert "\n" not in str(error.value)


def test_histories_make_the_same_report_as_records(written, tmp_path):
    for number, record in enumerate(study()):
        history.save(tmp_path / f"{number}.pkl", record)
    loaded = [history.load(path) for path in sorted(tmp_path.glob("*.pkl"))]
    rows = sorted(line for line in report.text(loaded).splitlines() if line.startswith("|"))
    expected = (written[0] / "report.md").read_text().splitlines()
    assert rows == sorted(line for line in expected if line.startswith("|"))
