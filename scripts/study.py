"""Trains variants over the same seeds and reports which differ, and by how much.

python scripts/study.py --quick         # a first impression, in minutes
python scripts/study.py                 # the eight variants, five seeds
python scripts/study.py --seeds=20 --workdir=/some/dir
python scripts/study.py bn l2 configs/mine.py --config.epochs=5

If interrupted, run the same command again to resume.
"""

import shlex
import sys
from pathlib import Path

from command_line import define_config, fail, fields_from_flags, flags, load_variants, run

from jax_mnist.analysis import claims, report
from jax_mnist.runs import study

VARIANTS = claims.ORIGINAL  # what is trained if none is named
QUICK_VARIANTS = ("bn", "l2", "gbn")  # likewise with --quick
QUICK = {"epochs": 3, "train_split": "train[:16000]"}
QUICK_SEEDS, SEEDS = 3, 5
NOTE = (
    "This is a quick study, for a first impression: {epochs} epochs of the training images "
    "{train_split}. After so short a training, variants may rank differently than in a full study."
)

_QUICK = flags.DEFINE_bool("quick", False, "Few epochs of few images: one to two minutes.")
_SEEDS = flags.DEFINE_integer(
    "seeds",
    None,
    f"How many seeds of every variant ({SEEDS}; quick: {QUICK_SEEDS}).",
    lower_bound=1,
)
_COMPARE = flags.DEFINE_string(
    "compare_claims_with",
    None,
    "Folder of another study; the report shows its verdicts on the claims too.",
)
_BASELINE = flags.DEFINE_string(
    "baseline", "", "Variant that the others are compared with (bn or else the first)."
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the runs and the report (runs/study; quick: runs/quick; of named variants: "
    "runs/study_NAME_vs_NAME).",
)
define_config()


def main(arguments):
    kind, names, seeds, changes = "study", VARIANTS, SEEDS, fields_from_flags()
    if _QUICK.value:
        kind, names, seeds, changes = "quick", QUICK_VARIANTS, QUICK_SEEDS, QUICK | changes
    variants = load_variants(arguments or names, changes)
    if arguments:
        kind += "_" + "_vs_".join(variants)
    folder = Path(_WORKDIR.value or f"runs/{kind}")
    if _BASELINE.value and _BASELINE.value not in variants:
        fail(f"--baseline={_BASELINE.value} must be one of the variants: {', '.join(variants)}")
    others = {}
    if _COMPARE.value:
        others[Path(_COMPARE.value).name] = study.finished(_COMPARE.value)
        if not all(others.values()):
            fail(f"--compare_claims_with={_COMPARE.value} holds no finished runs of a study")
    records = study.train_all(study.paired_runs(variants, _SEEDS.value or seeds, folder))
    own = sys.argv[0].startswith("jax-mnist")  # the command of an installed package
    program = "jax-mnist study" if own else "python scripts/study.py"
    command = f"{program} {shlex.join(sys.argv[1:])}".strip()
    note = NOTE.format(**next(iter(variants.values())).config) if _QUICK.value else ""
    try:
        summary = report.write(records, folder, command, note, _BASELINE.value, others)
    except ValueError as error:
        fail(error)
    print(summary)
    print(f"report: {(folder / 'report.html').resolve().as_uri()}")


if __name__ == "__main__":
    run(main)
