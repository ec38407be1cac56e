"""Trains runs and writes their files: metrics, checkpoints and results."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from jax_mnist import config as config_lib
from jax_mnist.files import PathLike
from jax_mnist.nn.cnn import CNN, layer_table
from jax_mnist.runs import (
    checkpoints,
    compiler,
    display,
    history,
    loop,
    metric_writers,
    processes,
    results,
)
from jax_mnist.runs.display import Observer
from jax_mnist.runs.history import Record
from jax_mnist.runs.loop import Program, Progress
from jax_mnist.runs.run import (
    HISTORY,
    Run,
    check_name,
    exclusive,
    group_by_program,
    is_finished,
    move_aside,
    replicas,
)
from jax_mnist.runs.signals import StoppedError, stop_signals
from jax_mnist.training.parts import Loss, MakeOptimizer, Parts
from jax_mnist.training.recipe import make_model


class CheckpointPolicy(NamedTuple):
    """When checkpoints are saved.

    Attributes:
      every: Epochs between checkpoints, at least 1.
      keep: How many of the newest are kept; at least 2, so that runs that train together always
        have one in common.
    """

    every: int = 1
    keep: int = 2


DEFAULT_POLICY = CheckpointPolicy()


@processes.raise_lost_process()
def train(
    config: ConfigDict,
    workdir: PathLike,
    fresh: bool = False,
    policy: CheckpointPolicy = DEFAULT_POLICY,
    *,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    optimizer: MakeOptimizer | None = None,
) -> list[Record]:
    """Trains every replica of a config, and writes the files of each; see `train_together`.

    Finished replicas are not trained again.

    Args:
      config: See `config.base`.
      workdir: The run's folder, or that of the replicas' folders, see `run.replicas`. Its last
        part is the run's name in legends.
      fresh: Whether to start over. What `workdir` holds is moved to a folder beside it.
      policy: When checkpoints are saved.
      model: A network in place of the one that the config describes; see `parts.Parts`. The
        folder keeps the names of this and the next two: to resume, pass them again.
      loss: A loss to minimise in place of cross entropy, which is evaluated all the same.
      optimizer: Makes an optimiser in place of SGD with the config's decay and momentum.

    Returns:
      The records, by seed.

    Raises:
      ConfigError: A value is invalid, or the folder holds a run of another config or other parts.
      DatasetError: The data cannot be loaded.
      HistoryError: The folder holds a history that cannot be read.
      LostProcessError: Another process was lost.
      OSError: A file could not be written.
      StoppedError: See `train_together`.
    """
    compiler.configure()  # before anything starts JAX
    workdir = Path(workdir)
    name = workdir.resolve().name
    parts = Parts(model, loss, optimizer)
    with processes.fail_together():  # other processes look at the folder only after this
        config_lib.check(config)
        parts.check()
        check_name(name)
        if fresh:
            loop.load(config)  # reports errors in the data before anything is moved
            if processes.is_first_process() and (aside := move_aside(workdir)):
                display.say(f"moved {workdir} to {aside}")
    with processes.fail_together():  # before any process writes
        runs = replicas(name, config, workdir, parts)
        groups = groups_to_train(runs)
    if not groups:
        display.say(f"{workdir} is finished: nothing to do (--fresh starts over)")
    else:
        network = model or make_model(config)
        display.say(layer_table(network) if isinstance(network, CNN) else str(network))
    for group in groups:
        if config.replicas > 1:
            display.say(
                f"training {display.who(group)}" + ", whose mean is shown" * (len(group) > 1)
            )
        with display.of_epochs() as observe:
            train_together(group, observe, policy)
    return [history.load(run.workdir / HISTORY) for run in runs]


def groups_to_train(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups the unfinished runs that can train together: in one program, from the same step.

    Raises:
      ConfigError: A folder holds a run of another config.
      HistoryError: A folder holds a history that cannot be read.
    """
    unfinished = [run for run in runs if not is_finished(run)]
    return [
        group
        for of_program in group_by_program(unfinished)
        for group in checkpoints.group_by_step(of_program)
    ]


