"""Figures of runs and studies, drawn from their records alone.

Each is a `matplotlib.figure.Figure` that needs no display and touches no global state, 8 inches
wide. Saved by `save` it is 1600 pixels wide: sharp at the 800 pixels that a README shows. In a
notebook it shows by itself.
"""

import base64
import io
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as _Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image

from jax_mnist.analysis import table
from jax_mnist.analysis.study import Study, confusion_matrix
from jax_mnist.analysis.words import count, plain, shorten
from jax_mnist.files import PathLike, write_atomically
from jax_mnist.runs.record import Record, has_diverged, rank_mistakes

DPI = 200
FEW_SEEDS = 5  # the curves of so many are drawn one by one
STYLE: Any = {
    "axes.edgecolor": "0.6",
    "axes.grid": True,
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "font.size": 10,
    "grid.color": "0.9",
    "legend.frameon": False,
    "text.parse_math": False,  # names are shown literally, whatever characters they have
    "text.usetex": False,
}
_BLUE = "#0072B2"
_LABELS = {"accuracy": "accuracy (%), stretched towards 100", "loss": "cross-entropy (logarithmic)"}


class Figure(_Figure):
    """A figure that a notebook shows as `save` writes it, whether or not pyplot is imported."""

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        drawn = base64.b64encode(png(self)).decode()
        return {"image/png": drawn}, {"image/png": {"width": round(100 * self.get_figwidth())}}


# Curves: of one run, of several, of a study.


@matplotlib.rc_context(STYLE)
def curves(
    records: Sequence[Record], metric: str, images: str = "", narrow: bool = False
) -> Figure:
    """Draws a validation metric over epochs, with a panel for each variant.

    A panel shows the mean over seeds, with its last value; up to `FEW_SEEDS` seeds as thin lines,
    or the 95 % interval of more; and in grey the means of the other variants. Seeds that diverged
    are left out if a variant has others.

    Args:
      records: The runs.
      metric: `"accuracy"` or `"loss"`. The axis of accuracies is logarithmic in the error, which
        separates 99.4 from 99.5 % in the same picture as the first epoch's 90 %.
      images: What the runs were validated on, for the title.
      narrow: Whether the figure is for a phone: two panels beside each other rather than four.
    """
    groups = by_name(records)
    heights = [_heights(runs, metric) for runs in groups.values()]
    columns = min(2 if narrow else 4, len(groups))
    rows = math.ceil(len(groups) / columns)
    height = 2.2 * rows if rows > 1 else 3.5
    width = 4.4 if narrow else 8
    figure = Figure(figsize=(width, 1.2 + height), layout="constrained")
    figure.suptitle(f"Validation {metric}{f' on {shorten(images, 48)}' * bool(images)}")
    figure.supylabel(_LABELS[metric], fontsize=11)
    panels = [*figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat]
    _scale(panels[0], heights, metric)  # all panels share its axes
    legend: dict[str, Any] = {}
    for number, (name, runs) in enumerate(groups.items()):
        axes, seeds = panels[number], heights[number]
        legend |= _draw_seeds(axes, seeds)
        for mean in (other.mean(axis=0) for other in heights if other is not seeds):
            grey = axes.plot(range(1, 1 + len(mean)), mean, color="0.75", linewidth=0.8, zorder=1)
            legend["means of the others"] = grey[0]
        of = f"{len(seeds)} of {len(runs)} seeds: " * (len(seeds) < len(runs))
        of = of or f"seed {runs[0]['seed']}: " * (len(runs) == 1)
        title = f"{shorten(name, 18)}\n{of}{_text(seeds[:, -1].mean(), metric)}"
        axes.set_title(title, fontsize=10.5)
        if number + columns >= len(groups):
            axes.set_xlabel("epoch", fontsize=10)
            axes.tick_params(labelbottom=True)
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    if len(legend) > 1:
        figure.legend(
            [*legend.values()],
            [*legend],
            loc="outside lower center",
            ncols=1 if narrow else 3,
            fontsize=9,
        )
    return figure


