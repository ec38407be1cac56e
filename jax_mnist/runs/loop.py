"""The host loop: from a config to a trained model, its history and its files."""

import contextlib
import dataclasses
import functools
import operator
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from jax_mnist import config as config_lib
from jax_mnist.data import datasets
from jax_mnist.nn import cnn as model
from jax_mnist.nn.batch_last import largest_divisor
from jax_mnist.runs import checkpoints, compiler, history, metric_writers, processes, results
from jax_mnist.runs.history import Record
from jax_mnist.runs.run import (
    HISTORY,
    Run,
    begun_in,
    check_name,
    checkpoint_folder,
    identities,
    is_finished,
    link_checkpoints,
    move_aside,
    only_writer,
    replicas,
    together,
)
from jax_mnist.runs.signals import StoppedError, stop_signals
from jax_mnist.training import augment
from jax_mnist.training import mesh as devices
from jax_mnist.training import step as training
from jax_mnist.training.recipe import make_model, make_recipe

MAX_STEPS_PER_CALL = 30  # on a CPU: about a second, so that the progress bar moves


def steps_per_call(steps: int, replicas: int = 1) -> int:
    """How many of an epoch's steps one call of `training.train_epoch` takes: a divisor."""
    most = MAX_STEPS_PER_CALL // replicas if jax.default_backend() == "cpu" else steps
    return largest_divisor(steps, max(1, most))


def epoch_orders(keys: jax.Array, epoch: int, examples: int, batch_size: int) -> np.ndarray:
    """`training.epoch_order` of each replica, on the host: int32 `[replicas, steps, batch]`."""
    order = functools.partial(training.epoch_order, examples=examples, batch_size=batch_size)
    return np.asarray(jax.vmap(order, in_axes=(0, None))(keys, epoch))


class Progress(NamedTuple):
    """What `train_together` says before an epoch, and after each call into the compiled program.

    Attributes:
      epoch: counted from 1.
      images: trained on since the last word, over all runs.
      total: images of the whole training, over all runs.
      metrics: of the last complete epoch, in words, over all runs.
    """

    epoch: int
    images: int
    total: int
    metrics: str


class SoFar(NamedTuple):
    """What a checkpoint holds beside the state, in plain values; lists are over the runs.

    Attributes:
      epochs: of each complete epoch, the metrics of `history`.
      chunks: of the epoch under way, loss, accuracy and learning rate of each call's steps.
      seconds: spent on that epoch.
      lengths: epochs that the histories will have.
      going: whether the loss is finite.
    """

    epochs: list[dict[str, list[float]]]
    chunks: list[list[list[list[float]]]]
    seconds: float
    lengths: list[int]
    going: list[bool]


class Saving(NamedTuple):
    """Checkpoints: one every so many epochs, and how many of the newest are kept (at least 2)."""

    every: int = 1
    keep: int = 2


SAVING = Saving()


@processes.raise_lost_process()
def train(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    fresh: bool = False,
    saving: Saving = SAVING,
) -> list[Record]:
    """Trains every replica of a config, and writes the files of each; see `train_together`.

    What is finished is not trained again.

    Args:
      config: see `config.base`.
      workdir: its last part names the run in legends. For the files, see `replicas`.
      saving: see `train_together`.
      fresh: whether to start over: what `workdir` holds is moved aside, to a folder beside it.

    Returns:
      The records, by seed.

    Raises:
      ConfigError: a value cannot be trained with, or the folder holds a run of another config;
        nothing was computed.
      DatasetError: the data cannot be had.
      HistoryError: the folder holds a history that cannot be read.
    """
    workdir = Path(workdir)
    name = workdir.resolve().name
    with processes.fail_together():  # only then may another process look
        config_lib.check(config)
        check_name(name)
        if fresh and processes.is_first_process() and (aside := move_aside(workdir)):
            say(f"moved {workdir} to {aside}")
    with processes.fail_together():  # before any process writes
        runs = replicas(name, config, workdir)
        groups = together([run for run in runs if not is_finished(run)])
    if not groups:
        say(f"{workdir} is finished: nothing to do (--fresh starts over)")
        return [history.load(run.workdir / HISTORY) for run in runs]
    say(model.layer_table(make_model(config)))
    for group in groups:
        with tqdm(
            disable=not processes.is_first_process(),
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            delay=0.1,  # not before the first word
            bar_format="{desc} |{bar}| {rate_fmt}, {remaining} left{postfix}",
        ) as bar:

            def show(progress: Progress, bar: tqdm = bar) -> None:
                bar.total = progress.total
                bar.set_description(f"epoch {progress.epoch}/{config.epochs}", refresh=False)
                bar.set_postfix_str(progress.metrics, refresh=False)
                bar.update(progress.images)
                bar.refresh()

            train_together(group, show, saving)
    return [history.load(run.workdir / HISTORY) for run in runs]


