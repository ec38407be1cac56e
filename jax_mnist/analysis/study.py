"""The facts of a study: what its variants are, how they differ, what they get wrong."""

import functools
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jax_mnist.analysis import table
from jax_mnist.analysis.words import code, escape
from jax_mnist.config import NO_EFFECT, with_defaults
from jax_mnist.data.catalogue import CATALOGUE
from jax_mnist.runs.record import Record

BASELINE = "bn"  # what the others are compared with, if nothing is said and the study has it
MAX_HARD_IMAGES = 25
NO_SETTING = {"name", "seed", "replicas", *NO_EFFECT}  # fields that do not make a variant


class Study:
    """The runs of one or more variants, which were validated on the same images.

    Args:
      records: The runs. Their texts may come from strangers.
      baseline: The variant that the others are compared with; empty for `BASELINE` or else the
        first.

    Raises:
      ValueError: Every run diverged, all of the baseline diverged, or there is no such variant; or
        see `table.of_records`.

    Attributes:
      all_runs, all_records: Its table (`table.of_records`), and the record of each row.
      runs, records: The same without the runs that diverged.
      all_variants, variants: The names in both, in their order.
      baseline: The variant that the others are compared with.
      wide, accuracies, differences: See `table.by_seed` and the functions of these names.
      best: The variants with the highest mean accuracy; empty if there is nothing to compare.
      configs: The config of each variant, as its first run has it.
      varied: The fields of the config in which runs differ.
      common: The fields in which they do not, and their values.
      data: The name of the data set, or of several.
      splits: The validation splits, which hold the same images.
    """

    def __init__(self, records: Sequence[Record], baseline: str = "") -> None:
        self.all_runs = table.of_records(records)
        by_run = {(record["name"], record["seed"]): record for record in records}
        self.all_records = [by_run[run.variant, run.seed] for run in self.all_runs.itertuples()]
        usable = self.all_runs.diverged == 0
        self.runs = self.all_runs[usable]
        self.records = [*itertools.compress(self.all_records, usable)]
        self.all_variants = [*self.all_runs.variant.unique()]
        self.variants = [*self.runs.variant.unique()]
        if not self.variants:
            raise ValueError("every run diverged: lower the learning rate or the decay")
        if baseline and baseline not in self.variants:
            raise ValueError(
                f"the baseline {baseline!r} has no run that can be used: it is not in this study, "
                "or all its runs diverged"
            )
        first = BASELINE if BASELINE in self.variants else self.variants[0]
        self.baseline = baseline or first
        self.wide, self.accuracies = table.by_seed(self.runs), table.accuracies(self.runs)
        self.differences = table.differences(self.wide, self.baseline)
        highest = self.accuracies["mean"] > self.accuracies["mean"].max() - 1e-9
        self.best = [*self.accuracies.index[highest]] if len(self.variants) > 1 else []

        # Records of earlier versions lack later fields, which had their defaults.
        known = {field for record in records for field in record["config"]} - NO_SETTING
        configs = [with_defaults(record["config"]) for record in self.all_records]
        first_runs = self.all_runs.variant.drop_duplicates()
        self.configs = {name: configs[row] for row, name in first_runs.items()}
        fields = [f for f in dict.fromkeys(f for c in configs for f in c) if f in known]
        self.varied = [f for f in fields if any(c.get(f) != configs[0].get(f) for c in configs)]
        self.common = {f: configs[0][f] for f in fields if f not in self.varied}
        self.data = " and ".join(dict.fromkeys(_data_name(config) for config in configs))
        self.splits = sorted({str(config["validation_split"]) for config in configs})

    @functools.cached_property
    def effects(self) -> pd.DataFrame:
        """See `table.effects`; the names are those of settings, in Markdown."""
        settings = {n: {f: repr(c.get(f)) for f in self.varied} for n, c in self.configs.items()}
        effects = table.effects(self.wide, pd.DataFrame(settings).T, self.baseline)
        base = self.configs[self.baseline]
        others = {
            field: next(v for c in self.configs.values() if (v := c.get(field)) != base.get(field))
            for field in effects.index
        }
        return effects.rename(index=lambda field: _setting(field, others[field]))

    def describe(self, name: str) -> str:
        """What distinguishes a variant from the baseline, or the baseline's values; Markdown."""
        own, base = self.configs[name], self.configs[self.baseline]
        changed = [f for f in self.varied if name == self.baseline or own.get(f) != base.get(f)]
        text = ", ".join(_setting(field, own[field]) for field in changed if field in own)
        return f"baseline: {text}" if name == self.baseline and text else text

    @property
    def images(self) -> str:
        """The validation images: `10,000 test images`, or by the name of their split; Markdown."""
        number = f"{len(self.records[0]['predictions']['label']):,}"
        if all(re.fullmatch(r"test(\[[^]+]*\])?", split) for split in self.splits):
            return f"{number} test images"
        return f"{number} images of {' or '.join(map(code, self.splits))}"

    @functools.cached_property
    def mistakes(self) -> pd.DataFrame:
        """A row for each mistake of each run: `variant`, `position`, `image`, `true` and `said`."""
        tables = []
        for record in self.records:
            positions, images = record["mistakes"]["index"], record["mistakes"]["images"]
            true, said = (record["predictions"][k][positions] for k in ("label", "prediction"))
            columns = {"position": positions, "image": [*images], "true": true, "said": said}
            tables.append(pd.DataFrame(columns).assign(variant=record["name"]))
        return pd.concat(tables)

    @functools.cached_property
    def hardest(self) -> pd.DataFrame:
        """The images that most runs get wrong, by position; `said` is the most frequent error.

        `runs` is how many get it wrong. Ties stay in the order of the data.
        """
        runs = self.mistakes.groupby("position").size()
        runs = runs.sort_values(ascending=False, kind="stable").head(MAX_HARD_IMAGES)
        images = self.mistakes[self.mistakes.position.isin(runs.index)].groupby("position")
        columns = images[["image", "true"]].first().loc[runs.index]
        return columns.assign(runs=runs, said=images.said.agg(lambda said: said.mode()[0]))

    @functools.cached_property
    def confusions(self) -> pd.DataFrame:
        """The mean errors per run between any two classes that some run confuses, most first.

        The columns are the classes `a` and `b`, how often a is taken for b (`forward`) and b for a
        (`backward`), and the sum of `both`.
        """
        mean = np.mean([confusion_matrix(record) for record in self.records], axis=0)
        a, b = np.triu_indices(len(mean), 1)
        pairs = pd.DataFrame({"a": a, "b": b, "forward": mean[a, b], "backward": mean[b, a]})
        pairs["both"] = pairs.forward + pairs.backward
        return pairs[pairs.both > 0].sort_values("both", ascending=False, kind="stable")


def confusion_matrix(record: Record) -> np.ndarray:
    """Counts the validation images by true class (rows) and predicted class (columns)."""
    classes = len(record["label_names"])
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (record["predictions"]["label"], record["predictions"]["prediction"]), 1)
    return counts


def field_name(field: str) -> str:
    """Returns a field of a config as words; Markdown."""
    known = {"l1": "L1 decay", "l2": "L2 decay", "norm": "normalisation"}
    return known.get(field) or escape(field.replace("_", " "))


def _setting(field: str, value: Any) -> str:
    """A value and its field: `ghost normalisation`, `no teacher`, `L2 decay 0.0005`; Markdown."""
    if isinstance(value, str) and "/" not in value:
        return f"{escape(value) or 'no'} {field_name(field)}"
    return f"{field_name(field)} {escape(f'{value:g}' if isinstance(value, float) else value)}"


def _data_name(config: dict[str, Any]) -> str:
    name = str(config["dataset"])
    if name in CATALOGUE:  # FashionMNIST is known as Fashion-MNIST
        return re.sub("(?<=[a-z])(?=[A-Z])", "-", CATALOGUE[name].builder)
    return Path(name).name
