"""Draws the figures of one or more runs from their metric pickles.

    python scripts/plot.py runs/*/history.pkl --out figures

writes validation_accuracy.png and validation_loss.png with all runs, and misclassified_NAME.png and
confusion_NAME.png for each. The files may come from strangers: see `jax_mnist.history.load`.
"""

import argparse
import pathlib
import sys

from jax_mnist import history, plots


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="history.pkl")
    parser.add_argument("--out", default="figures", type=pathlib.Path, help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        records = [history.load(file) for file in arguments.files]
        for name, figure in plots.figures(records):
            plots.save(figure, arguments.out / name)
            print(arguments.out / name)
    except (history.HistoryError, OSError) as error:
        print(f"plot.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
