"""Trains one experiment, keeps its results and draws them.

python scripts/train.py gbn                       # configs/gbn.py into runs/gbn
python scripts/train.py configs/mine.py --config.epochs=3 --workdir=/some/dir
python scripts/train.py gbn --config.replicas=4   # seeds 0 to 3
"""

import sys
from pathlib import Path

from command_line import define_config, flags, load_only_variant, run

from jax_mnist.analysis import figures
from jax_mnist.runs import display, trainer
from jax_mnist.runs.record import has_diverged

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results (runs/<config name>).")
_FRESH = flags.DEFINE_bool("fresh", False, "Start over; what the folder holds is moved aside.")
_EVERY = flags.DEFINE_integer("checkpoint_every", 1, "Epochs between checkpoints.", lower_bound=1)
_KEEP = flags.DEFINE_integer("checkpoints_kept", 2, "Checkpoints that are kept.", lower_bound=2)
define_config()


def main(arguments):
    name, variant = load_only_variant(arguments)
    workdir = Path(_WORKDIR.value or f"runs/{name}")
    policy = trainer.CheckpointPolicy(_EVERY.value, _KEEP.value)
    own_parts = variant.overrides._asdict()
    records = trainer.train(variant.config, workdir, _FRESH.value, policy, **own_parts)
    for record in records:
        if not has_diverged(record):  # that was reported when it happened
            of_seed = f", seed {record['seed']}" if len(records) > 1 else ""
            display.say(f"{record['name']}{of_seed}: {accuracies(record)}")
    draw(records, workdir)
    display.say(f"results in {workdir}/")
    if any(map(has_diverged, records)):
        sys.exit(1)


def accuracies(record):
    """Names the last validation accuracy of a run, and its best."""
    percent = 100 * record["metrics"]["validation_accuracy"]
    best = percent.argmax()
    return (
        f"val acc {percent[-1]:.2f} % at the end, best {percent[best]:.2f} % after epoch "
        f"{best + 1}/{record['config']['epochs']}"
    )


def draw(records, workdir):
    """Draws the curves of all seeds and the mistakes of the first one that did not diverge."""
    drawn = {
        f"validation_{metric}.png": figures.curves(records, metric)
        for metric in ("accuracy", "loss")
    }
    for record in [r for r in records if not has_diverged(r)][:1]:
        folder = f"seed-{record['seed']}/" if len(records) > 1 else ""
        drawn[f"{folder}misclassified.png"] = figures.misclassified(record)
    for name, figure in drawn.items():
        figures.save(figure, workdir / name)
    display.say(f"drew {', '.join(drawn)}")


if __name__ == "__main__":
    run(main)
