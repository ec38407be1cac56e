"""Figures of a study: many runs of several variants. Style and saving are those of `plots`."""

import math
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from jax_mnist.analysis import plots, statistics
from jax_mnist.analysis.statistics import Difference, HardImage, Variants
from jax_mnist.runs.history import Record


@matplotlib.rc_context(plots.STYLE)
def variants_accuracy(variants: Variants) -> Figure:
    """Draws each variant's validation accuracy over epochs, mean and 95 % band over its seeds.

    One panel per variant, with the other variants' means in grey; axis as `validation_accuracy`.

    Args:
        variants: as `statistics.by_variant` returns them.
    """

    def errors(record: Record) -> np.ndarray:
        half = 50 / len(record["predictions"]["label"])
        return np.maximum(100 - 100 * record["metrics"]["validation_accuracy"], half)

    figure = _bands(variants, errors, lambda error: f"{100 - error:.3f} %")
    figure.axes[0].invert_yaxis()  # all panels share the axis
    for axes in figure.axes:
        axes.yaxis.set_major_formatter(lambda error, _: f"{100 - error:.6g}")
    figure.suptitle("Validation accuracy")
    figure.supylabel("accuracy (%), stretched towards 100", fontsize=11)
    return figure


@matplotlib.rc_context(plots.STYLE)
def variants_loss(variants: Variants) -> Figure:
    """Draws each variant's validation loss over epochs, as `variants_accuracy` does accuracy."""

    def losses(record: Record) -> np.ndarray:
        loss = record["metrics"]["validation_loss"]
        return np.where(np.isfinite(loss), np.clip(loss, 1e-6, 1e6), np.nan)

    figure = _bands(variants, losses, lambda loss: f"{loss:.4f}")
    for axes in figure.axes:
        axes.yaxis.set_major_formatter(lambda loss, _: f"{loss:.6g}")
    figure.suptitle("Validation loss")
    figure.supylabel("cross-entropy (logarithmic)", fontsize=11)
    return figure


@matplotlib.rc_context(plots.STYLE)
def paired_differences(effects: Mapping[str, Difference], reference: str, unit: str) -> Figure:
    """Draws differences to a reference with their 95 % intervals, one row each.

    Args:
        effects: from `statistics.differences`.
        reference: what they are differences to.
        unit: of the differences, in words.
    """
    figure = Figure(figsize=(8, 0.9 + 0.42 * len(effects)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="0.4", linewidth=1)
    for row, effect in enumerate(effects.values()):
        if math.isfinite(effect.low):
            axes.plot([effect.low, effect.high], [row, row], color=plots.COLOURS[1], linewidth=2)
        axes.plot(effect.mean, row, "o", color=plots.COLOURS[1], markersize=8)
    axes.set_yticks(range(len(effects)), [plots.short(name, 24) for name in effects])
    axes.set_ylim(len(effects) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"difference to {plots.short(reference, 24)} ({unit})")
    axes.set_title("Paired differences, mean and 95 % interval")
    return figure


@matplotlib.rc_context(plots.STYLE)
def hardest_images(images: Sequence[HardImage], label_names: Sequence[str], runs: int) -> Figure:
    """Draws the validation images that most of `runs` runs get wrong, five in a row."""
    names = [plots.short(name, 12) for name in label_names]
    comma = ", " if max(map(len, names)) <= 3 else "\n"
    texts = [
        f"true {names[image.label]}{comma}said {names[image.prediction]}\n{image.votes} of {runs}"
        for image in images
    ]
    title = f"The {len(images)} validation images that most of {runs} runs get wrong"
    return plots.panels([image.image for image in images], texts, title, 10.5 if runs < 1000 else 9)


def _bands(
    variants: Variants,
    curve: Callable[[Record], np.ndarray],
    words: Callable[[float], str],
) -> Figure:
    """Draws curves of positive values, mean and interval over seeds, a panel per variant."""
    columns = min(4, len(variants))
    rows = math.ceil(len(variants) / columns)
    figure = Figure(figsize=(8, 1.2 + 2.2 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    intervals: dict[str, np.ndarray] = {}  # [epochs, 3]
    for name, runs in variants.items():
        curves = [curve(record) for record in runs.values()]
        shortest = min(map(len, curves))
        points = np.stack([c[:shortest] for c in curves], axis=1)
        intervals[name] = np.array([statistics.mean_interval(p) for p in points])
    means = np.concatenate([i[:, 0] for i in intervals.values()])
    low, high = np.nanmin(means, initial=1e6), np.nanmax(means, initial=1e-6)
    blue = plots.COLOURS[1]
    for axes, (name, interval) in zip(panels, intervals.items(), strict=False):
        for other in intervals.values():
            (grey,) = axes.plot(*_numbered(other[:, 0]), color="0.75", linewidth=0.8)
        epochs, mean = _numbered(interval[:, 0])
        (line,) = axes.plot(epochs, mean, color=blue, linewidth=1.8)
        bottom, top = np.maximum(interval[:, 1], low / 10), interval[:, 2]
        band = axes.fill_between(epochs, bottom, top, color=blue, alpha=0.25, linewidth=0)
        axes.set_title(f"{plots.short(name, 18)}\n{words(mean[-1])}", fontsize=10.5)
    for axes in panels[len(variants) :]:
        axes.set_axis_off()
    for axes in panels[max(0, len(variants) - columns) : len(variants)]:
        axes.set_xlabel("epoch", fontsize=10)
        axes.tick_params(labelbottom=True)
    first = figure.axes[0]
    first.set_yscale("log")
    first.set_ylim(low / 1.2, high * 1.2)
    first.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    first.yaxis.set_minor_locator(NullLocator())
    first.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    labels = ["mean over seeds, with its last value", "95 % interval", "means of the others"]
    figure.legend([line, band, grey], labels, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(1, len(values) + 1), values