def train_together(
    runs: Sequence[Run], observe: Observer, policy: CheckpointPolicy = DEFAULT_POLICY
) -> list[Record]:
    """Trains runs as the replicas of one program, and writes the files of each.

    In each run's folder these are `metrics.jsonl`, and at the end `variables.msgpack` and
    `history.pkl`, see `results` and `history`. The time of an epoch is shared evenly by the runs.
    Training resumes at the newest step that all of them have a checkpoint of, to the same result.

    A run whose loss is not finite ends there: a line on standard error says where and why, its
    history ends with that epoch, and it has no variables. The other runs go on.

    Args:
      runs: A group from `groups_to_train`.
      observe: Called with the program and the progress, before training and after every few steps.
      policy: When checkpoints are saved.

    Returns:
      The records that the histories hold.

    Raises:
      StoppedError: SIGINT or SIGTERM was received; a checkpoint, or the results, were saved.
      ConfigError: The batch is larger than the training set, it does not fit the devices, or
        another process trains in a folder; nothing was trained.
      DatasetError: The data cannot be loaded.
    """
    compiler.configure()
    with processes.fail_together():  # before anything is written
        program, progress = loop.build(runs)
    with contextlib.ExitStack() as stack:
        step = None
        with processes.fail_together():
            if processes.is_first_process():
                for run in runs:
                    stack.enter_context(exclusive(run))
                step = checkpoints.newest_common_step(runs)
        with processes.fail_together():
            progress = _resume(program, progress, processes.broadcast(step))
        stopping = stack.enter_context(stop_signals())
        metric_writers.begin(program, progress)
        observe(program, progress)
        for after in loop.training(program, progress):
            _report_divergence(program, progress, after)
            ended = len(after.epochs) > len(progress.epochs)
            progress = after
            if ended:
                metric_writers.add(program, progress)
            observe(program, progress)
            number = processes.process_max(stopping[0] if stopping else 0)
            if number or (ended and len(progress.epochs) % policy.every == 0):
                checkpoints.save(program, progress, policy.keep)
            if number and not _is_complete(program, progress):
                where = display.where(program, progress.step)
                message = f"stopped and saved {where}; run the same command again to resume"
                raise StoppedError(message, number)
        records = _save_results(program, progress)
        # Every process waits here until the files are written.
        if number := processes.process_max(stopping[0] if stopping else 0):
            raise StoppedError("stopped after the last step; the results are saved", number)
        return records


def _resume(program: Program, progress: Progress, step: int | None) -> Progress:
    if step is None:
        return progress
    display.warn(f"{display.who(program.runs)}: resuming {display.where(program, step)}")
    return checkpoints.restore(program, progress, step)


def _save_results(program: Program, progress: Progress) -> list[Record]:
    found = results.make(program, progress)
    if processes.is_first_process():
        for run, (record, variables) in zip(program.runs, found, strict=True):
            metric_writers.end(run, record)
            results.save(run.workdir, record, variables)
    return [record for record, _ in found]


def _is_complete(program: Program, progress: Progress) -> bool:
    return len(progress.epochs) == program.epochs or not progress.active.any()


def _report_divergence(program: Program, before: Progress, after: Progress) -> None:
    """Warns about each run that has just diverged: when it did, and the likely cause."""
    for number in np.flatnonzero(before.active & ~after.active).tolist():
        run, finite = program.runs[number], np.isfinite(after.partial.loss[number])
        config, epoch = run.config, (after.step - 1) // program.steps_per_epoch + 1
        where = f"in epoch {epoch}/{program.epochs}, at step {finite.argmin() + 1}"
        if finite.all():
            where = f"at the evaluation after epoch {epoch}/{program.epochs}"
        display.warn(
            f"{run.name}, seed {config.seed}: the loss was not finite {where}; the learning rate "
            f"({config.learning_rate}) or the decay (L1 {config.l1}, L2 {config.l2}) is likely "
            "too high"
        )
