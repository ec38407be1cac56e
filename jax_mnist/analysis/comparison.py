"""What the parts of a report need of a study: its runs, its data and its differences."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_mnist.analysis import claims, mistakes, run, statistics
from jax_mnist.analysis.markup import code, escape
from jax_mnist.analysis.mistakes import HardImage
from jax_mnist.analysis.statistics import Estimate
from jax_mnist.config import NO_EFFECT, with_defaults
from jax_mnist.data.catalogue import CATALOGUE
from jax_mnist.runs.record import Record

Quote = Callable[[str], str]  # how a name is written: `code` in Markdown, `str` in plain text

MAX_HARD_IMAGES = 25
BASELINE = "bn"  # what the others are compared with, if nothing is said and the study has it


class Comparison:
    """A study of one or more variants; `all_...` includes the runs that diverged.

    Args:
      records: Its runs.
      baseline: The variant that the others are compared with; empty for `BASELINE` or else the
        first.
      beside: The records of other studies, by names, whose verdicts on the claims of the original
        are shown too.

    Raises:
      ValueError: Every run diverged, all of the baseline diverged, or there is no such variant; or
        see `statistics.by_variant`.

    Attributes:
      baseline: The variant that the others are compared with.
      accuracies: The mean final accuracy of each variant and its interval, in percent.
      best: The variants with the highest mean accuracy; empty if there is nothing to compare.
      effects: The paired differences of the others to the baseline, in percentage points.
      data: The name of the data set, or of several.
      splits: The validation splits, which hold the same images.
      varied: The fields of the config in which the variants differ.
      of_original: Whether all variants of the original are there, on its data.
    """

    def __init__(
        self,
        records: Sequence[Record],
        baseline: str = "",
        beside: Mapping[str, Sequence[Record]] | None = None,
    ) -> None:
        self.beside = {name: Comparison(others) for name, others in (beside or {}).items()}
        records = _with_the_same_fields(records)
        self.all_variants = statistics.by_variant(records)
        self.variants = statistics.without_diverged(self.all_variants)
        if not self.variants:
            raise ValueError("every run diverged: lower the learning rate or the decay")
        self.all_records, self.records = (
            [record for runs in variants.values() for record in runs.values()]
            for variants in (self.all_variants, self.variants)
        )
        self.diverged = len(self.records) < len(self.all_records)
        if baseline and baseline not in self.variants:
            raise ValueError(
                f"the baseline {baseline!r} has no run that can be used: it is not in this study, "
                "or all its runs diverged"
            )
        default = BASELINE if BASELINE in self.variants else next(iter(self.variants))
        self.baseline = baseline or default
        self.accuracies = {
            name: statistics.accuracy_interval([run.final_accuracy(r) for r in runs.values()])
            for name, runs in self.variants.items()
        }
        highest = max(accuracy.mean for accuracy in self.accuracies.values())
        several = len(self.variants) > 1
        self.best = [n for n, a in self.accuracies.items() if several and a.mean == highest]
        self.effects = self.differences(self.baseline)

        configs = [record["config"] for record in self.all_records]
        fields = [f for f in configs[0] if f not in ("name", "seed", "replicas", *NO_EFFECT)]
        self.varied = [f for f in fields if any(c.get(f) != configs[0][f] for c in configs)]
        self.common = {f: configs[0][f] for f in fields if f not in self.varied}
        self.data = " and ".join(dict.fromkeys(_data_name(config) for config in configs))
        self.splits = sorted({str(config.get("validation_split", "test")) for config in configs})
        self.of_original = self.data == "MNIST" and self.all_variants.keys() >= set(claims.ORIGINAL)

    def images(self, quote: Quote = code) -> str:
        """What the validation images are called: `test images`, or by the name of their split."""
        if all(re.fullmatch(r"test(\[[^]+]*\])?", split) for split in self.splits):
            return "test images"
        return f"images of {' or '.join(map(quote, self.splits))}"

    def counted_images(self, quote: Quote = code) -> str:
        """The number of images and what they are called."""
        return f"{len(self.records[0]['predictions']['label']):,} {self.images(quote)}"

    def differences(self, baseline: str) -> dict[str, Estimate]:
        """The paired differences in accuracy of all other variants to a baseline."""
        others = [name for name in self.variants if name != baseline]
        return statistics.differences(self.variants, run.final_accuracy, others, baseline)

    @functools.cached_property
    def main_effects(self) -> dict[str, Estimate]:
        """What each varied field does to the accuracy on average, if the study is factorial.

        It is if the variants are all combinations of two values of each of several fields. The
        effect of a field is the mean difference over the pairs of variants that differ in it alone,
        by seed, and its sign that of the change away from the baseline. The names are settings in
        Markdown, and the p-values are corrected for the number of fields.
        """
        settings = {
            name: tuple(repr(self._config(name).get(field)) for field in self.varied)
            for name in self.variants
        }
        names = {values: name for name, values in settings.items()}
        base = settings[self.baseline]
        factorial = len(names) == len(self.all_variants) == 2 ** len(base) > 2 and all(
            len(set(values)) == 2 for values in zip(*names, strict=True)
        )
        effects = {}
        for i, field in enumerate(self.varied if factorial else ()):
            changed = [name for values, name in names.items() if values[i] != base[i]]
            pairs = [(n, names[*settings[n][:i], base[i], *settings[n][i + 1 :]]) for n in changed]
            effect = statistics.mean_difference(self.variants, run.final_accuracy, pairs)
            if effect:
                effects[_setting(field, self._config(changed[0]).get(field))] = effect
        return statistics.holm(effects)

    @functools.cached_property
    def verdicts(self) -> list[claims.Verdict]:
        """The claims of the original that the study has the variants for."""
        of_all = claims.judge(self.all_variants) if self.of_original else []
        more = claims.judge_more_regularizers(self.all_variants) if self.data == "MNIST" else None
        return [*of_all, more] if more else of_all

    @functools.cached_property
    def hardest(self) -> list[HardImage]:
        """The images that most runs get wrong."""
        return mistakes.hardest(self.records, MAX_HARD_IMAGES)

    def mean(self, name: str, measure: statistics.Measure) -> float:
        """The mean of a measure over the runs of a variant that did not diverge."""
        runs = self.variants[name].values()
        return sum(map(measure, runs)) / len(runs)

    def description(self, name: str) -> str:
        """What distinguishes a variant from the baseline, or the baseline's values; Markdown."""
        values, base = self._config(name), self._config(self.baseline)
        own = [f for f in self.varied if name == self.baseline or values.get(f) != base.get(f)]
        text = ", ".join(_setting(f, values.get(f)) for f in own)
        return f"baseline: {text}" if name == self.baseline and text else text

    def _config(self, name: str) -> Mapping[str, Any]:
        """The config of a variant, as its first run has it."""
        return next(iter(self.all_variants[name].values()))["config"]


