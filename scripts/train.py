"""Trains one experiment, keeps its results and draws them.

python scripts/train.py gbn                       # configs/gbn.py into runs/gbn
python scripts/train.py configs/mine.py --config.epochs=3 --workdir=/some/dir
python scripts/train.py gbn --config.replicas=4   # seeds 0 to 3

On several hosts, run the same command on each, with a shared folder:

srun python scripts/train.py gbn --distributed

Under Slurm, Kubernetes and others, JAX finds the processes; elsewhere, add on
each host --coordinator_address=host0:1234 --num_processes=2 --process_id=0
"""

import re
import sys
from pathlib import Path

from absl import flags
from command_line import define_config, fail, load_config, run

from jax_mnist.analysis import figures, table
from jax_mnist.runs import display, history, processes, trainer

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results (runs/<config name>).")
_FRESH = flags.DEFINE_bool("fresh", False, "Start over; what the folder holds is moved aside.")
_EVERY = flags.DEFINE_integer("checkpoint_every", 1, "Epochs between checkpoints.", lower_bound=1)
_KEEP = flags.DEFINE_integer("checkpoints_kept", 2, "Checkpoints that are kept.", lower_bound=2)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Whether several processes train together.")
_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0, where JAX does not find it by itself."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Their number, likewise.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process_id", None, "Which this one is, from 0.", lower_bound=0)
define_config()


def main(arguments):
    name, config = load_config(arguments)
    if not _DISTRIBUTED.value and any(
        flag.value is not None for flag in (_ADDRESS, _PROCESSES, _PROCESS)
    ):
        fail("--coordinator_address, --num_processes and --process_id need --distributed")
    if _ADDRESS.value and not re.fullmatch(r".+:\d+", _ADDRESS.value):
        fail(f"--coordinator_address must be host:port; got {_ADDRESS.value!r}")
    if _DISTRIBUTED.value:
        processes.join_processes(_ADDRESS.value, _PROCESSES.value, _PROCESS.value)
    workdir = Path(_WORKDIR.value or f"runs/{name}")
    records = trainer.train(
        config, workdir, _FRESH.value, trainer.CheckpointPolicy(_EVERY.value, _KEEP.value)
    )
    for record in records:
        if history.has_diverged(record):
            continue  # reported when it happened
        run_row, epochs = table.of_records([record]).iloc[0], record["config"]["epochs"]
        of_seed = f", seed {record['seed']}" if len(records) > 1 else ""
        display.say(
            f"{record['name']}{of_seed}: val acc {run_row.accuracy_percent:.2f} % at the end, "
            f"best {run_row.best_accuracy_percent:.2f} % after epoch {run_row.best_epoch}/{epochs}"
        )
    if processes.is_first_process():
        draw(records, workdir)
    display.say(f"results in {workdir}/")
    if any(map(history.has_diverged, records)):
        sys.exit(1)


def draw(records, workdir):
    """Draws the curves of all seeds and the mistakes of the first one that did not diverge."""
    drawn = {
        "validation_accuracy.png": figures.curves(records, figures.ACCURACY),
        "validation_loss.png": figures.curves(records, figures.LOSS),
    }
    for record in [r for r in records if not history.has_diverged(r)][:1]:
        folder = f"seed-{record['seed']}/" if len(records) > 1 else ""
        drawn[f"{folder}misclassified.png"] = figures.misclassified(record)
    for name, figure in drawn.items():
        figures.save(figure, workdir / name)
    display.say(f"drew {', '.join(drawn)}")


if __name__ == "__main__":
    run(main)