def train_together(
    runs: Sequence[Run], show: Callable[[Progress], None], saving: Saving = SAVING
) -> list[Record]:
    """Trains runs as the replicas of one program, and writes the files of each.

    In each run's folder that is `history.pkl`, see `history`, and before it `variables.msgpack`,
    see `results.load_variables`. An epoch's seconds are shared evenly by the runs.

    A run whose loss is not finite ends there: a line on standard error says where and why, its
    history ends with that epoch, and it leaves no variables. The others go on.

    Args:
      runs: at least one; a group from `runs.together`.
      show: called with the progress.
      saving: of checkpoints, see `runs.checkpoint_folder`. From the newest one that is intact,
        training goes on; its result is the same.

    Returns:
      The records in the history files.

    Raises:
      StoppedError: by SIGINT or SIGTERM, after the steps under way; a checkpoint was saved.
      ConfigError: the batch is larger than the training set, it does not fit the devices, or
        another process trains in a folder; nothing was computed.
      DatasetError: the data cannot be had.
    """
    config = runs[0].config
    with processes.fail_together():  # before anything is written
        mesh = devices.make_mesh(config, len(runs))
        train_data, validation_data, normalization = _load(config)
        begun_in(runs[0])  # may refuse, before anything is written
    with contextlib.ExitStack() as stack:
        with processes.fail_together():
            for run in runs if processes.is_first_process() else ():
                stack.enter_context(only_writer(run))
            begun = begun_in(runs[0])
        received = stack.enter_context(stop_signals())
        return _train(
            *(runs, show, mesh, train_data, validation_data, normalization),
            *(begun, saving, received),
        )


def _load(config: ConfigDict) -> tuple[datasets.Dataset, datasets.Dataset, augment.Normalization]:
    """Both splits, and what normalises their images."""
    load = functools.partial(
        datasets.load,
        config.dataset,
        data_dir=config.data_dir,
        source_dir=config.source_dir,
    )
    train_data, validation_data = load(config.train_split), load(config.validation_split)
    examples = len(train_data.images)
    if examples < config.batch_size:
        raise config_lib.ConfigError(
            f"config.batch_size must be at most the {examples} training examples of "
            f"{config.train_split!r}; got {config.batch_size}"
        )
    normalization = augment.MNIST
    if config.dataset != "mnist":
        normalization = augment.normalization_of(train_data.images)
    if normalization.std == 0:
        raise datasets.DatasetError(
            f"the pixels of {config.train_split!r} of {config.dataset} are all alike: name others"
        )
    return train_data, validation_data, normalization


