"""Trains variants over the same seeds and reports which differ, and by how much.

python scripts/study.py                                         # the eight variants, five seeds
python scripts/study.py --seeds=20 --workdir=/some/dir
python scripts/study.py configs/bn.py configs/l2.py --config.epochs=5   # chosen variants, a field

If interrupted, run the same command again to resume.
"""

import runpy
import shlex
import sys
from pathlib import Path

from absl import flags
from command_line import fail, run
from ml_collections import config_flags

from jax_mnist import config
from jax_mnist.analysis import claims, report
from jax_mnist.runs import study

VARIANTS = claims.ORIGINAL  # what is trained if no files are named

_SEEDS = flags.DEFINE_integer("seeds", 5, "How many seeds of every variant.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", "runs/study", "Folder of the runs and the report.")
try:
    config_flags.DEFINE_config_dict(
        "config", config.base(), "--config.field=value sets a field in every variant."
    )
except Exception as error:  # an unknown field on the command line
    fail(error)


def load(file, overrides):
    try:
        variant = runpy.run_path(str(file))["get_config"]()
        variant.update_from_flattened_dict(overrides)
    except Exception as error:  # a config file may raise anything
        fail(f"{file}: {error}")
    return variant


def main(arguments):
    folder = Path(__file__).parent.parent / "configs"
    files = [Path(file) for file in arguments] or [folder / f"{name}.py" for name in VARIANTS]
    names = [file.stem for file in files]
    if repeated := {name for name in names if names.count(name) > 1}:
        fail(f"two files are named {min(repeated)!r}: a variant is named after its file")
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    variants = {file.stem: load(file, overrides) for file in files}
    records = study.train_all(study.paired_runs(variants, _SEEDS.value, _WORKDIR.value))
    command = shlex.join(["python", "scripts/study.py", *sys.argv[1:]])
    try:
        report.write(records, _WORKDIR.value, command)
    except ValueError as error:
        fail(error)
    print(f"report in {_WORKDIR.value}/report.md and report.html")


if __name__ == "__main__":
    run(main)
