"""Trains runs and writes their files: metrics, checkpoints and results."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from jax_mnist import config as config_lib
from jax_mnist import files
from jax_mnist.files import PathLike
from jax_mnist.nn.cnn import CNN, layer_table
from jax_mnist.runs import checkpoints, compiler, display, folder, loop, metric_writers
from jax_mnist.runs.display import Observer
from jax_mnist.runs.folder import HISTORY, VARIABLES, Run
from jax_mnist.runs.loop import Job, Progress
from jax_mnist.runs.record import Record, load_record, save_record
from jax_mnist.runs.signals import StoppedError, stop_signals
from jax_mnist.runs.trained import make_results
from jax_mnist.training.parts import Augment, Loss, MakeOptimizer, Overrides
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


def train(
    config: ConfigDict,
    workdir: PathLike,
    fresh: bool = False,
    policy: CheckpointPolicy = DEFAULT_POLICY,
    *,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    optimizer: MakeOptimizer | None = None,
    augment: Augment | None = None,
) -> list[Record]:
    """Trains every replica of a config, and writes the files of each; see `train_together`.

    Finished replicas are not trained again.

    Args:
      config: See `config.base`.
      workdir: The run's folder, or that of the replicas' folders, see `folder.replicas`. Its last
        part is the run's name in legends.
      fresh: Whether to start over. What `workdir` holds is moved to a folder beside it.
      policy: When checkpoints are saved.
      model: A network in place of the one that the config describes; see `parts.Overrides`. The
        folder keeps the names of this and the next three: to resume, pass them again.
      loss: A loss to minimise in place of cross entropy, which is evaluated all the same.
      optimizer: Makes an optimiser in place of SGD with the config's decay and momentum.
      augment: Changes an image at random, in place of the config's augmentation.

    Returns:
      The records, by seed.

    Raises:
      ConfigError: A value is invalid, or the folder holds a run of another config or other parts.
      DatasetError: The data cannot be loaded.
      RecordError: The folder holds a history that cannot be read.
      OSError: A file could not be written.
      StoppedError: See `train_together`.
    """
    compiler.configure()  # before anything starts JAX
    workdir, overrides = Path(workdir), Overrides(model, loss, optimizer, augment)
    name = workdir.resolve().name
    config_lib.check(config)
    overrides.check()
    folder.check_name(name)
    if fresh:
        loop.load_splits(config)  # reports errors in the data before anything is moved
        if aside := folder.move_aside(workdir):
            display.say(f"moved {workdir} to {aside}")
    runs = folder.replicas(name, config, workdir, overrides)
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
        with display.of_epochs(config.epochs) as observe:
            train_together(group, observe, policy)
    return [load_record(run.workdir / HISTORY) for run in runs]


def groups_to_train(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups the unfinished runs that can train together: in one program, from the same step.

    Raises:
      ConfigError: A folder holds a run of another config.
      RecordError: A folder holds a history that cannot be read.
    """
    of_program: dict[Any, list[Run]] = {}
    for run in runs:
        if not folder.is_finished(run):
            shared, _ = config_lib.split(run.config)
            of_program.setdefault((shared, run.overrides), []).append(run)
    return [group for same in of_program.values() for group in checkpoints.group_by_step(same)]


def train_together(
    runs: Sequence[Run], observe: Observer, policy: CheckpointPolicy = DEFAULT_POLICY
) -> list[Record]:
    """Trains runs as the replicas of one program, and writes the files of each.

    In each run's folder these are `metrics.jsonl`, and at the end `variables.msgpack` and
    `history.pkl`, see `trained` and `record`. The time of an epoch is shared evenly by the runs.
    Training resumes at the newest step that all of them have a checkpoint of, to the same result.

    A run whose loss is not finite ends there: a line on standard error says where and why, its
    history ends with that epoch, and it has no variables. The other runs go on.

    Args:
      runs: A group from `groups_to_train`.
      observe: Called with the job and the progress, before training and after every few steps.
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
    job, progress = loop.build(runs)
    with contextlib.ExitStack() as stack:
        # Locks the folders and finds out where to begin.
        for run in runs:
            stack.enter_context(folder.exclusive(run))
        progress = checkpoints.restore(job, progress)
        if progress.step:
            place = display.position(job, progress.step)
            display.warn(f"{display.who(runs)}: resuming {place}")
        stopping = stack.enter_context(stop_signals())
        metric_writers.begin(job, progress)
        observe(job, progress)

        # Trains, and writes what each call of the compiled program brings.
        for after in loop.advance(job, progress):
            _report_divergence(job, progress, after)
            epoch_ended = len(after.epochs) > len(progress.epochs)
            progress = after
            if epoch_ended:
                metric_writers.add(job, progress)
            observe(job, progress)
            if stopping or (epoch_ended and len(progress.epochs) % policy.every == 0):
                checkpoints.save(job, progress, policy.keep)
            if stopping and len(progress.epochs) < job.epochs and progress.active.any():
                position = display.position(job, progress.step)
                message = f"stopped and saved {position}; run the same command again to resume"
                raise StoppedError(message, stopping[0])

        # Writes the results; the history comes last and marks a run as finished.
        results = make_results(job, progress)
        for run, (record, variables) in zip(runs, results, strict=True):
            metric_writers.end(run, record)
            if variables:
                files.write_atomically(run.workdir / VARIABLES, variables)
            save_record(run.workdir / HISTORY, record)
        if stopping:
            raise StoppedError("stopped after the last step; the results are saved", stopping[0])
        return [record for record, _ in results]


def _report_divergence(job: Job, before: Progress, after: Progress) -> None:
    """Warns about each run that has just diverged: when it did, and the likely cause."""
    for number in np.flatnonzero(before.active & ~after.active).tolist():
        run, finite = job.runs[number], np.isfinite(after.partial.loss[number])
        config, epoch = run.config, (after.step - 1) // job.steps_per_epoch + 1
        position = f"in epoch {epoch}/{job.epochs}, at step {finite.argmin() + 1}"
        if finite.all():
            position = f"at the evaluation after epoch {epoch}/{job.epochs}"
        display.warn(
            f"{run.name}, seed {config.seed}: the loss was not finite {position}; the learning "
            f"rate ({config.learning_rate}) or the decay (L1 {config.l1}, L2 {config.l2}) is "
            "likely too high"
        )
