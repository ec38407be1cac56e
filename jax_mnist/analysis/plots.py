"""Figures from history records, and nothing else; those of a study are in `comparison_plots`.

Every figure is a `matplotlib.figure.Figure` of its own (no global state, no display), 8 inches wide
and saved 1600 pixels wide: sharp at the 800 pixels that a README shows.
"""

import collections
import io
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from jax_mnist.analysis import run as analysis
from jax_mnist.data import files
from jax_mnist.runs import history
from jax_mnist.runs.history import Record

_DPI = 200
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
    "figure.dpi": _DPI,
    "figure.facecolor": "white",
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "font.size": 10,
    "grid.color": "0.9",
    "legend.frameon": False,
    "text.parse_math": False,  # a name is text, whatever characters it has
    "text.usetex": False,
}
# Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), the yellow, which is faint on white,
# replaced by wine. Each of eight lines has a marker of its own too, and every other one is dashed.
COLOURS = (
    *("#000000", "#0072B2", "#D55E00", "#009E73"),
    *("#CC79A7", "#56B4E9", "#E69F00", "#882255"),
)
_MARKERS = "osD^vPX*"
_DASHES = ("-", "--", "-.", ":")


@matplotlib.rc_context(STYLE)
def validation_accuracy(records: Sequence[Record]) -> Figure:
    """Draws validation accuracy over epochs, in percent, one line per record.

    The axis is logarithmic in the error, so that 99.4 and 99.5 % are told apart in the same picture
    as the first epoch's 90 %. The legend names the records by falling final accuracy.

    Args:
        records: one or more, as `history.load` returns them.
    """
    accuracies = [100 * record["metrics"]["validation_accuracy"] for record in records]
    # No error at all has no place on a logarithmic axis: it is drawn as half an image.
    halves = [50 / len(record["predictions"]["label"]) for record in records]
    errors = [np.maximum(100 - a, half) for a, half in zip(accuracies, halves, strict=True)]
    figure = _curves(records, errors, [f"{accuracy[-1]:.2f} %" for accuracy in accuracies])
    (axes,) = figure.axes
    axes.invert_yaxis()
    axes.yaxis.set_major_formatter(lambda error, _: f"{100 - error:.6g}")
    axes.set_title("Validation accuracy")
    axes.set_ylabel("accuracy (%), stretched towards 100")
    return figure


@matplotlib.rc_context(STYLE)
def validation_loss(records: Sequence[Record]) -> Figure:
    """Draws validation loss over epochs on a logarithmic axis, one line per record.

    The legend names the records by rising final loss.

    Args:
        records: one or more, as `history.load` returns them.
    """
    losses = [record["metrics"]["validation_loss"] for record in records]
    # A run that broke down has a gap where its loss is not a number, or has no logarithm.
    clipped = [np.where(np.isfinite(loss), np.clip(loss, 1e-6, 1e6), np.nan) for loss in losses]
    figure = _curves(records, clipped, [f"{loss[-1]:.4f}" for loss in losses])
    (axes,) = figure.axes
    axes.yaxis.set_major_formatter(lambda loss, _: f"{loss:.6g}")
    axes.set_title("Validation loss")
    axes.set_ylabel("cross-entropy (logarithmic)")
    return figure


@matplotlib.rc_context(STYLE)
def misclassified(record: Record, count: int = 25) -> Figure:
    """Draws the misclassified validation images that the network was most sure about.

    Args:
        record: as `history.load` returns it.
        count: how many at most, five in a row.
    """
    mistakes = history.rank_mistakes(record, count)
    names = record["label_names"]
    if not mistakes:
        figure = Figure(figsize=(8, 2))
        figure.text(0.5, 0.5, _title(record), ha="center", va="center", fontsize=13)
        return figure
    texts = [
        f"true {short(names[mistake.label], 12)}\n"
        f"said {short(names[mistake.prediction], 12)} ({100 * mistake.probability:.0f} %)"
        for mistake in mistakes
    ]
    size = 10.5 if max(map(len, names)) <= 3 else 9
    title = _title(record, len(mistakes))
    return panels([mistake.image for mistake in mistakes], texts, title, size)


