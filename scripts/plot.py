"""Draws the figures of one or more runs from their history files.

python scripts/plot.py runs/*/history.pkl --out figures

Writes validation_accuracy.png and validation_loss.png, which show all runs, and for each run
misclassified_NAME.png and confusion_NAME.png. It is safe to read files from strangers.
"""

from pathlib import Path

from absl import flags
from command_line import fail, run

from jax_mnist.analysis import plots
from jax_mnist.runs import history

_OUT = flags.DEFINE_string("out", "figures", "Folder to write the figures to.")


def main(arguments):
    if not arguments:
        fail("name the history.pkl of one or more runs")
    records = [history.load(file) for file in arguments]
    for name, figure in plots.figures(records):
        path = Path(_OUT.value) / name
        plots.save(figure, path)
        print(path)


if __name__ == "__main__":
    run(main)
