"""Figures of one or more runs, drawn from their records alone.

Each is a `matplotlib.figure.Figure` that needs no display and touches no global state, 8 inches
wide. Saved it is 1600 pixels wide: sharp at the 800 pixels that a README shows.
"""

import collections
import io
import re
from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from jax_mnist.analysis import drawing
from jax_mnist.analysis.drawing import shorten
from jax_mnist.analysis.run import confusion_matrix, errors
from jax_mnist.files import PathLike, write_atomically
from jax_mnist.runs.record import Record, has_diverged, rank_mistakes

# Each of eight lines has its own marker besides its colour, and every other one is dashed.
_MARKERS = "osD^vPX*"
_DASHES = ("-", "--", "-.", ":")


@matplotlib.rc_context(drawing.STYLE)
def curves(records: Sequence[Record], metric: drawing.Metric) -> Figure:
    """Draws a metric over epochs, with one line for each of one or more names.

    Records of one name are its seeds: their line is the mean, in a band from the lowest to the
    highest. Seeds that diverged are left out if there are others.

    Args:
      records: The runs; the legend lists the best one first.
      metric: `drawing.ACCURACY` or `drawing.LOSS`. The axis of accuracies is logarithmic in the
        error, which separates 99.4 from 99.5 % in the same picture as the first epoch's 90 %.
    """
    groups = _by_name(records)
    heights = [_seed_heights(runs, metric) for runs in groups.values()]
    means = [seeds.mean(0) for seeds in heights]
    figure = Figure(figsize=(8, max(4.5, 0.7 + 0.2 * len(groups))), layout="constrained")
    axes = figure.add_subplot()
    for i, (seeds, mean) in enumerate(zip(heights, means, strict=True)):
        epochs, colour = np.arange(1, len(mean) + 1), drawing.COLOURS[i % 8]
        axes.plot(
            epochs,
            mean,
            color=colour,
            marker=_MARKERS[i % 8],
            linestyle=_DASHES[(i % 2 + i // 8) % 4],
            linewidth=1.4,
            markersize=5.5,
            markeredgewidth=0,
        )
        if len(seeds) > 1:
            low, high = seeds.min(0), seeds.max(0)
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_title(metric.title)
    axes.set_ylabel(metric.label)
    _scale_axes(axes, heights)
    drawing.label_axis(axes, metric)
    order = np.argsort([mean[-1] for mean in means], kind="stable")  # NaN comes last
    texts = [_legend_text(name, runs, metric) for name, runs in groups.items()]
    band = any(len(seeds) > 1 for seeds in heights)
    figure.legend(
        [axes.get_lines()[i] for i in order],
        [texts[i] for i in order],
        title="last epoch" + "\nline: mean of the seeds\nband: lowest to highest" * band,
        alignment="left",
        loc="outside right upper",
        handlelength=3,
    )
    return figure


def _by_name(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Groups the seeds of each name; where a seed comes twice, every record is a group."""
    groups: dict[str, list[Record]] = {}
    for name, record in zip(record_names(records), records, strict=True):
        seeds = [r["seed"] for r in records if r["name"] == record["name"]]
        distinct = len({*seeds}) == len(seeds)
        groups.setdefault(record["name"] if distinct else name, []).append(record)
    return groups


def _seed_heights(runs: Sequence[Record], metric: drawing.Metric) -> np.ndarray:
    """The heights of each seed that did not diverge, else of all: `[seeds, epochs]`."""
    kept = [run for run in runs if not has_diverged(run)] or runs
    return np.array([*zip(*map(metric.heights, kept), strict=False)]).T


def _legend_text(name: str, runs: Sequence[Record], metric: drawing.Metric) -> str:
    kept = [run for run in runs if not has_diverged(run)] or runs
    of = "" if len(kept) == len(runs) else f" of {len(runs)}"
    seeds = f", {len(kept)}{of} seeds" if len(runs) > 1 else ""
    last = np.mean([run["metrics"][metric.key][-1] for run in kept])
    return f"{shorten(name, 32)}{seeds}  {metric.run_text(last)}"


def _scale_axes(axes: Axes, heights: Sequence[np.ndarray]) -> None:
    """Scales x to whole epochs and y logarithmically, with a readable number of ticks."""
    epochs = max(seeds.shape[1] for seeds in heights)
    step = next(s for k in range(9) for s in (10**k, 5 * 10**k) if epochs <= 12 * s)
    axes.set_xticks(sorted({1, *range(step, epochs + 1, step)}))
    axes.set_xlim(0.5, epochs + 0.5)
    axes.set_xlabel("epoch")

    values = np.concatenate([seeds.ravel() for seeds in heights])
    low, high = (np.nanmin(values), np.nanmax(values)) if np.any(values > 0) else (1, 1)
    margin = 1.02 * (high / low) ** 0.05
    axes.set_yscale("log")
    axes.set_ylim(low / margin, high * margin)
    if high < 3 * low:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    else:
        digits = (1, 1.5, 2, 3, 4, 5, 6, 8) if high < 30 * low else (1, 2, 5)
        axes.yaxis.set_major_locator(LogLocator(subs=digits))
    axes.yaxis.set_minor_locator(NullLocator())


@matplotlib.rc_context(drawing.STYLE)
def misclassified(record: Record, count: int = 25) -> Figure:
    """Draws the (at most `count`) misclassified images that the network was most sure about."""
    mistakes = rank_mistakes(record, count)
    names = record["label_names"]
    if not mistakes:
        figure = Figure(figsize=(8, 2))
        figure.text(0.5, 0.5, _title(record), ha="center", va="center", fontsize=13)
        return figure
    texts = [
        f"true {shorten(names[mistake.label], 12)}\n"
        f"said {shorten(names[mistake.prediction], 12)} ({100 * mistake.probability:.0f} %)"
        for mistake in mistakes
    ]
    size = 10.5 if max(map(len, names)) <= 3 else 9
    title = _title(record, len(mistakes))
    return drawing.image_grid([mistake.image for mistake in mistakes], texts, title, size)


@matplotlib.rc_context(drawing.STYLE)
def confusion(record: Record) -> Figure:
    """Draws the confusion matrix with its counts; only the errors are coloured."""
    counts = confusion_matrix(record)
    names = [shorten(name, 12) for name in record["label_names"]]
    diagonal = np.eye(len(names), dtype=bool)
    largest = counts[~diagonal].max(initial=10)  # a few single errors stay pale
    figure = Figure(figsize=(8, 7.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_title(record), pad=12)
    # Starting at a tenth makes a single error visible beside none.
    shade = np.where(counts > 0, 0.1 + 0.9 * counts / largest, 0)
    axes.imshow(np.ma.masked_array(shade, diagonal), cmap="Oranges", vmin=0, vmax=1.4)
    axes.set_facecolor("0.93")
    for (row, column), value in np.ndenumerate(counts):
        if value or row == column:
            weight = "bold" if row == column else "normal"
            axes.text(column, row, f"{value:,}", ha="center", va="center", fontweight=weight)
    axes.set_xticks(range(len(names)), names)
    if max(map(len, names)) > 3:
        axes.tick_params(axis="x", labelrotation=45)
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="major", visible=False)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    return figure


def figures(records: Sequence[Record]) -> Iterator[tuple[str, Figure]]:
    """Yields every figure of one or more records, with a unique file name safe in any folder."""
    yield "validation_accuracy.png", curves(records, drawing.ACCURACY)
    yield "validation_loss.png", curves(records, drawing.LOSS)
    names = _unique([re.sub(r"[^\w.-]+", "_", name) for name in record_names(records)], "_")
    for name, record in zip(names, records, strict=True):
        yield f"misclassified_{name}.png", misclassified(record)
        yield f"confusion_{name}.png", confusion(record)


def save(figure: Figure, path: PathLike) -> None:
    """Writes a figure as a PNG file, atomically; its folder is created if it is missing.

    Raises:
      OSError: The file could not be written. An earlier file is unchanged.
    """
    write_atomically(path, png(figure))


def png(figure: Figure) -> bytes:
    """Returns the contents of a PNG file of a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=drawing.DPI, metadata={"Software": None})
    return buffer.getvalue()


def record_names(records: Sequence[Record]) -> list[str]:
    """Returns unique names of records: equal ones are extended by the seed, then by a number."""
    counts = collections.Counter(record["name"] for record in records)
    seeds = [f" seed {r['seed']}" * (counts[r["name"]] > 1) for r in records]
    return _unique([r["name"] + seed for r, seed in zip(records, seeds, strict=True)], " #")


def _unique(names: list[str], separator: str) -> list[str]:
    """Appends numbers until no name occurs twice."""
    result: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in result:
            number += 1
            candidate = f"{name}{separator}{number}"
        result.append(candidate)
    return result


def _title(record: Record, shown: int = 0) -> str:
    number = errors(record)
    which = f"{number:,}" if number else "no"
    which = f"the {shown} surest of {which}" if 0 < shown < number else which
    mistakes = "mistakes" if number > 1 else "mistake"
    images = len(record["predictions"]["label"])
    return f"{shorten(record['name'], 24)}: {which} {mistakes} on {images:,} images"