def _with_the_same_fields(records: Sequence[Record]) -> list[Record]:
    """Adds defaults of fields that others have: records of earlier versions lack later fields."""
    known = {field for record in records for field in record["config"]}
    completed = ((r, with_defaults(r["config"])) for r in records)
    return [{**r, "config": {f: c[f] for f in c if f in known}} for r, c in completed]


def field_name(field: str) -> str:
    """Returns a field of a config as words; Markdown."""
    known = {"l1": "L1 decay", "l2": "L2 decay", "norm": "normalisation"}
    return known.get(field) or escape(field.replace("_", " "))


def _setting(field: str, value: Any) -> str:
    """A value and its field: `ghost normalisation`, `no teacher`, `L2 decay 0.0005`; Markdown."""
    if isinstance(value, str) and "/" not in value:
        return f"{escape(value) or 'no'} {field_name(field)}"
    return f"{field_name(field)} {escape(f'{value:g}' if isinstance(value, float) else value)}"


def _data_name(config: Mapping[str, Any]) -> str:
    name = str(config.get("dataset", "mnist"))
    if name in CATALOGUE:  # FashionMNIST is known as Fashion-MNIST
        return re.sub("(?<=[a-z])(?=[A-Z])", "-", CATALOGUE[name].builder)
    return Path(name).name


def machines(records: Sequence[Record]) -> list[str]:
    """Names each kind of machine that runs were made on, once; Markdown."""
    found = []
    for device in (record["device"] for record in records):
        platform = "" if device["kind"] == device["platform"] else f" ({code(device['platform'])})"
        number = f"{device['count']} times " if device["count"] > 1 else ""
        found.append(f"{number}{code(device['kind'])}{platform}")
    return list(dict.fromkeys(found))


def versions(records: Sequence[Record]) -> list[str]:
    """Names each package with its version, or with all that runs had; Markdown."""
    found: dict[str, dict[str, None]] = {}  # of each package, in their order
    for record in records:
        for package, version in record["packages"].items():
            found.setdefault(package, {})[version] = None
    return [code(f"{package} {' or '.join(several)}") for package, several in found.items()]