@matplotlib.rc_context(STYLE)
def confusion(record: Record) -> Figure:
    """Draws the confusion matrix with its counts; colour is for the errors alone.

    Args:
        record: as `history.load` returns it.
    """
    counts = analysis.confusion_matrix(record)
    names = [short(name, 12) for name in record["label_names"]]
    diagonal = np.eye(len(names), dtype=bool)
    largest = counts[~diagonal].max(initial=10)  # a few single errors are no alarm
    figure = Figure(figsize=(8, 7.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_title(record), pad=12)
    # A tenth of white at the low end keeps a single error visible.
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
    """Draws everything there is to draw.

    Args:
        records: one or more, as `history.load` returns them.

    Yields:
        A file name that is safe in any folder, each once, and its figure.
    """
    yield "validation_accuracy.png", validation_accuracy(records)
    yield "validation_loss.png", validation_loss(records)
    names = _distinct([re.sub(r"[^\w.-]+", "_", name) for name in record_names(records)], "_")
    for name, record in zip(names, records, strict=True):
        yield f"misclassified_{name}.png", misclassified(record)
        yield f"confusion_{name}.png", confusion(record)


def save(figure: Figure, path: files.PathLike) -> None:
    """Writes a figure as PNG, atomically; its folder is made if there is none.

    Raises:
        OSError: it could not be written, in one line; an earlier file is as it was.
    """
    files.write_atomically(path, png(figure))


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def record_names(records: Sequence[Record]) -> list[str]:
    """Returns the records' names, told apart by seed or, where that is the same, by number."""
    names = [record["name"] for record in records]
    counts = collections.Counter(names)
    seeded = [
        name if counts[name] == 1 else f"{name} seed {record['seed']}"
        for name, record in zip(names, records, strict=True)
    ]
    return _distinct(seeded, " #")


def _title(record: Record, shown: int = 0) -> str:
    _, _, _, errors, examples = analysis.summary(record)
    which = f"{errors:,}" if errors else "no"
    if 0 < shown < errors:
        which = f"the {shown} surest of {which}"
    mistakes = "mistakes" if errors > 1 else "mistake"
    return f"{short(record['name'], 24)}: {which} {mistakes} on {examples:,} images"


def short(text: str, length: int) -> str:
    """The text, or its beginning if it is longer than `length` characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _distinct(names: list[str], separator: str) -> list[str]:
    """Appends numbers until no name occurs twice."""
    taken: set[str] = set()
    result = []
    for name in names:
        number, candidate = 1, name
        while candidate in taken:
            number += 1
            candidate = f"{name}{separator}{number}"
        taken.add(candidate)
        result.append(candidate)
    return result


def panels(images: Sequence[np.ndarray], texts: Sequence[str], title: str, size: float) -> Figure:
    """Draws one or more images, five in a row, each under its text."""
    rows, columns = math.ceil(len(images) / 5), min(5, len(images))
    figure = Figure(figsize=(8, 1.9 * rows + 0.6), layout="constrained")
    figure.suptitle(title)
    for panel in figure.subplots(rows, columns, squeeze=False).flat:
        panel.set_axis_off()
    for panel, image, text in zip(figure.axes, images, texts, strict=False):
        panel.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        panel.set_title(text, fontsize=size, fontweight="normal")
    return figure


def _curves(records: Sequence[Record], curves: Sequence[np.ndarray], last: Sequence[str]) -> Figure:
    """Draws curves of positive values, of which small ones are good, on a logarithmic axis.

    `last` has the words for each curve's last value, which the legend shows.
    """
    figure = Figure(figsize=(8, max(4.5, 0.7 + 0.2 * len(curves))), layout="constrained")
    axes = figure.add_subplot()
    lines = []
    for i, curve in enumerate(curves):
        lines += axes.plot(
            np.arange(1, len(curve) + 1),
            curve,
            color=COLOURS[i % 8],
            marker=_MARKERS[i % 8],
            linestyle=_DASHES[(i % 2 + i // 8) % 4],
            linewidth=1.4,
            markersize=5.5,
            markeredgewidth=0,
        )
    epochs = max(map(len, curves))
    step = next(s for k in range(9) for s in (10**k, 5 * 10**k) if epochs <= 12 * s)
    axes.set_xticks(sorted({1, *range(step, epochs + 1, step)}))
    axes.set_xlim(0.5, epochs + 0.5)
    axes.set_xlabel("epoch")

    values = np.concatenate(curves)
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

    names = record_names(records)
    texts = [f"{short(name, 32)}  {value}" for name, value in zip(names, last, strict=True)]
    order = np.argsort([curve[-1] for curve in curves], kind="stable")  # not a number: last
    figure.legend(
        [lines[i] for i in order],
        [texts[i] for i in order],
        title="last epoch",
        alignment="left",
        loc="outside right upper",
        handlelength=3,
    )
    return figure
