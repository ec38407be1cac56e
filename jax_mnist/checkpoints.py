"""Checkpoints of unfinished runs, written by Orbax; what is damaged is never read."""

import hashlib
import json
import re
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from jax_mnist import history

_CHECKSUMS = "sha256.json"


def save(folder: Path, step: int, arrays: list[np.ndarray], progress: Any, keep: int) -> None:
    """Writes a checkpoint, complete or not at all, and removes all but the newest `keep`.

    Args:
      folder: of the checkpoints, made if it does not exist.
      step: names the checkpoint; one of that step is left as it is.
      arrays: with at least one entry each.
      progress: what JSON can hold; numbers may be infinite or not a number.
      keep: at least 2, so that one is complete whenever the writing is cut off.

    Raises:
      OSError: it could not be written; the earlier ones are as they were.
    """
    import orbax.checkpoint as ocp  # here: half a second that a run's start need not wait for

    if (folder / str(step)).exists():
        return
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    contents = ocp.args.Composite(
        arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(progress)
    )
    # What Orbax's threads would print and log is raised here too.
    hook, verbosity = threading.excepthook, logging.get_verbosity()
    threading.excepthook = lambda _: None
    logging.set_verbosity(logging.FATAL)
    try:
        with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
            manager.save(step, args=contents)
    except (OSError, ValueError) as error:  # TensorStore's, which says more, is a ValueError
        reason = re.search(r"Failed to [^:]*: (.*?) \[", str(error))
        why = reason[1] if reason else getattr(error, "strerror", None) or error
        raise OSError(f"{str(folder / str(step))!r}: cannot be written: {why}") from error
    finally:
        threading.excepthook = hook
        logging.set_verbosity(verbosity)
    sums = json.dumps(_checksums(folder / str(step)))
    history.write_atomically(folder / str(step) / _CHECKSUMS, sums.encode())


def restore(folder: Path) -> tuple[list[np.ndarray], Any] | None:
    """The arrays and the progress of the newest checkpoint that is as it was written, if any.

    Damaged or half-written ones are removed, each with a line on standard error.
    """
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    for step in sorted(steps, reverse=True):
        if not _is_intact(folder / str(step)):
            shutil.rmtree(folder / str(step))
            print(f"{folder / str(step)} was damaged: removed", file=sys.stderr)
            continue
        import orbax.checkpoint as ocp

        with ocp.CheckpointManager(folder.absolute()) as manager:
            restored = manager.restore(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardRestore(), progress=ocp.args.JsonRestore()
                ),
            )
        return [np.asarray(array) for array in restored.arrays], restored.progress
    return None


def _checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != _CHECKSUMS
    }


def _is_intact(folder: Path) -> bool:
    try:
        return json.loads((folder / _CHECKSUMS).read_bytes()) == _checksums(folder)
    except (OSError, ValueError):
        return False
