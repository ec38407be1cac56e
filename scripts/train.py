"""Trains one experiment and keeps its results.

python scripts/train.py --config configs/gbn.py
python scripts/train.py --config configs/gbn.py --config.epochs=3 --workdir=/some/dir
python scripts/train.py --config configs/gbn.py --config.replicas=4     # seeds 0 to 3

On several hosts, run the same command on each, with a shared folder for the results:

srun python scripts/train.py --config configs/gbn.py --distributed

Under Slurm, Kubernetes and others, JAX finds the processes; elsewhere, add on each host:
--distributed --coordinator_address=host0:1234 --num_processes=2 --process_id=0
"""

import re
import sys
from pathlib import Path

from absl import flags
from command_line import fail, run
from ml_collections import config_flags

from jax_mnist.analysis import run as one_run
from jax_mnist.runs import history, processes, trainer

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="File of the experiment; --config.field=value overrides a field."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the results (runs/<config name>).")
_FRESH = flags.DEFINE_bool("fresh", False, "Start over; what the folder holds is moved aside.")
_EVERY = flags.DEFINE_integer("checkpoint_every", 1, "Epochs between checkpoints.", lower_bound=1)
_KEEP = flags.DEFINE_integer("checkpoints_kept", 2, "How many are kept.", lower_bound=2)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Whether several processes train together.")
_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0, where JAX does not find it by itself."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many, likewise.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process_id", None, "Which this one is, likewise.", lower_bound=0)
flags.mark_flag_as_required("config")


def main(arguments):
    if arguments:
        fail(f"unexpected argument {arguments[0]!r}")
    if not _DISTRIBUTED.value and any(
        flag.value is not None for flag in (_ADDRESS, _PROCESSES, _PROCESS)
    ):
        fail("--coordinator_address, --num_processes and --process_id need --distributed")
    if _ADDRESS.value and not re.fullmatch(r".+:\d+", _ADDRESS.value):
        fail(f"--coordinator_address must be host:port; got {_ADDRESS.value!r}")
    if _DISTRIBUTED.value:
        processes.join_processes(_ADDRESS.value, _PROCESSES.value, _PROCESS.value)
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = Path(_WORKDIR.value or f"runs/{name}")
    records = trainer.train(
        _CONFIG.value, workdir, _FRESH.value, trainer.CheckpointPolicy(_EVERY.value, _KEEP.value)
    )
    for record in records:
        if history.has_diverged(record):
            continue  # reported when it happened
        summary = one_run.summary(record)
        of_seed = f", seed {record['seed']}" if len(records) > 1 else ""
        processes.say(
            f"{record['name']}{of_seed}: validation accuracy {summary.final_accuracy:.2%} at the "
            f"last epoch, best {summary.best_accuracy:.2%} at epoch {summary.best_epoch}"
        )
    processes.say(f"results in {workdir}/")
    if any(map(history.has_diverged, records)):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