def _train(
    runs: Sequence[Run],
    show: Callable[[Progress], None],
    mesh: Mesh | None,
    train_data: datasets.Dataset,
    validation_data: datasets.Dataset,
    normalization: augment.Normalization,
    begun: Path | None,
    saving: Saving,
    received: list[int],
) -> list[Record]:
    config = runs[0].config
    examples = len(train_data.images)
    steps = examples // config.batch_size
    compiler.configure()
    names = datasets.label_names(config.dataset)
    recipe = make_recipe(config, examples, normalization, mesh)[0]
    data = devices.put(mesh, train_data)
    validation = devices.put(mesh, validation_data)
    idle = -len(runs) % devices.size(mesh, devices.REPLICA)  # what trains there is not looked at
    trained = [*runs, *[runs[-1]] * idle]
    hyper, state = training.init_replicas(
        recipe,
        [make_recipe(run.config, examples)[1] for run in trained],
        [run.config.seed for run in trained],
    )
    keys = jax.random.wrap_key_data(devices.fetch(mesh, jax.random.key_data(state.key)))
    so_far = SoFar([], [], 0.0, [config.epochs] * len(runs), [True] * len(runs))
    digests = []  # of data that may have changed when a run goes on
    if config.dataset not in datasets.NAMES:
        splits = {config.train_split: train_data, config.validation_split: validation_data}
        digests = [datasets.digest("", split, part) for split, part in splits.items()]
    taken = 0  # steps
    if begun is not None and (saved := checkpoints.restore(begun)) is not None:
        taken = saved[0]
        if saved[2].pop("data", digests) != digests:
            raise config_lib.ConfigError(
                f"{config.dataset} has changed since {begun} was written: bring it back, or "
                "name another folder for the run"
            )
        state, so_far = _resumed(begun, runs, mesh, state, *saved[1:])
        epoch, step = divmod(taken, steps)
        _warn(f"going on after epoch {epoch}, step {step} of {steps}: {begun}")
    first_epoch = taken // steps
    if processes.is_first_process():
        metric_writers.begin(runs, so_far.epochs, so_far.lengths)
    images = len(runs) * config.batch_size  # of a step

    def save() -> None:
        plain = dataclasses.replace(state, key=jax.random.key_data(state.key))
        progress = {"runs": identities(runs), "data": digests, **so_far._asdict()}
        folder = checkpoint_folder(runs)
        checkpoints.save(folder, taken, jax.tree.leaves(plain), progress, saving.keep)
        if processes.is_first_process():
            link_checkpoints(runs)

    def evaluate(variables: dict[str, Any]) -> list[training.Evaluation]:
        return training.evaluate_replicas(
            recipe.model, variables, validation, normalization=normalization, mesh=mesh
        )[: len(runs)]

    def asked_to_stop() -> int:
        return processes.process_max(received[0] if received else 0)

    show(Progress(first_epoch + 1, taken * images, config.epochs * steps * images, ""))
    chunk = steps_per_call(steps, len(trained) // devices.size(mesh, devices.REPLICA))
    words, evaluations = "", None
    for epoch in range(first_epoch, config.epochs):
        start = time.perf_counter() - so_far.seconds
        orders = epoch_orders(keys, epoch, examples, config.batch_size)
        show(Progress(epoch + 1, 0, config.epochs * steps * images, words))
        for first in range(taken % steps, steps, chunk):
            part = orders[:, first : first + chunk]
            state, metrics = training.train_epoch(recipe, hyper, state, data, part)
            metrics = devices.fetch(mesh, metrics)
            so_far.chunks.append([m[: len(runs)].tolist() for m in metrics])
            taken += part.shape[1]
            show(Progress(epoch + 1, chunk * images, config.epochs * steps * images, words))
            finite = np.isfinite(so_far.chunks[-1][0])
            for number in np.flatnonzero(np.array(so_far.going) & ~finite.all(1)).tolist():
                step = first + int(finite[number].argmin()) + 1
                _warn(_divergence(runs[number], epoch + 1, step))
                so_far.going[number] = False
                so_far.lengths[number] = epoch + 1
            if not any(so_far.going):
                break
            if first + chunk < steps and (number := asked_to_stop()):
                so_far = so_far._replace(seconds=time.perf_counter() - start)
                save()
                raise _stopped(epoch + 1, first + chunk, steps, number)
        variables = jax.vmap(training.inference_variables)(hyper, state)
        evaluations = evaluate(variables)
        loss, accuracy, rate = (
            np.concatenate([np.asarray(c, np.float32) for c in m], axis=1)
            for m in zip(*so_far.chunks, strict=True)
        )
        found = {
            "train_loss": loss.mean(1, dtype=np.float64),
            "train_accuracy": accuracy.mean(1, dtype=np.float64),
            "validation_loss": np.array([e.loss for e in evaluations]),
            "validation_accuracy": np.array([e.accuracy for e in evaluations]),
            "learning_rate": rate[:, -1].astype(np.float64),
            "seconds": np.full(len(runs), (time.perf_counter() - start) / len(runs)),
        }
        so_far.epochs.append({key: values.tolist() for key, values in found.items()})
        so_far = so_far._replace(chunks=[], seconds=0.0)
        if processes.is_first_process():
            metric_writers.add(runs, so_far.epochs, so_far.lengths)
        if not any(so_far.going):
            break
        mean = {key: values[so_far.going].mean() for key, values in found.items()}
        words = (
            f"training loss {mean['train_loss']:.4f}, validation loss "
            f"{mean['validation_loss']:.4f}, accuracy {mean['validation_accuracy']:.2%}"
        )
        number = asked_to_stop()
        if number or (epoch + 1) % saving.every == 0:
            save()
        if number and epoch + 1 < config.epochs:
            raise _stopped(epoch + 1, steps, steps, number)
    show(Progress(len(so_far.epochs), 0, config.epochs * steps * images, words))
    if evaluations is None:  # all epochs were trained before
        variables = jax.vmap(training.inference_variables)(hyper, state)
        evaluations = evaluate(variables)

    variables = devices.fetch(mesh, variables)
    records = []
    for number, (run, evaluation) in enumerate(zip(runs, evaluations, strict=True)):
        variables_of_run = jax.tree.map(operator.itemgetter(number), variables)
        metrics_of_run = {
            key: np.array([e[key][number] for e in so_far.epochs[: so_far.lengths[number]]])
            for key in so_far.epochs[0]
        }
        record = results.make_record(
            run,
            variables_of_run,
            metrics_of_run,
            evaluation,
            validation_data,
            names,
            normalization,
            1 if mesh is None else mesh.size,
        )
        records.append(record)
        if processes.is_first_process():
            metric_writers.end(run, record)
            results.save(run.workdir, record, variables_of_run)
    processes.process_max(0)  # the files are there
    return records


def _resumed(
    folder: Path,
    runs: Sequence[Run],
    mesh: Mesh | None,
    state: training.TrainState,
    arrays: list[np.ndarray],
    progress: dict[str, Any],
) -> tuple[training.TrainState, SoFar]:
    """State and progress of the runs from a checkpoint, which may be of more runs than these."""
    known = progress.pop("runs")
    try:
        rows = [known.index(identity) for identity in identities(runs)]
    except ValueError:
        raise config_lib.ConfigError(f"{folder} holds checkpoints of other runs") from None
    plain = dataclasses.replace(state, key=jax.random.key_data(state.key))
    of_all = rows + rows[-1:] * (len(state.step) - len(rows))
    leaves = devices.put(mesh, [array[of_all] for array in arrays], devices.REPLICA)
    plain = jax.tree.unflatten(jax.tree.structure(plain), leaves)
    so_far = SoFar(**progress)
    return dataclasses.replace(plain, key=jax.random.wrap_key_data(plain.key)), SoFar(
        epochs=[{k: [v[row] for row in rows] for k, v in e.items()} for e in so_far.epochs],
        chunks=[[[m[row] for row in rows] for m in chunk] for chunk in so_far.chunks],
        seconds=so_far.seconds,
        lengths=[so_far.lengths[row] for row in rows],
        going=[so_far.going[row] for row in rows],
    )


def say(text: str) -> None:
    """Prints, in one process of several."""
    if processes.is_first_process():
        print(text, flush=True)


def _warn(text: str) -> None:
    if processes.is_first_process():
        tqdm.write(text, sys.stderr)


def _stopped(epoch: int, step: int, steps: int, number: int) -> StoppedError:
    where = f"stopped and saved in epoch {epoch}, after step {step} of {steps}"
    return StoppedError(f"{where}; the same command goes on from there", number)


def _divergence(run: Run, epoch: int, step: int) -> str:
    config = run.config
    return (
        f"{run.name}, seed {config.seed}: the loss was not finite at epoch {epoch}, step {step}; "
        f"the learning rate ({config.learning_rate}) or the decay (L1 {config.l1}, L2 {config.l2}) "
        "is likely too high"
    )
