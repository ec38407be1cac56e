"""Draws the figures of one or more runs.

python scripts/plot.py runs/bn runs/gbn --out figures
python scripts/plot.py from_a_friend/history.pkl

A run is a folder, of one seed or several, or the history.pkl in it. Writes
validation_accuracy.png and validation_loss.png, which compare all runs. Of a
single run, or with --all of each, it also writes misclassified_NAME.png and
confusion_NAME.png. It is safe to read files from strangers.
"""

from pathlib import Path

from command_line import fail, flags, run

from jax_mnist.analysis import figures
from jax_mnist.runs.folder import HISTORY, finished_folders
from jax_mnist.runs.record import load_record

_OUT = flags.DEFINE_string("out", "figures", "Folder to write the figures to.")
_ALL = flags.DEFINE_bool("all", False, "Draw the mistakes and confusions of several runs too.")


def main(arguments):
    if not arguments:
        fail("name the folders of one or more runs, or their history.pkl")
    records = [load_record(file) for path in arguments for file in histories(Path(path))]
    for name, figure in figures.of_runs(records, every=_ALL.value):
        path = Path(_OUT.value) / name
        figures.save(figure, path)
        print(path)


def histories(path):
    """The history files of a run, of one seed or several."""
    if not path.is_dir():
        return [path]
    return [folder / HISTORY for folder in finished_folders(path) or [path]]


if __name__ == "__main__":
    run(main)
