"""The tables and the picture of README.md and docs are those of the committed runs."""

import re
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from jax_mnist.analysis import claims, table
from jax_mnist.analysis.study import Study
from jax_mnist.runs import study

ROOT = Path(__file__).parents[1]
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / "benchmarks")
    import answer
    import tables


def words(page):
    return " ".join((ROOT / page).read_text().split())


def test_to_write_the_tables_anew_changes_nothing():
    assert [page.name for page in tables.PAGES if tables.rewritten(page) != page.read_text()] == []


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_no_table_has_measured_numbers_but_those_that_are_written(page):
    by_hand = tables.MARKED.sub("", page.read_text())
    assert re.findall(r"^\|.*\| \W?\d+\.\d\d.*", by_hand, re.MULTILINE) == []


def test_numbers_are_rounded_half_away_from_zero_and_zero_has_no_sign():
    shown = [tables.number(value, 1, "+") for value in (0.25, -1.85, 1.15, -0.04)]
    assert shown == ["+0.3", "\N{MINUS SIGN}1.9", "+1.2", "0.0"]


def test_the_picture_shows_the_numbers_of_the_table():
    assert Image.open(answer.PICTURE).text["Description"] == answer.description()


def test_the_answer_in_words_has_the_numbers_of_the_runs():
    readme, results = words("README.md"), words("docs/results.md")
    falling, constant = (tables.effects(path) for path in tables.RECIPES.values())
    gain = f"{100 * tables.gain()['mean']:.0f}"
    least, most = (f"{100 * falling.loc['l2', end]:.0f}" for end in ("low", "high"))
    low, high = (f"{-100 * constant.loc['l2', end]:.0f}" for end in ("high", "low"))
    assert f"gets {gain} more of 10,000 test images right" in readme
    assert f"adds {least} to {most}, but costs {low} to {high} with the constant" in readme
    assert f"(p = {falling.loc['l2', 'p']:.3f})" in results and constant.loc["l2", "p"] < 0.001
    others = pd.concat([falling, constant]).drop("l2").p
    assert f"(p from {others.min():.3f} to {others.max():.3f})" in results
    wide = table.by_seed(tables.read("study/results.csv"))
    assert wide.eq(wide.max(axis=1), axis=0).any().sum() == 7  # of eight variants come first


@pytest.mark.parametrize("name", ["study", "plain"])
def test_the_committed_runs_and_claims_are_those_of_the_records(name, tmp_path):
    with tarfile.open(tables.DOCS / name / "records.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    records = study.finished(tmp_path / "runs" / name)
    runs = table.to_csv(table.of_records(records)).splitlines()
    assert sorted(runs) == sorted((tables.DOCS / name / "results.csv").read_text().splitlines())
    committed = tables.read("claims.csv").query("study == @name")
    judged = claims.judge(Study(records))
    for row, verdict in zip(committed.itertuples(), judged, strict=True):
        assert (row.claim, row.verdict, row.rival) == (
            verdict.claim,
            verdict.verdict,
            verdict.rival,
        )
        effect = verdict.effect[["mean", "low", "high", "p"]]
        assert [row.effect, row.low, row.high, row.p] == pytest.approx(effect, rel=1e-5)


@pytest.mark.parametrize("path", sorted(tables.DOCS.rglob("*.csv")), ids=lambda path: path.name)
def test_a_committed_file_of_numbers_is_named_by_a_page(path):
    name = f"{path.relative_to(tables.DOCS)}"
    assert any(name in page.read_text() for page in tables.PAGES)