def by_name(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Groups records by their names; one whose name and seed came before gets another name."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        name, number = record["name"], 1
        while any(record["seed"] == other["seed"] for other in groups.get(name, [])):
            number += 1
            name = f"{record['name']} #{number}"
        groups.setdefault(name, []).append(record)
    return groups


def _heights(runs: Sequence[Record], metric: str) -> np.ndarray:
    """The heights `[seeds, epochs]` of the seeds that did not diverge, else of all; NaN: a gap."""
    usable = [run for run in runs if not has_diverged(run)] or runs
    curves = [run["metrics"][f"validation_{metric}"] for run in usable]
    values = np.array([*zip(*curves, strict=False)]).T
    if metric == "loss":
        return np.where(np.isfinite(values), np.clip(values, 1e-6, 1e6), np.nan)
    # A logarithmic axis has no place for zero errors: they are drawn as half an image.
    half = [[50 / len(run["predictions"]["label"])] for run in usable]
    return np.maximum(100 - 100 * values, half)


def _text(height: float, metric: str) -> str:
    return f"{height:.4f}" if metric == "loss" else f"{100 - height:.3f} %"


def _draw_seeds(axes: Axes, seeds: np.ndarray) -> dict[str, Any]:
    """Draws `seeds [seeds, epochs]` with their mean, and returns what the legend names."""
    epochs, mean = range(1, 1 + seeds.shape[1]), seeds.mean(axis=0)
    marker = "o" if len(mean) == 1 else ""
    (line,) = axes.plot(epochs, mean, color=_BLUE, linewidth=1.8, marker=marker)
    legend: dict[str, Any] = {"mean over seeds, with its last value": line}
    if len(seeds) > FEW_SEEDS:
        estimates = pd.DataFrame([table.estimate(values) for values in seeds.T])
        low = np.maximum(estimates.low, mean.min() / 10)  # which may be below zero
        band = axes.fill_between(epochs, low, estimates.high, color=_BLUE, alpha=0.25, linewidth=0)
        legend["95 % interval"] = band
    elif len(seeds) > 1:
        lines = axes.plot(epochs, seeds.T, color=_BLUE, alpha=0.5, linewidth=0.6)
        legend["single seeds"] = lines[0]
    return legend


def _scale(axes: Axes, heights: Sequence[np.ndarray], metric: str) -> None:
    """Scales x to whole epochs and y logarithmically, with a readable number of ticks."""
    lines = (seeds.mean(axis=0) if len(seeds) > FEW_SEEDS else seeds for seeds in heights)
    values = np.concatenate([line.ravel() for line in lines])
    low, high = (np.nanmin(values), np.nanmax(values)) if np.any(values > 0) else (1, 1)
    margin = 1.02 * (high / low) ** 0.05
    axes.set_yscale("log")
    axes.set_ylim(low / margin, high * margin)
    few = MaxNLocator(6, steps=[1, 2, 5, 10])
    axes.yaxis.set_major_locator(few if high < 3 * low else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:.6g}")
    if metric == "accuracy":
        axes.invert_yaxis()  # so that better is up
        axes.yaxis.set_major_formatter(lambda percent_wrong, _: f"{100 - percent_wrong:.6g}")
    epochs = max(seeds.shape[1] for seeds in heights)
    axes.set_xlim(0.5, epochs + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))


# Differences between variants.


