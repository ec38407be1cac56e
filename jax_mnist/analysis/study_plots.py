"""Figures of a study, which has several runs of each variant; `plots.save` saves them too."""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from jax_mnist.analysis import drawing, statistics
from jax_mnist.analysis.drawing import shorten
from jax_mnist.analysis.mistakes import HardImage
from jax_mnist.analysis.statistics import Estimate, Variants
from jax_mnist.runs.history import Record

_BLUE = drawing.COLOURS[1]


@matplotlib.rc_context(drawing.STYLE)
def accuracy_differences(effects: Mapping[str, Estimate], reference: str) -> Figure:
    """Draws the paired differences in accuracy of variants to a reference, with 95 % intervals."""
    figure = Figure(figsize=(8, 0.9 + 0.42 * len(effects)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="0.4", linewidth=1)
    for row, effect in enumerate(effects.values()):
        if math.isfinite(effect.low):
            axes.plot([effect.low, effect.high], [row, row], color=_BLUE, linewidth=2)
        axes.plot(effect.mean, row, "o", color=_BLUE, markersize=8)
    axes.set_yticks(range(len(effects)), [shorten(name, 24) for name in effects])
    axes.set_ylim(len(effects) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"difference to {shorten(reference, 24)} (percentage points of accuracy)")
    axes.set_title("Paired differences, mean and 95 % interval")
    return figure


@matplotlib.rc_context(drawing.STYLE)
def hardest_images(images: Sequence[HardImage], label_names: Sequence[str], runs: int) -> Figure:
    """Draws the validation images that most of `runs` runs get wrong, five in a row."""
    names = [shorten(name, 12) for name in label_names]
    comma = ", " if max(map(len, names)) <= 3 else "\n"
    texts = [
        f"true {names[image.label]}{comma}said {names[image.prediction]}\n{image.votes} of {runs}"
        for image in images
    ]
    title = f"The {len(images)} validation images that most of {runs} runs get wrong"
    size = 10.5 if runs < 1000 else 9
    return drawing.image_grid([image.image for image in images], texts, title, size)


@matplotlib.rc_context(drawing.STYLE)
def bands(variants: Variants, metric: drawing.Metric) -> Figure:
    """Draws a metric over epochs: mean and 95 % band over the seeds of each variant.

    Each variant has a panel, which shows the means of the others in grey.
    """
    columns = min(4, len(variants))
    rows = math.ceil(len(variants) / columns)
    figure = Figure(figsize=(8, 1.2 + 2.2 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    intervals = {name: _intervals(variants[name], metric) for name in variants}
    means = np.concatenate([interval[:, 0] for interval in intervals.values()])
    low, high = np.nanmin(means, initial=1e6), np.nanmax(means, initial=1e-6)
    for axes, (name, interval) in zip(panels, intervals.items(), strict=False):
        for other in intervals.values():
            (grey,) = axes.plot(range(1, len(other) + 1), other[:, 0], color="0.75", linewidth=0.8)
        epochs, (mean, bottom, top) = range(1, len(interval) + 1), interval.T
        (line,) = axes.plot(epochs, mean, color=_BLUE, linewidth=1.8)
        bottom = np.maximum(bottom, low / 10)
        band = axes.fill_between(epochs, bottom, top, color=_BLUE, alpha=0.25, linewidth=0)
        axes.set_title(f"{shorten(name, 18)}\n{metric.mean_text(mean[-1])}", fontsize=10.5)
    for axes in panels[len(variants) :]:
        axes.set_axis_off()
    for axes in panels[max(0, len(variants) - columns) : len(variants)]:
        axes.set_xlabel("epoch", fontsize=10)
        axes.tick_params(labelbottom=True)
    first = figure.axes[0]  # all panels share its axes
    first.set_yscale("log")
    first.set_ylim(low / 1.2, high * 1.2)
    first.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    first.yaxis.set_minor_locator(NullLocator())
    first.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    drawing.label_axis(first, metric)
    labels = ["mean over seeds, with its last value", "95 % interval", "means of the others"]
    figure.legend([line, band, grey], labels, loc="outside lower center", ncols=3, fontsize=9)
    figure.suptitle(metric.title)
    figure.supylabel(metric.label, fontsize=11)
    return figure


def _intervals(runs: Mapping[int, Record], metric: drawing.Metric) -> np.ndarray:
    """Mean and interval over seeds, [epochs, 3], for the epochs that all runs have."""
    curves = zip(*(metric.heights(record) for record in runs.values()), strict=False)
    return np.array([statistics.mean_interval(points)[:3] for points in curves])
