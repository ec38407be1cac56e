"""Trains variants over the same seeds and reports which differ, and by how much.

python scripts/study.py                                         # the eight variants, five seeds
python scripts/study.py --seeds=20 --workdir=/some/dir
python scripts/study.py configs/bn.py configs/l2.py --config.epochs=5   # chosen variants, a field

A study that was stopped goes on with the runs that are not finished.
"""

import runpy
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from jax_mnist import config, report, study
from jax_mnist.datasets import DatasetError
from jax_mnist.history import HistoryError

VARIANTS = ("bn", "l1", "l2", "l1_l2", "gbn", "gbn_l1", "gbn_l2", "gbn_l1_l2")

_SEEDS = flags.DEFINE_integer("seeds", 5, "How many seeds of every variant.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", "runs/study", "Folder of the runs and the report.")
_CONFIG = config_flags.DEFINE_config_dict(
    "config", config.base(), "--config.field=value sets a field in every variant."
)


def fail(error):
    print(f"study.py: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def parse(argv):
    try:
        return flags.FLAGS(argv)
    except Exception as error:
        fail(error)


def main(argv):
    logging.set_verbosity(logging.WARNING)
    here = Path(__file__).parent.parent / "configs"
    files = [Path(file) for file in argv[1:]] or [here / f"{name}.py" for name in VARIANTS]
    try:
        variants = {}
        for file in files:
            variants[file.stem] = runpy.run_path(str(file))["get_config"]()
            variants[file.stem].update_from_flattened_dict(
                config_flags.get_override_values(flags.FLAGS["config"])
            )
        records = study.train_all(study.paired_runs(variants, _SEEDS.value, _WORKDIR.value))
        report.write(records, _WORKDIR.value)
    except (config.ConfigError, DatasetError, HistoryError, OSError, KeyError) as error:
        fail(error)
    print(f"report in {_WORKDIR.value}/report.md and report.html")


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