@matplotlib.rc_context(STYLE)
def differences(effects: pd.DataFrame, reference: str) -> Figure:
    """Draws the paired differences in accuracy of variants to a reference, with 95 % intervals."""
    figure = Figure(figsize=(8, 0.9 + 0.42 * len(effects)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="0.4", linewidth=1)
    for row, effect in enumerate(effects.itertuples()):
        axes.plot([effect.low, effect.high], [row, row], color=_BLUE, linewidth=2)
        filled = _BLUE if effect.p < table.LEVEL else "white"
        axes.plot(effect.mean, row, "o", color=_BLUE, markerfacecolor=filled, markersize=8)
    axes.set_yticks(range(len(effects)), [shorten(name, 24) for name in effects.index])
    axes.set_ylim(len(effects) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"difference to {shorten(reference, 24)} (percentage points of accuracy)")
    axes.set_title(f"Mean and 95 % interval; filled: p below {table.LEVEL}")
    return figure


# Mistakes: of one run, of several seeds, of a study.


@matplotlib.rc_context(STYLE)
def misclassified(record: Record, number: int = 25) -> Figure:
    """Draws the (at most `number`) misclassified images that the network was most sure about."""
    mistakes = rank_mistakes(record, number)
    names, total = record["label_names"], len(record["mistakes"]["index"])
    which = f"the {len(mistakes)} surest of " * (0 < len(mistakes) < total)
    title = _title([record], f"{which}{count(total, 'mistake') if total else 'no mistake'}")
    texts = [
        f"true {shorten(names[mistake.label], 12)}\n"
        f"said {shorten(names[mistake.prediction], 12)} ({100 * mistake.probability:.0f} %)"
        for mistake in mistakes
    ]
    return _image_grid([mistake.image for mistake in mistakes], texts, title)


@matplotlib.rc_context(STYLE)
def hardest(study: Study) -> Figure:
    """Draws the images that most runs of a study get wrong, numbered as in its report."""
    names = [shorten(name, 12) for name in study.records[0]["label_names"]]
    comma = ", " if max(map(len, names)) <= 3 else "\n"
    texts = [
        f"{number}: {image.runs:,} wrong\ntrue {names[image.true]}{comma}said {names[image.said]}"
        for number, image in enumerate(study.hardest.itertuples(), start=1)
    ]
    runs = count(len(study.records), "run")
    title = f"{count(len(texts), 'image')} that most of {runs} get wrong"
    return _image_grid([*study.hardest.image], texts, title)


def _image_grid(images: Sequence[np.ndarray], texts: Sequence[str], title: str) -> Figure:
    """Draws uint8 images, five in a row, each under its text."""
    rows, columns = math.ceil(len(images) / 5), min(5, len(images))
    figure = Figure(figsize=(8, 1.9 * rows + 0.6), layout="constrained")
    figure.suptitle(title)
    size = 10.5 if all(len(line) <= 17 for text in texts for line in text.splitlines()) else 9
    panels = [*figure.subplots(rows, columns, squeeze=False).flat] if images else []
    for axes in panels:
        axes.set_axis_off()
    for axes, image, text in zip(panels, images, texts, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(text, fontsize=size, fontweight="normal")
    return figure


@matplotlib.rc_context(STYLE)
def confusion(records: Sequence[Record]) -> Figure:
    """Draws the confusion matrix of a run, or the mean matrix of several seeds of a variant.

    Only the errors are coloured; beside each row stands the accuracy of its class.
    """
    counts = np.mean([confusion_matrix(record) for record in records], axis=0)
    names = [shorten(name, 12) for name in records[0]["label_names"]]
    diagonal = np.eye(len(names), dtype=bool)
    largest = counts[~diagonal].max(initial=10)  # a few single errors stay pale
    figure = Figure(figsize=(8, 7.1), layout="constrained")
    axes = figure.add_subplot()
    errors = counts[~diagonal].sum()
    mistakes = count(int(errors), "mistake") if len(records) == 1 else f"{errors:,.1f} mistakes"
    axes.set_title(_title(records, mistakes if errors else "no mistake"), pad=12)
    # Starting at a tenth makes a single error visible beside none.
    shade = np.where(counts > 0, 0.1 + 0.9 * counts / largest, 0)
    axes.imshow(np.ma.masked_array(shade, diagonal), cmap="Oranges", vmin=0, vmax=1.4)
    axes.set_facecolor("0.93")
    for (row, column), value in np.ndenumerate(counts):
        right = row == column
        if value or right:
            text = f"{value:,.0f}" if right or len(records) == 1 else f"{value:,.1f}"
            weight = "bold" if right else "normal"
            axes.text(column, row, text, ha="center", va="center", weight=weight)
    ticks = range(len(names))
    axes.set_xticks(ticks, names)
    if max(map(len, names)) > 3:
        axes.tick_params(axis="x", labelrotation=45)
    axes.set_yticks(ticks, names)
    for line in np.arange(len(names) + 1) - 0.5:
        axes.axhline(line, color="white", linewidth=1.5)
        axes.axvline(line, color="white", linewidth=1.5)
    beside = axes.secondary_yaxis("right")
    with np.errstate(invalid="ignore"):  # of a class without images
        accuracies = 100 * counts.diagonal() / counts.sum(axis=1)
    beside.set_yticks(ticks, [f"{value:.2f} %" for value in accuracies])
    beside.set_ylabel("accuracy of the class")
    for each in (axes, beside):
        each.grid(visible=False)
        each.tick_params(length=0)
        each.spines[:].set_visible(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    return figure


def _title(records: Sequence[Record], mistakes: str) -> str:
    seeds = [record["seed"] for record in records]
    of = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of {len(seeds)} seeds"
    images = len(records[0]["predictions"]["label"])
    return f"{shorten(records[0]['name'], 24)}, {of}: {mistakes} on {images:,} images"


# Files.


def of_study(study: Study) -> dict[str, Figure]:
    """Returns the figures of a report by the names of their files."""
    images = plain(study.images)
    figures = {f"{metric}.png": curves(study.records, metric, images) for metric in _LABELS}
    if len(study.differences):
        figures["differences.png"] = differences(study.differences, study.baseline)
    if len(study.mistakes):
        figures["hardest.png"] = hardest(study)
    return figures


def of_runs(records: Sequence[Record], every: bool = False) -> Iterator[tuple[str, Figure]]:
    """Yields figures of one or more records, with unique file names safe in any folder.

    The mistakes of each run and the confusions of each name are drawn if all have one name, or if
    `every` is true.
    """
    for metric in _LABELS:
        yield f"validation_{metric}.png", curves(records, metric)
    groups = by_name(records)
    for number, (name, runs) in enumerate(groups.items(), start=1):
        if every or len(groups) == 1:
            of = f"{number}_" * (len(groups) > 1) + re.sub(r"[^\w.-]+", "_", name)
            yield f"confusion_{of}.png", confusion(runs)
            for run in runs:
                seed = f"_seed_{run['seed']}" * (len(runs) > 1)
                yield f"misclassified_{of}{seed}.png", misclassified(run)


def save(figure: Figure, path: PathLike) -> None:
    """Writes a figure as a PNG file, atomically; its folder is created if it is missing.

    Raises:
      OSError: The file could not be written. An earlier file is unchanged.
    """
    write_atomically(path, png(figure))


def png(figure: Figure) -> bytes:
    """Returns the contents of a PNG file of a figure."""
    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    # A palette makes the file a third as large, and no difference that one sees.
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "png")
    return file.getvalue()
