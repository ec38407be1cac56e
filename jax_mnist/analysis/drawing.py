"""Shared by the figures of runs and studies: style, drawn metrics, grids of images."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jax_mnist.runs.record import Record

DPI = 200
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
# Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), with wine instead of their yellow,
# which is faint on white.
COLOURS = ["#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255"]


class Metric(NamedTuple):
    """A validation metric over epochs, drawn on a logarithmic axis."""

    name: str
    title: str
    label: str
    key: str  # in a record's metrics
    heights: Callable[[Record], np.ndarray]  # [epochs], positive or NaN; less is better
    tick_text: Callable[[float], str]  # of a height
    mean_text: Callable[[float], str]  # of the mean height of several runs
    run_text: Callable[[float], str]  # of one run's value in the record


def _percent_wrong(record: Record) -> np.ndarray:
    # A logarithmic axis has no place for zero errors: they are drawn as half an image.
    half = 50 / len(record["predictions"]["label"])
    return np.maximum(100 - 100 * record["metrics"]["validation_accuracy"], half)


def _finite_loss(record: Record) -> np.ndarray:
    loss = record["metrics"]["validation_loss"]
    return np.where(np.isfinite(loss), np.clip(loss, 1e-6, 1e6), np.nan)  # NaN makes a gap


ACCURACY = Metric(
    name="accuracy",
    title="Validation accuracy",
    label="accuracy (%), stretched towards 100",
    key="validation_accuracy",
    heights=_percent_wrong,
    tick_text=lambda percent_wrong: f"{100 - percent_wrong:.6g}",
    mean_text=lambda percent_wrong: f"{100 - percent_wrong:.3f} %",
    run_text=lambda accuracy: f"{100 * accuracy:.2f} %",
)
LOSS = Metric(
    *("loss", "Validation loss", "cross-entropy (logarithmic)", "validation_loss", _finite_loss),
    *("{:.6g}".format, "{:.4f}".format, "{:.4f}".format),
)


def label_axis(axes: Axes, metric: Metric) -> None:
    """Labels the ticks of the y axis, and inverts it for accuracies, so that better is up."""
    axes.yaxis.set_major_formatter(lambda height, _: metric.tick_text(height))
    if metric is ACCURACY:
        axes.invert_yaxis()


def shorten(text: str, length: int) -> str:
    """Returns the text, or its beginning and an ellipsis if it is longer than `length`."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def image_grid(
    images: Sequence[np.ndarray], texts: Sequence[str], title: str, size: float
) -> Figure:
    """Draws one or more uint8 images, five in a row, each under its text of `size` points."""
    rows, columns = math.ceil(len(images) / 5), min(5, len(images))
    figure = Figure(figsize=(8, 1.9 * rows + 0.6), layout="constrained")
    figure.suptitle(title)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, image, text in zip(figure.axes, images, texts, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(text, fontsize=size, fontweight="normal")
    return figure
