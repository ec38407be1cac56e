"""Trains a config with every combination of some values, and ranks them.

python scripts/sweep.py l2 --vary l2=1e-5,1e-4,1e-3 --replicas 4
python scripts/sweep.py gbn --vary ghost_batch_size=16,32 --vary l2=0,1e-4

A sweep chooses values, so it does not use the test images: it trains on
train[:-10000] and ranks by train[-10000:], unless both --config.train_split and
--config.validation_split are given. If interrupted, run the same command again
to resume.
"""

import math
from pathlib import Path

from command_line import define_config, fail, fields_from_flags, flags, load_only_variant, run

from jax_mnist import config as config_lib
from jax_mnist import files
from jax_mnist.analysis import table
from jax_mnist.runs import study

SPLITS = ("train_split", "validation_split")

_VARY = flags.DEFINE_multi_string("vary", None, "FIELD=VALUE,VALUE,...; may be repeated.")
_REPLICAS = flags.DEFINE_integer("replicas", 1, "Seeds of each combination.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs (runs/sweep_<config name>).")
define_config()


def main(arguments):
    name, variant = load_only_variant(arguments)
    config = variant.config
    workdir = Path(_WORKDIR.value or f"runs/sweep_{name}")
    config_lib.check(config)
    chosen = [field for field in SPLITS if field in fields_from_flags()]
    if len(chosen) == 1:
        fail(
            f"--config.{chosen[0]} alone is not enough: give --config.{{{','.join(SPLITS)}}}, both"
        )
    if not chosen:
        config.update(train_split="train[:-10000]", validation_split="train[-10000:]")
    variants = study.grid(variant, _vary(chosen))
    records = study.train_all(study.paired_runs(variants, _REPLICAS.value, workdir))
    runs = table.of_records(records)
    ranking = table.ranking(runs)
    files.write_atomically(workdir / "ranking.csv", ranking.to_csv().encode())
    files.write_atomically(workdir / "results.csv", table.to_csv(runs).encode())
    show(ranking, config.validation_split)
    print(f"ranking in {workdir / 'ranking.csv'}, every run in {workdir / 'results.csv'}")


def _vary(chosen):
    """The values of each varied field, as they were typed."""
    if not _VARY.value:
        fail("name the values to try, such as --vary l2=1e-5,1e-4")
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
    return vary


def show(ranking, images):
    seeds = int(ranking.seeds.iloc[0])
    between = {1: "", 2: " (lowest to highest)"}.get(seeds, " (95 % interval)")
    print(f"mean accuracy{between} on {images}, {seeds} {'seed' if seeds == 1 else 'seeds'} each")
    for row in ranking.itertuples():
        bounded = seeds > 1 and math.isfinite(row.low)
        interval = f" ({row.low:.3f} to {row.high:.3f})" if bounded else ""
        accuracy = "diverged" if row.diverged else f"{row.accuracy_percent:.3f} %"
        print(f"{accuracy}{interval}  {row.Index}")


if __name__ == "__main__":
    run(main)
