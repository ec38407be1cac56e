"""Trains a config with every combination of some values, and ranks them.

python scripts/sweep.py --config configs/l2.py --vary l2=1e-5,1e-4,1e-3 --replicas 4
python scripts/sweep.py --config configs/gbn.py --vary ghost_batch_size=16,32 --vary l2=0,1e-4

A sweep is for choosing, so the test images stay out of it: unless --config.train_split and
--config.validation_split say otherwise, it trains on train[:-10000] and ranks by train[-10000:].
A sweep that was stopped goes on with the runs that are not finished.
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from jax_mnist import comparison, study
from jax_mnist.config import ConfigError
from jax_mnist.datasets import DatasetError
from jax_mnist.history import HistoryError

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="File of the experiment; --config.field=value overrides a field."
)
_VARY = flags.DEFINE_multi_string("vary", None, "FIELD=VALUE,VALUE,...; may be repeated.")
_REPLICAS = flags.DEFINE_integer("replicas", 1, "Seeds of each combination.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs (runs/sweep_<config name>).")
flags.mark_flags_as_required(["config", "vary"])


def fail(error):
    message = error.args[0] if isinstance(error, KeyError) else error
    print(f"sweep.py: {' '.join(str(message).split())}", file=sys.stderr)
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
    workdir = _WORKDIR.value or f"runs/sweep_{name}"
    config, overrides = _CONFIG.value, config_flags.get_override_values(flags.FLAGS["config"])
    if not {"train_split", "validation_split"} & set(overrides):
        config.update(train_split="train[:-10000]", validation_split="train[-10000:]")
    vary = {}
    for text in _VARY.value:
        field, equals, values = text.partition("=")
        if not equals or field in vary:
            fail(f"--vary takes FIELD=VALUE,VALUE,... and each field once; got {text!r}")
        vary[field] = values.split(",")
    try:
        variants = study.grid(config, vary)
        records = study.train_all(study.paired_runs(variants, _REPLICAS.value, workdir))
    except (ConfigError, DatasetError, HistoryError, OSError) as error:
        fail(error)
    intervals = {
        name: comparison.mean_interval([comparison.final_accuracy(run) for run in runs.values()])
        for name, runs in comparison.by_variant(records).items()
    }
    print(f"accuracy on {config.validation_split}, {_REPLICAS.value} of each; 95 % interval")
    for name, (mean, low, high) in sorted(intervals.items(), key=lambda item: -item[1].mean):
        interval = f" ({low:.3f} to {high:.3f})" if low < high else ""
        print(f"{mean:.3f} %{interval}  {name}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
