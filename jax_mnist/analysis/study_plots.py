"""Figures of a study, which has several runs of each variant; `plots.save` saves them too."""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from jax_mnist.analysis import drawing, statistics
from jax_mnist.analysis.drawing import shorten
from jax_mnist.analysis.markup import count
from jax_mnist.analysis.mistakes import HardImage
from jax_mnist.analysis.statistics import Estimate, Variants
from jax_mnist.runs.record import Record

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
def hardest_images(
    images: Sequence[HardImage], label_names: Sequence[str], runs: int, kind: str = "test images"
) -> Figure:
    """Draws the images that most of `runs` runs get wrong, five in a row."""
    names = [shorten(name, 12) for name in label_names]
    comma = ", " if max(map(len, names)) <= 3 else "\n"
    texts = [
        f"true {names[image.label]}{comma}said {names[image.prediction]}\n{image.votes} of {runs}"
        for image in images
    ]
    which = f"The {len(images)} {shorten(kind, 32)}" if len(images) > 1 else "The image"
    title = f"{which} that most of {count(runs, 'run')} get wrong"
    size = 10.5 if runs < 1000 else 9
    return drawing.image_grid([image.image for image in images], texts, title, size)


@matplotlib.rc_context(drawing.STYLE)
def bands(variants: Variants, metric: drawing.Metric, title: str) -> Figure:
    """Draws a metric over epochs: mean and 95 % band over the seeds of each variant.

    Each variant has a panel, which shows the means of the others in grey.
    """
    columns = min(4, len(variants))
    rows = math.ceil(len(variants) / columns)
    figure = Figure(figsize=(8, 1.2 + 2.2 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    intervals = [_intervals(runs, metric) for runs in variants.values()]
    for number, (axes, name) in enumerate(zip(panels, variants, strict=False)):
        lines = _draw_panel(axes, intervals, number)
        mean = metric.mean_text(intervals[number][-1, 0])
        axes.set_title(f"{shorten(name, 18)}\n{mean}", fontsize=10.5)
    for axes in panels[len(variants) :]:
        axes.set_axis_off()
    for axes in panels[max(0, len(variants) - columns) : len(variants)]:
        axes.set_xlabel("epoch", fontsize=10)
        axes.tick_params(labelbottom=True)
    _scale(panels[0], intervals, metric)  # all panels share its axes
    labels = ["mean over seeds, with its last value", "95 % interval"]
    labels += ["means of the others"] * (len(variants) > 1)
    figure.legend(lines[: len(labels)], labels, loc="outside lower center", ncols=3, fontsize=9)
    figure.suptitle(title)
    figure.supylabel(metric.label, fontsize=11)
    return figure


@matplotlib.rc_context(drawing.STYLE)
def panels(variants: Variants, metric: drawing.Metric) -> dict[str, Figure]:
    """Draws each panel of `bands` as a figure of its own, without texts other than ticks.

    The line of the variant number N has the `gid` `variant-N` in the panels of the others.
    """
    intervals = [_intervals(runs, metric) for runs in variants.values()]
    figures = {}
    for number, name in enumerate(variants):
        figures[name] = Figure(figsize=(2.7, 2.1))
        axes = figures[name].add_axes((0.19, 0.11, 0.79, 0.86))
        axes.tick_params(length=0, labelsize=9)
        _draw_panel(axes, intervals, number)
        _scale(axes, intervals, metric)
    return figures


def _draw_panel(axes: Axes, intervals: Sequence[np.ndarray], number: int) -> list[Artist]:
    """Draws one of several means with its band; returns its line, the band and another line."""
    lowest = np.nanmin(np.concatenate([interval[:, 0] for interval in intervals]), initial=1e6)
    for other, interval in enumerate(intervals):
        (grey,) = axes.plot(range(1, len(interval) + 1), interval[:, 0], color="0.75")
        grey.set(linewidth=0.8, gid=f"variant-{other}")
    epochs, (mean, bottom, top) = range(1, len(intervals[number]) + 1), intervals[number].T
    (line,) = axes.plot(epochs, mean, color=_BLUE, linewidth=1.8)
    bottom = np.maximum(bottom, lowest / 10)
    band = axes.fill_between(epochs, bottom, top, color=_BLUE, alpha=0.25, linewidth=0)
    return [line, band, grey]


def _scale(axes: Axes, intervals: Sequence[np.ndarray], metric: drawing.Metric) -> None:
    means = np.concatenate([interval[:, 0] for interval in intervals])
    low, high = np.nanmin(means, initial=1e6), np.nanmax(means, initial=1e-6)
    axes.set_yscale("log")
    axes.set_ylim(low / 1.2, high * 1.2)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    drawing.label_axis(axes, metric)


def _intervals(runs: Mapping[int, Record], metric: drawing.Metric) -> np.ndarray:
    """Mean and interval over seeds, [epochs, 3], for the epochs that all runs have."""
    curves = zip(*(metric.heights(record) for record in runs.values()), strict=False)
    return np.array([statistics.mean_interval(points)[:3] for points in curves])
