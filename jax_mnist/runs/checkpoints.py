"""Checkpoints of unfinished runs: each run has its own, written whole or not at all.

A checkpoint is a file `checkpoints/STEP.msgpack` in the run's folder: the SHA-256 of what follows,
32 bytes, and then what `flax.serialization` makes of the run's part of a `loop.Progress`.
"""

import dataclasses
import hashlib
import operator
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
from flax import serialization

from jax_mnist.config import ConfigError
from jax_mnist.data import files
from jax_mnist.runs import history, processes
from jax_mnist.runs.loop import Program, Progress
from jax_mnist.runs.run import CHECKPOINTS, Run
from jax_mnist.training import mesh as mesh_lib
from jax_mnist.training.state import TrainState
from jax_mnist.training.step import StepMetrics

_DIGEST = hashlib.sha256().digest_size


def save(program: Program, progress: Progress, keep: int) -> None:
    """Writes a checkpoint of every run, and removes all but its newest `keep`.

    Every process must call this; the first one writes.

    Raises:
      OSError: A checkpoint could not be written. Earlier ones are as they were.
    """
    state = mesh_lib.fetch(program.mesh, _with_key_data(progress.state))
    if not processes.is_first_process():
        return
    for number, run in enumerate(program.runs):
        of_run = jax.tree.map(operator.itemgetter(number), (state, progress.partial))
        contents = {
            "step": progress.step,
            "state": serialization.to_state_dict(of_run[0]),
            "partial": of_run[1]._asdict(),
            "epochs": {
                key: np.array([epoch[key][number] for epoch in progress.epochs])
                for key in history.METRICS
            },
            "seconds": float(progress.seconds[number]),
            "data": program.data_digests,
        }
        data = serialization.msgpack_serialize(contents)
        files.write_atomically(_path(run, progress.step), hashlib.sha256(data).digest() + data)
        for step in sorted(_steps(run))[:-keep]:
            _path(run, step).unlink()


def restore(program: Program, progress: Progress, step: int) -> Progress:
    """The progress of the runs at a step that all of them have a checkpoint of.

    Args:
      program: What trains; it need not be the group of runs that saved.
      progress: The progress before the first step.
      step: See `newest_common_step`.

    Raises:
      ConfigError: The data have changed since, or the checkpoint is of another network.
    """
    saved = [_read(_path(run, step)) for run in program.runs]
    template = _with_key_data(progress.state)
    states = []
    for run, contents in zip(program.runs, saved, strict=True):
        if contents["data"] != program.data_digests:
            raise ConfigError(
                f"{run.config.dataset} has changed since {_path(run, step)} was written: "
                "bring it back, or name another folder for the run"
            )
        try:
            state = serialization.from_state_dict(template, contents["state"])
            chex.assert_trees_all_equal_shapes_and_dtypes(
                state, jax.tree.map(operator.itemgetter(0), template)
            )
        except (AssertionError, KeyError, ValueError) as error:
            message = f"{_path(run, step)} is of another network or version: name another folder"
            raise ConfigError(message) from error
        states.append(state)
    spare = len(progress.state.step) - len(states)
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *states, *[states[-1]] * spare)
    plain: TrainState = mesh_lib.put(program.mesh, stacked, mesh_lib.REPLICA)
    epochs = [contents["epochs"] for contents in saved]
    partial = [contents["partial"] for contents in saved]
    return Progress(
        state=dataclasses.replace(plain, key=jax.random.wrap_key_data(plain.key)),
        step=step,
        epochs=tuple(
            {key: np.array([of_run[key][number] for of_run in epochs]) for key in history.METRICS}
            for number in range(len(epochs[0]["seconds"]))
        ),
        partial=StepMetrics(**{k: np.stack([p[k] for p in partial]) for k in partial[0]}),
        seconds=np.array([contents["seconds"] for contents in saved]),
    )


def group_by_step(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups runs by the newest step that their members all have an intact checkpoint of.

    Runs without a checkpoint are a group of their own. A run joins those that are furthest behind
    if it still has their step: processes that are killed while they save leave such checkpoints.
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
    """The newest step that all runs have an intact checkpoint of, in every process the same.

    Damaged checkpoints are removed by the first process, each with a line on standard error.

    Raises:
      OSError: One cannot be read; nothing was removed for that.
    """
    newest = -1
    if processes.is_first_process():
        for run in runs:
            for step in _steps(run) - intact_steps(run):
                _path(run, step).unlink()
                print(f"{_path(run, step)} was damaged and has been removed", file=sys.stderr)
        newest = max(set.intersection(*map(intact_steps, runs)), default=-1)
    common = processes.broadcast(newest)
    return None if common < 0 else common


def intact_steps(run: Run) -> set[int]:
    """The steps of a run's checkpoints that are as they were written.

    Raises:
      ConfigError: The folder of checkpoints is a link: whoever made it may not choose which
        folder is read, and its files removed if they are damaged.
    """
    if (run.workdir / CHECKPOINTS).is_symlink():
        raise ConfigError(
            f"{run.workdir / CHECKPOINTS} is a link: remove it, or name another folder"
        )
    return {step for step in _steps(run) if _read(_path(run, step)) is not None}


def _path(run: Run, step: int) -> Path:
    return run.workdir / CHECKPOINTS / f"{step}.msgpack"


def _steps(run: Run) -> set[int]:
    found = (run.workdir / CHECKPOINTS).glob("*.msgpack")
    return {int(path.stem) for path in found if path.stem.isdecimal()}


def _read(path: Path) -> Any:
    """What a checkpoint holds, or None if it is not what was written."""
    data = path.read_bytes()
    digest, data = data[:_DIGEST], data[_DIGEST:]
    if hashlib.sha256(data).digest() != digest:
        return None
    return serialization.msgpack_restore(data)


def _with_key_data(state: TrainState) -> TrainState:
    return dataclasses.replace(state, key=jax.random.key_data(state.key))
