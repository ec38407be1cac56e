"""Writes the tables of numbers in README.md and docs from the CSV files in docs.

python benchmarks/tables.py

A table stands between two comments. The first names the function of this file that makes it, its
CSV file and its options:

    <!-- table: variants study/results.csv baseline=bn more=spread,drop -->
    <!-- end of table -->
"""

import csv
import re
from pathlib import Path

import pandas as pd

from jax_mnist import config
from jax_mnist.analysis import table
from jax_mnist.analysis.words import number

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
MARKED = re.compile(r"(<!-- table: (.*?) -->\n).*?(<!-- end of table -->)", re.DOTALL)

RECIPES = {"falling rate": "study/results.csv", "constant rate": "plain/results.csv"}
REGULARIZERS = {"l2": "L2 decay", "l1": "L1 decay", "gbn": "ghost batch norm"}
MORE = {  # columns of `variants`: title, column of the CSV file, function of its values, digits
    "spread": ("spread, pp", "spread_pp", "mean", 3),
    "drop": ("largest drop, pp", "largest_drop_pp", "mean", 2),
    "loss": ("loss", "loss", "mean", 4),
    "seconds": ("seconds", "seconds", "median", 0),
    "shown": ("shown with 80 %, pp", "shown_pp", "first", 3),
}


def rewritten(page: Path) -> str:
    """The text of a page with each of its tables made anew."""

    def make(match: re.Match[str]) -> str:
        name, *words = match[2].split()
        path, options = words[:1], dict(word.split("=", 1) for word in words[1:])
        titles, *rows = TABLES[name](*path, **options)
        lines = [titles, ["---"] * len(titles), *rows]
        texts = (" ".join(["|", *(f"{cell} |".lstrip() for cell in line)]) for line in lines)
        return match[1] + "\n".join(texts) + "\n" + match[3]

    return MARKED.sub(make, page.read_text())


def read(path: str) -> pd.DataFrame:
    """A CSV file in docs."""
    return pd.read_csv(DOCS / path)


# Cells.


def interval(estimate: pd.Series, digits: int = 3, sign: str = "") -> str:
    """The interval of an estimate, or nothing where there is none."""
    low, high = (number(estimate[end], digits, sign) for end in ("low", "high"))
    return f"{low} to {high}" if low else ""


def difference(estimate: pd.Series) -> list[str]:
    """A difference in accuracy in percentage points, its interval and its p-value."""
    p = "<0.001" if estimate.p < 0.0005 else number(estimate.p)
    return [number(estimate["mean"], sign="+"), interval(estimate, sign="+"), p]


def in_images(effect: pd.Series) -> str:
    """A difference in accuracy in images of 10,000, with its interval."""
    digits = 0 if abs(effect["mean"]) >= 0.1 else 1
    return f"{number(100 * effect['mean'], digits, '+')} ({interval(100 * effect, digits)})"


def spread(lucks: pd.DataFrame) -> str:
    """The standard deviation of the runs within their variants, in images of 10,000."""
    return f"±{number(100 * lucks.var().mean() ** 0.5, 0)}"


# Statistics of the two studies of eight variants.


def effects(path: str) -> pd.DataFrame:
    """The effect of each regulariser, over the four pairs of variants that differ in it alone."""
    wide = table.by_seed(read(path))
    settings = {name: {key: key in name.split("_") for key in REGULARIZERS} for name in wide}
    return table.effects(wide, pd.DataFrame(settings).T, "bn")


def gain() -> pd.Series:
    """The effect of the recipe with the falling rate, in the mean of the eight variants."""
    falling, constant = (table.by_seed(read(path)) for path in RECIPES.values())
    return pd.Series(table.estimate((falling - constant).mean(axis=1)))


def luck(path: str) -> pd.DataFrame:
    """How much better each run is than the mean of its variant, seeds by variants."""
    wide = table.by_seed(read(path))
    return wide - wide.mean()


# Tables: lines of cells, of which the first has the titles.


def answer() -> list[list[str]]:
    """Every effect of the two studies in images of 10,000."""
    by_recipe = [effects(path) for path in RECIPES.values()]
    return [
        ["what changes", *RECIPES],
        ["the recipe: falling instead of constant rate", in_images(gain()), ""],
        *([REGULARIZERS[key], *(in_images(e.loc[key]) for e in by_recipe)] for key in REGULARIZERS),
        ["luck of one run (standard deviation)", *(spread(luck(p)) for p in RECIPES.values())],
    ]


def variants(path: str, baseline: str, more: str = "") -> list[list[str]]:
    """The mean of each variant, its paired difference to a baseline (p after Holm), and more."""
    runs = read(path)
    wide = table.by_seed(runs)
    accuracies, differences = table.accuracies(runs), table.differences(wide, baseline)
    titles = ["variant", "accuracy, %", "95 % interval"]
    lines = [[*titles, f"difference to `{baseline}`, pp", "95 % interval", "p"]]
    for name, accuracy in accuracies.iterrows():
        compared = difference(differences.loc[name]) if name in differences.index else [""] * 3
        lines.append([f"`{name}`", number(accuracy["mean"]), interval(accuracy), *compared])

    # More columns, each a number of the runs of a variant.
    pairs = table.paired(wide, baseline)
    shown = pairs.apply(table.could_show, level=table.LEVEL / len(differences))
    runs["shown_pp"] = runs.variant.map(shown)
    for title, column, function, digits in (MORE[option] for option in more.split(",") if option):
        values = runs.groupby("variant")[column].agg(function)
        lines[0].append(title)
        for cells, name in zip(lines[1:], accuracies.index, strict=True):
            cells.append(number(values[name], digits))
    return lines


def claims(path: str) -> list[list[str]]:
    """The verdicts of the two studies on the claims of the original."""
    judged = read(path).rename(columns={"effect": "mean"})
    lines = {"": ["claim", *(title for recipe in RECIPES for title in (recipe, "effect", "p"))]}
    for _, claim in judged.iterrows():
        mean, ends, p = difference(claim)
        effect = f"{mean} {claim.unit} over {claim.rival} ({ends})"
        lines.setdefault(claim.claim, [claim.claim]).extend([f"**{claim.verdict}**", effect, p])
    return [*lines.values()]


def cells(path: str) -> list[list[str]]:
    """Measured numbers, as they stand in the file."""
    return [*csv.reader((DOCS / path).open(newline=""))]


def fields() -> list[list[str]]:
    """The fields of a config, from the table that defines them."""
    titles, _, *rows = (line.strip("| ").split(" | ") for line in config.table().splitlines())
    return [titles, *rows]


TABLES = {
    "answer": answer, "variants": variants, "claims": claims, "cells": cells, "fields": fields
}  # fmt: skip

if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rewritten(page))
