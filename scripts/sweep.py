"""Trains a config with every combination of some values, and ranks them.

python scripts/sweep.py --config configs/l2.py --vary l2=1e-5,1e-4,1e-3 --replicas 4
python scripts/sweep.py --config configs/gbn.py --vary ghost_batch_size=16,32 --vary l2=0,1e-4

A sweep chooses values, so it does not use the test images: it trains on train[:-10000] and ranks by
train[-10000:], unless both --config.train_split and --config.validation_split are given.
If interrupted, run the same command again to resume.
"""

from pathlib import Path

from absl import flags
from command_line import fail, run
from ml_collections import config_flags

from jax_mnist import config as config_lib
from jax_mnist.analysis import statistics
from jax_mnist.analysis.run import final_accuracy
from jax_mnist.runs import history, study

SPLITS = ("train_split", "validation_split")

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="File of the experiment; --config.field=value overrides a field."
)
_VARY = flags.DEFINE_multi_string("vary", None, "FIELD=VALUE,VALUE,...; may be repeated.")
_REPLICAS = flags.DEFINE_integer("replicas", 1, "Seeds of each combination.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs (runs/sweep_<config name>).")
flags.mark_flags_as_required(["config", "vary"])


def main(arguments):
    if arguments:
        fail(f"unexpected argument {arguments[0]!r}")
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = _WORKDIR.value or f"runs/sweep_{name}"
    config, overrides = _CONFIG.value, config_flags.get_override_values(flags.FLAGS["config"])
    config_lib.check(config)
    chosen = [field for field in SPLITS if field in overrides]
    if len(chosen) == 1:
        fail(
            f"--config.{chosen[0]} alone is not enough: give --config.{{{','.join(SPLITS)}}}, both"
        )
    if not chosen:
        config.update(train_split="train[:-10000]", validation_split="train[-10000:]")
    vary = {}
    for text in _VARY.value:
        field, equals, values = text.partition("=")
        if not equals or field in vary:
            fail(f"--vary takes FIELD=VALUE,VALUE,... and each field once; got {text!r}")
        if field in ("dataset", "validation_split", "data_dir", "source_dir"):
            fail(f"--vary {field}: a sweep ranks by the same images, so that they cannot vary")
        if field == "train_split" and not chosen:
            fail(
                f"--vary train_split: give --config.{{{','.join(SPLITS)}}}, so that no value takes "
                "in the images that it is ranked by"
            )
        vary[field] = values.split(",")
    variants = study.grid(config, vary)
    records = study.train_all(study.paired_runs(variants, _REPLICAS.value, workdir))
    intervals = {
        name: statistics.mean_interval([final_accuracy(run) for run in runs.values()])
        for name, runs in statistics.by_variant(records).items()
        if not any(map(history.has_diverged, runs.values()))
    }
    print(f"accuracy on {config.validation_split}, {_REPLICAS.value} of each; 95 % interval")
    for name, (mean, low, high, _) in sorted(intervals.items(), key=lambda item: -item[1].mean):
        interval = f" ({low:.3f} to {high:.3f})" if low < high else ""
        print(f"{mean:.3f} %{interval}  {name}")
    for name in variants.keys() - intervals.keys():
        print(f"diverged  {name}")


if __name__ == "__main__":
    run(main)
