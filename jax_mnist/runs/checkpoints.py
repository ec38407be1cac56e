"""Checkpoints of unfinished runs: each run has its own, written atomically.

A checkpoint is a file `checkpoints/STEP.msgpack` in the run's folder: the 32 bytes of the
SHA-256 of the rest, and then the run's part of a `loop.Progress`, by `flax.serialization`.
"""

import dataclasses
import hashlib
import operator
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
from flax import serialization

from jax_mnist import files
from jax_mnist.config import ConfigError
from jax_mnist.runs import display
from jax_mnist.runs.folder import CHECKPOINTS, Run
from jax_mnist.runs.loop import Job, Progress
from jax_mnist.runs.record import METRICS
from jax_mnist.training import mesh as mesh_lib
from jax_mnist.training.state import TrainState
from jax_mnist.training.step import StepMetrics

_WRITERS = 16
_DIGEST = hashlib.sha256().digest_size


def save(job: Job, progress: Progress, keep: int) -> None:
    """Writes a checkpoint of every run, and removes all but its newest `keep`.

    Raises:
      OSError: A checkpoint could not be written. The run's earlier ones are unchanged.
    """
    state = jax.device_get(_with_key_data(progress.state))

    def save_run(number: int) -> None:
        run = job.runs[number]
        of_run = jax.tree.map(operator.itemgetter(number), (state, progress.partial))
        contents = {
            "step": progress.step,
            "state": serialization.to_state_dict(of_run[0]),
            "partial": of_run[1]._asdict(),
            "epochs": {
                key: np.array([epoch[key][number] for epoch in progress.epochs]) for key in METRICS
            },
            "seconds": float(progress.seconds[number]),
            "data": job.data_digests,
        }
        data = serialization.msgpack_serialize(contents)
        files.write_atomically(_path(run, progress.step), hashlib.sha256(data).digest() + data)
        for step in sorted(_steps(run))[:-keep]:
            _path(run, step).unlink()

    # Most of the time is waiting for the disk, which serves many files at once.
    with ThreadPoolExecutor(_WRITERS) as pool:
        for _ in pool.map(save_run, range(len(job.runs))):
            pass


def restore(job: Job, progress: Progress) -> Progress:
    """Returns the progress at the newest step that all runs have an intact checkpoint of.

    Damaged checkpoints are removed, each with a line on standard error.

    Args:
      job: The job to resume. Its runs may have been saved in other groups.
      progress: The progress before the first step, which is returned if there is no such step.

    Raises:
      ConfigError: The data have changed since, the checkpoint is of another network, or see
        `group_by_step`.
      OSError: A checkpoint cannot be read; it is not removed.
    """
    intact = [_intact(run) for run in job.runs]
    for run, contents in zip(job.runs, intact, strict=True):
        for path in (_path(run, step) for step in _steps(run) - contents.keys()):
            path.unlink()
            display.warn(f"{path} was damaged and has been removed")
    step = max(set.intersection(*map(set, intact)), default=None)
    if step is None:
        return progress
    template = _with_key_data(progress.state)
    saved = [
        _checked(job, _path(run, step), contents[step], template)
        for run, contents in zip(job.runs, intact, strict=True)
    ]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *saved)
    # The last run fills the mesh.
    replicas = np.minimum(np.arange(len(progress.state.step)), len(saved) - 1)
    state = jax.tree.map(operator.itemgetter(replicas), stacked["state"])
    plain: TrainState = mesh_lib.put(job.mesh, state, mesh_lib.REPLICA)
    epochs = stacked["epochs"]
    return Progress(
        state=dataclasses.replace(plain, key=jax.random.wrap_key_data(plain.key)),
        step=step,
        epochs=tuple(
            {key: epochs[key][:, number] for key in METRICS}
            for number in range(epochs["seconds"].shape[1])
        ),
        partial=StepMetrics(**stacked["partial"]),
        seconds=stacked["seconds"],
    )


def _checked(job: Job, path: Path, contents: Any, template: TrainState) -> dict[str, Any]:
    """Validates the contents of a checkpoint; the state gets the structure of `template`."""
    try:
        state = serialization.from_state_dict(template, contents["state"])
        expected = jax.tree.map(operator.itemgetter(0), template)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, expected)
        if {*contents["epochs"]} != {*METRICS} or not contents["partial"]["loss"].ndim:
            raise ValueError
        parts = {key: contents[key] for key in ("epochs", "partial", "seconds")}
        data_digests = contents["data"]
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        message = f"{path} is of another network or version: name another folder"
        raise ConfigError(message) from error
    if data_digests != job.data_digests:
        raise ConfigError(
            f"{job.runs[0].config.dataset} has changed since {path} was written: "
            "bring it back, or name another folder for the run"
        )
    return parts | {"state": state}


def group_by_step(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups runs by the newest step that their members all have an intact checkpoint of.

    Runs without a checkpoint form a group. A process that is killed while saving may
    leave runs at different steps: a run joins those furthest behind if it still has their step.

    Raises:
      ConfigError: A folder of checkpoints is a symbolic link, through which damaged files of
        another folder would be removed.
    """
    steps = {run.workdir: {*_intact(run)} for run in runs}
    groups = [[run for run in runs if not steps[run.workdir]]]
    rest = [run for run in runs if steps[run.workdir]]
    while rest:
        common = min(max(steps[run.workdir]) for run in rest)
        groups.append([run for run in rest if common in steps[run.workdir]])
        rest = [run for run in rest if common not in steps[run.workdir]]
    return [group for group in groups if group]


def _intact(run: Run) -> dict[int, Any]:
    """The contents of a run's intact checkpoints, by step."""
    if (run.workdir / CHECKPOINTS).is_symlink():
        raise ConfigError(
            f"{run.workdir / CHECKPOINTS} is a link: remove it, or name another folder"
        )
    intact = {}
    for step in _steps(run):
        data = _path(run, step).read_bytes()
        digest, data = data[:_DIGEST], data[_DIGEST:]
        if hashlib.sha256(data).digest() == digest:
            intact[step] = serialization.msgpack_restore(data)
    return intact


def _path(run: Run, step: int) -> Path:
    return run.workdir / CHECKPOINTS / f"{step}.msgpack"


def _steps(run: Run) -> set[int]:
    checkpoints = (run.workdir / CHECKPOINTS).glob("*.msgpack")
    return {int(path.stem) for path in checkpoints if path.stem.isdecimal()}


def _with_key_data(state: TrainState) -> TrainState:
    return dataclasses.replace(state, key=jax.random.key_data(state.key))
