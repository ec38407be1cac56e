"""Draws docs/answer.png, the picture of README.md, from the runs of the two studies.

python benchmarks/answer.py
"""

import matplotlib
import numpy as np
import pandas as pd
import tables
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PICTURE = tables.DOCS / "answer.png"
STYLE = {"font.size": 15, "axes.spines.top": False, "axes.spines.right": False}
LOOKS = {  # of a recipe: colour and marker, either of which tells them apart; its place in a row
    "falling rate": ("#0072B2", "o", -0.18),
    "constant rate": ("#D55E00", "D", 0.18),
}
TITLE = "The recipe matters more than any of the regularisers"
LUCK = 4.15  # the row of the single runs, below those of the effects
RIGHT = 50  # where the numbers end


def description() -> str:
    """The numbers in the picture, which its file holds too: so a test can tell if it is of them."""
    return "; ".join(" ".join(line) for line in tables.answer()[1:])


def draw() -> Figure:
    """Each effect as a mean with its interval, and below them the luck of every single run."""
    figure = Figure(figsize=(9, 5.6))
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.1)
    figure.suptitle(TITLE, x=0.01, ha="left", weight="bold")
    axes = figure.subplots()
    axes.axvline(0, color="#777777", linewidth=1)
    _effect(axes, 0, tables.gain(), "black", "s")
    for recipe, (color, marker, place) in LOOKS.items():
        effects = tables.effects(tables.RECIPES[recipe])
        for row, key in enumerate(tables.REGULARIZERS, 1):
            _effect(axes, row + place, effects.loc[key], color, marker)
        _luck(axes, LUCK + 1.5 * place, tables.luck(tables.RECIPES[recipe]), color, marker)
        axes.plot([], [], marker, color=color, markersize=9, label=f"with a {recipe}")
    labels = [
        "falling instead of\nconstant rate",
        *tables.REGULARIZERS.values(),
        "luck of each run",
    ]
    axes.set_yticks([*range(4), LUCK], labels)
    axes.set(xlim=(-RIGHT, RIGHT), ylim=(LUCK + 0.6, -0.45))
    axes.set_xlabel("more or fewer test images right, of 10,000; bars: 95 % intervals")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.legend(frameon=False, loc=(0, 0.33), handletextpad=0.2)
    return figure


def _effect(axes: Axes, height: float, effect: pd.Series, color: str, marker: str) -> None:
    mean, low, high = (100 * effect[key] for key in ("mean", "low", "high"))
    axes.plot([low, high], [height] * 2, color=color, linewidth=3.5, solid_capstyle="round")
    axes.plot(mean, height, marker, color=color, markersize=9)
    _number(axes, height, tables.in_images(effect).partition(" ")[0], color)


def _luck(axes: Axes, height: float, luck: pd.DataFrame, color: str, marker: str) -> None:
    runs = 100 * luck.to_numpy().ravel()
    heights = height + np.random.default_rng(0).uniform(-0.16, 0.16, len(runs))  # for the eye
    axes.plot(runs, heights, marker, color=color, markersize=4.5, alpha=0.5, markeredgewidth=0)
    _number(axes, height, tables.spread(luck), color)


def _number(axes: Axes, height: float, text: str, color: str) -> None:
    axes.text(RIGHT, height, text, color=color, ha="right", va="center_baseline", weight="bold")


if __name__ == "__main__":
    with matplotlib.rc_context(STYLE):
        draw().savefig(PICTURE, dpi=200, metadata={"Description": description()})
