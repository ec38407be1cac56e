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


def restore(job: Job, progress: Progress, step: int) -> Progress:
    """Returns the progress of the runs at a step of which all of them have a checkpoint.

    Args:
      job: The job to resume. Its runs may have been saved in other groups.
      progress: The progress before the first step.
      step: See `newest_common_step`.

    Raises:
      ConfigError: The data have changed since, or the checkpoint is of another network.
    """
    template = _with_key_data(progress.state)
    saved = []
    for run in job.runs:
        path = _path(run, step)
        try:
            saved.append(_checked(_read(path), template))
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            message = f"{path} is of another network or version: name another folder"
            raise ConfigError(message) from error
        if saved[-1]["data"] != job.data_digests:
            raise ConfigError(
                f"{run.config.dataset} has changed since {path} was written: "
                "bring it back, or name another folder for the run"
            )
    states = [contents["state"] for contents in saved]
    states += states[-1:] * (len(progress.state.step) - len(states))  # to fill the mesh
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *states)
    plain: TrainState = mesh_lib.put(job.mesh, stacked, mesh_lib.REPLICA)
    epochs, partial = ([contents[part] for contents in saved] for part in ("epochs", "partial"))
    return Progress(
        state=dataclasses.replace(plain, key=jax.random.wrap_key_data(plain.key)),
        step=step,
        epochs=tuple(
            {key: np.array([of_run[key][number] for of_run in epochs]) for key in METRICS}
            for number in range(len(epochs[0]["seconds"]))
        ),
        partial=StepMetrics(**{k: np.stack([p[k] for p in partial]) for k in partial[0]}),
        seconds=np.array([contents["seconds"] for contents in saved]),
    )


def _checked(contents: dict[str, Any], template: TrainState) -> dict[str, Any]:
    """Validates the contents of a checkpoint, and gives its state the structure of `template`."""
    state = serialization.from_state_dict(template, contents["state"])
    expected = jax.tree.map(operator.itemgetter(0), template)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, expected)
    if {*contents["epochs"]} != {*METRICS} or not contents["partial"]["loss"].ndim:
        raise ValueError
    return {
        "state": state,
        **{key: contents[key] for key in ("epochs", "partial", "seconds", "data")},
    }


def group_by_step(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups runs by the newest step that their members all have an intact checkpoint of.

    Runs without a checkpoint form a group. A process that is killed while saving may
    leave runs at different steps: a run joins those furthest behind if it still has their step.
    """
    steps = {run.workdir: intact_steps(run) for run in runs}
    groups = [[run for run in runs if not steps[run.workdir]]]
    rest = [run for run in runs if steps[run.workdir]]
    while rest:
        common = min(max(steps[run.workdir]) for run in rest)
        groups.append([run for run in rest if common in steps[run.workdir]])
        rest = [run for run in rest if common not in steps[run.workdir]]
    return [group for group in groups if group]


def newest_common_step(runs: Sequence[Run]) -> int | None:
    """The newest step that all runs have an intact checkpoint of, if there is any.

    Damaged checkpoints are removed, each with a line on standard error.

    Raises:
      ConfigError: See `intact_steps`.
      OSError: A checkpoint cannot be read; it is not removed.
    """
    intact = [intact_steps(run) for run in runs]
    for run, steps in zip(runs, intact, strict=True):
        for step in _steps(run) - steps:
            _path(run, step).unlink()
            display.warn(f"{_path(run, step)} was damaged and has been removed")
    return max(set.intersection(*intact), default=None)


def intact_steps(run: Run) -> set[int]:
    """Returns the steps of a run's intact checkpoints.

    Raises:
      ConfigError: The folder of checkpoints is a symbolic link, through which damaged files of
        another folder would be removed.
    """
    if (run.workdir / CHECKPOINTS).is_symlink():
        raise ConfigError(
            f"{run.workdir / CHECKPOINTS} is a link: remove it, or name another folder"
        )
    return {step for step in _steps(run) if _read(_path(run, step)) is not None}


def _path(run: Run, step: int) -> Path:
    return run.workdir / CHECKPOINTS / f"{step}.msgpack"


def _steps(run: Run) -> set[int]:
    checkpoints = (run.workdir / CHECKPOINTS).glob("*.msgpack")
    return {int(path.stem) for path in checkpoints if path.stem.isdecimal()}


def _read(path: Path) -> Any:
    """Returns the contents of a checkpoint, or None if it is damaged."""
    data = path.read_bytes()
    digest, data = data[:_DIGEST], data[_DIGEST:]
    if hashlib.sha256(data).digest() != digest:
        return None
    return serialization.msgpack_restore(data)


def _with_key_data(state: TrainState) -> TrainState:
    return dataclasses.replace(state, key=jax.random.key_data(state.key))
