"""Checkpoints of unfinished runs, written by Orbax; what is damaged is never read."""

import hashlib
import json
import re
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.typing import ArrayLike

from jax_mnist.data import files
from jax_mnist.runs import processes
from jax_mnist.runs.run import CHECKSUMS


def save(folder: Path, step: int, arrays: Sequence[ArrayLike], progress: Any, keep: int) -> None:
    """Writes a checkpoint, complete or not at all, and removes all but the newest `keep`.

    Args:
      folder: of the checkpoints, made if it does not exist.
      step: names the checkpoint.
      arrays: with at least one entry each. Of several processes each writes its shards.
      progress: what JSON can hold; numbers may be infinite or not a number.
      keep: at least 2, so that one is complete whenever the writing is cut off.

    Raises:
      OSError: it could not be written; the earlier ones are as they were.
    """
    import orbax.checkpoint as ocp  # here: half a second that a run's start need not wait for

    if jax.process_count() == 1:
        arrays = jax.device_get(arrays)
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
    if processes.is_first_process():
        sums = json.dumps(_checksums(folder / str(step)))
        files.write_atomically(folder / str(step) / CHECKSUMS, sums.encode())


def restore(folder: Path) -> tuple[int, list[np.ndarray], Any] | None:
    """Step, arrays and progress of the newest checkpoint that is as it was written, if any.

    Damaged or half-written ones are removed, each with a line on standard error.

    Raises:
      OSError: one cannot be read; nothing was removed for that.
    """
    step = processes.broadcast(_newest_intact(folder) if processes.is_first_process() else 0)
    if step < 0:
        return None
    import orbax.checkpoint as ocp

    handlers = {"arrays": ocp.StandardCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(folder.absolute(), item_handlers=handlers) as manager:
        # Whole NumPy arrays: the devices may be others than those that the shards were written by.
        saved = jax.tree.leaves(manager.item_metadata(step)["arrays"])
        whole = [np.empty(array.shape, array.dtype) for array in saved]
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(whole), progress=ocp.args.JsonRestore()
            ),
        )
    return step, restored.arrays, restored.progress


def _newest_intact(folder: Path) -> int:
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    for step in sorted(steps, reverse=True):
        if _is_intact(folder / str(step)):
            return step
        shutil.rmtree(folder / str(step))
        print(f"{folder / str(step)} was damaged: removed", file=sys.stderr)
    return -1


def _checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != CHECKSUMS
    }


def _is_intact(folder: Path) -> bool:
    try:
        return json.loads((folder / CHECKSUMS).read_bytes()) == _checksums(folder)
    except (FileNotFoundError, ValueError):  # what cannot be read just now may be sound
        return False
