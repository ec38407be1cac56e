"""Trains one experiment and keeps its results.

python scripts/train.py --config configs/gbn.py
python scripts/train.py --config configs/gbn.py --config.epochs=3 --workdir=/some/dir
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from jax_mnist import analysis, runner
from jax_mnist.config import ConfigError
from jax_mnist.datasets import DatasetError
from jax_mnist.history import HistoryError

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="File of the experiment; --config.field=value overrides a field."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results (runs/<config name>).")
flags.mark_flag_as_required("config")


def fail(error):
    message = error.args[0] if isinstance(error, KeyError) else error
    print(f"train.py: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)


def parse(argv):
    try:
        return flags.FLAGS(argv)
    except Exception as error:  # what a config file raises is its own
        fail(error)


def main(argv):
    logging.set_verbosity(logging.WARNING)
    if argv[1:]:
        fail(f"unexpected argument {argv[1]!r}")
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = Path(_WORKDIR.value or f"runs/{name}")
    try:
        records = runner.train(_CONFIG.value, workdir)
    except (ConfigError, DatasetError, HistoryError, OSError) as error:
        fail(error)
    for record in records:
        summary = analysis.summary(record)
        of_seed = f", seed {record['seed']}" if len(records) > 1 else ""
        print(
            f"{record['name']}{of_seed}: validation accuracy {summary.final_accuracy:.2%} at the "
            f"last epoch, best {summary.best_accuracy:.2%} at epoch {summary.best_epoch}"
        )
    print(f"results in {workdir}/")


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
