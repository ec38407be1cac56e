"""The host loop: from a config to a trained model, its history and its files."""

import contextlib
import fcntl
import functools
import itertools
import operator
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.serialization
import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from jax_mnist import augment, datasets, history, model, training, xla
from jax_mnist import config as config_lib
from jax_mnist.batch_last import largest_divisor
from jax_mnist.history import Record
from jax_mnist.normalization import GhostBatchNorm

_CPU_INFO = Path("/proc/cpuinfo")
HISTORY, VARIABLES = "history.pkl", "variables.msgpack"
MAX_STEPS_PER_CALL = 30  # on a CPU: about a second, so that the progress bar moves


def make_model(config: ConfigDict) -> model.CNN:
    """The network that a config describes."""
    norm: Callable[..., nn.Module] = functools.partial(nn.BatchNorm, momentum=config.norm_momentum)
    if config.norm == "ghost":
        norm = functools.partial(
            GhostBatchNorm,
            ghost_batch_size=config.ghost_batch_size,
            stats_update=config.stats_update,
            momentum=config.norm_momentum,
        )
    return model.CNN(norm=norm)


def make_recipe(
    config: ConfigDict, examples: int
) -> tuple[training.Recipe, training.Hyperparameters]:
    """What a config means for the training step, over `examples` training examples."""
    recipe = training.Recipe(
        model=make_model(config),
        schedule=config.schedule,
        steps=config.epochs * (examples // config.batch_size),
        nesterov=config.nesterov,
        average=config.ema > 0,
    )
    hyper = training.Hyperparameters(
        learning_rate=config.learning_rate,
        l1=config.l1,
        l2=config.l2,
        momentum=config.momentum,
        ema=config.ema,
        strengths=augment.Strengths(
            brightness=config.brightness,
            contrast=config.contrast,
            rotation=config.rotation,
            shift=config.shift,
            scale=config.scale,
            shear=config.shear,
        ),
    )
    return recipe, hyper


def steps_per_call(steps: int, replicas: int = 1) -> int:
    """How many of an epoch's steps one call of `training.train_epoch` takes: a divisor."""
    most = MAX_STEPS_PER_CALL // replicas if jax.default_backend() == "cpu" else steps
    return largest_divisor(steps, max(1, most))


def epoch_orders(keys: jax.Array, epoch: int, examples: int, batch_size: int) -> np.ndarray:
    """`training.epoch_order` of each replica, on the host: int32 `[replicas, steps, batch]`."""
    order = functools.partial(training.epoch_order, examples=examples, batch_size=batch_size)
    return np.asarray(jax.vmap(order, in_axes=(0, None))(keys, epoch))


class Run(NamedTuple):
    """A training run: one seed of one config.

    Attributes:
      name: what legends call it.
      config: see `config.base`; of a single replica.
      workdir: the folder of its files, made if it does not exist.
    """

    name: str
    config: ConfigDict
    workdir: Path


def check_name(name: str) -> None:
    """Raises `ConfigError` unless a run can have this name, and a folder too."""
    if not name.isprintable() or not 0 < len(name) <= 64 or "/" in name:
        raise config_lib.ConfigError(
            f"a run's folder needs a name of at most 64 printable characters; got {name!r}"
        )


def replicas(name: str, config: ConfigDict, workdir: Path) -> list[Run]:
    """The runs of a config: in `workdir`, or each in `workdir/seed-N` if there are several."""
    runs = []
    for seed in range(config.seed, config.seed + config.replicas):
        one = config.copy_and_resolve_references()
        one.update(seed=seed, replicas=1)
        runs.append(Run(name, one, workdir / f"seed-{seed}" if config.replicas > 1 else workdir))
    return runs


def is_finished(run: Run) -> bool:
    """Whether the run's folder holds its history.

    Raises:
      ConfigError: it holds that of another run.
      HistoryError: the history cannot be read.
    """
    path = run.workdir / HISTORY
    if not path.exists():
        return False
    found, wanted = history.load(path)["config"], run.config.to_dict()
    if found != wanted:
        differences = ", ".join(
            f"{key} is {found.get(key)!r} there, {wanted.get(key)!r} here"
            for key in sorted(found.keys() | wanted.keys())
            if found.get(key) != wanted.get(key)
        )
        raise config_lib.ConfigError(
            f"{run.workdir} holds another run ({differences}): name another folder"
        )
    return True


def train(config: ConfigDict, workdir: str | os.PathLike[str], fresh: bool = False) -> list[Record]:
    """Trains every replica of a config, and writes the files of each; see `train_together`.

    What is finished is not trained again.

    Args:
      config: see `config.base`.
      workdir: its last part names the run in legends. For the files, see `replicas`.
      fresh: whether to start over: what `workdir` holds is moved aside, to a folder beside it.

    Returns:
      The records, by seed.

    Raises:
      ConfigError: a value cannot be trained with, or the folder holds a run of another config;
        nothing was computed.
      DatasetError: the data cannot be had.
      HistoryError: the folder holds a history that cannot be read.
    """
    config_lib.check(config)
    workdir = Path(workdir)
    name = workdir.resolve().name
    check_name(name)
    if fresh and workdir.exists():
        numbers = itertools.count(1)
        aside = next(p for n in numbers if not (p := Path(f"{workdir}.old-{n}")).exists())
        workdir.rename(aside)
        print(f"moved {workdir} to {aside}", flush=True)
    runs = replicas(name, config, workdir)
    unfinished = [run for run in runs if not is_finished(run)]
    if not unfinished:
        print(f"{workdir} is finished: nothing to do (--fresh starts over)", flush=True)
        return [history.load(run.workdir / HISTORY) for run in runs]
    print(model.layer_table(make_model(config)), flush=True)
    with tqdm(
        unit=" images",
        unit_scale=True,
        dynamic_ncols=True,
        delay=0.1,  # not before the first word
        bar_format="{desc} |{bar}| {rate_fmt}, {remaining} left{postfix}",
    ) as bar:

        def show(progress: Progress) -> None:
            bar.total = progress.total
            bar.set_description(f"epoch {progress.epoch}/{config.epochs}", refresh=False)
            bar.set_postfix_str(progress.metrics, refresh=False)
            bar.update(progress.images)
            bar.refresh()

        train_together(unfinished, show)
    return [history.load(run.workdir / HISTORY) for run in runs]


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


def can_train_together(runs: Sequence[Run]) -> bool:
    """Whether the runs differ only in what replicas of one compiled program may differ in."""
    shared = [
        {k: v for k, v in run.config.items() if k not in config_lib.PER_REPLICA}
        | {"averages": run.config.ema > 0}
        for run in runs
    ]
    return all(fields == shared[0] for fields in shared)


def train_together(runs: Sequence[Run], show: Callable[[Progress], None]) -> list[Record]:
    """Trains runs as the replicas of one program, and writes the files of each.

    In each run's folder that is `history.pkl`, see `history`, and before it `variables.msgpack`,
    see `load_variables`. An epoch's seconds are shared evenly by the runs.

    A run whose loss is not finite ends there: a line on standard error says where and why, its
    history ends with that epoch, and it leaves no variables. The others go on.

    Args:
      runs: at least one; `can_train_together` holds.
      show: called with the progress.

    Returns:
      The records in the history files.

    Raises:
      ConfigError: the batch is larger than the training set, or another process trains in a
        folder; nothing was computed.
      DatasetError: the data cannot be had.
    """
    config = runs[0].config
    load = functools.partial(
        datasets.load,
        config.dataset,
        data_dir=config.data_dir or None,
        source_dir=config.source_dir or None,
    )
    train_data, validation_data = load(config.train_split), load(config.validation_split)
    examples = len(train_data.images)
    if examples < config.batch_size:
        raise config_lib.ConfigError(
            f"config.batch_size must be at most the {examples} training examples of "
            f"{config.train_split!r}; got {config.batch_size}"
        )
    with contextlib.ExitStack() as stack:
        for run in runs:
            stack.enter_context(_only_writer(run.workdir))
        return _train(runs, show, train_data, validation_data)


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Makes `folder`, and holds it for this process; the system frees it however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise config_lib.ConfigError(f"{folder} is in use: another process trains there") from None
    finally:
        os.close(descriptor)


def _train(
    runs: Sequence[Run],
    show: Callable[[Progress], None],
    train_data: datasets.Dataset,
    validation_data: datasets.Dataset,
) -> list[Record]:
    config = runs[0].config
    examples = len(train_data.images)
    steps = examples // config.batch_size
    xla.configure()
    recipe = make_recipe(config, examples)[0]
    data = jax.device_put(train_data)
    validation = jax.device_put(validation_data)
    hyper, state = training.init_replicas(
        recipe,
        [make_recipe(run.config, examples)[1] for run in runs],
        [r.config.seed for r in runs],
    )
    chunk = steps_per_call(steps, len(runs))
    epochs: list[dict[str, Any]] = []
    lengths = np.zeros(len(runs), int)  # of the histories: a run that diverges ends
    going = np.ones(len(runs), bool)
    evaluations: list[Any] = [None] * len(runs)
    words = ""
    for epoch in range(config.epochs):
        start = time.perf_counter()
        orders = epoch_orders(state.key, epoch, examples, config.batch_size)
        total = config.epochs * orders.size
        show(Progress(epoch + 1, 0, total, words))
        lengths += going
        chunks = []
        for first in range(0, steps, chunk):
            part = orders[:, first : first + chunk]
            state, metrics = training.train_epoch(recipe, hyper, state, data, part)
            chunks.append(jax.device_get(metrics))
            show(Progress(epoch + 1, part.size, total, words))
            finite = np.isfinite(chunks[-1].loss)
            for number in np.flatnonzero(going & ~finite.all(1)).tolist():
                step = first + int(finite[number].argmin()) + 1
                tqdm.write(_divergence(runs[number], epoch + 1, step), file=sys.stderr)
            going &= finite.all(1)
            if not going.any():
                break
        loss, accuracy, rate = (np.concatenate(m, axis=1) for m in zip(*chunks, strict=True))
        variables = jax.vmap(training.inference_variables)(hyper, state)
        for number, found in enumerate(
            training.evaluate_replicas(recipe.model, variables, validation)
        ):
            if lengths[number] == epoch + 1:
                evaluations[number] = found
        epochs.append(
            {
                "train_loss": loss.mean(1, dtype=np.float64),
                "train_accuracy": accuracy.mean(1, dtype=np.float64),
                "validation_loss": [e.loss for e in evaluations],
                "validation_accuracy": [e.accuracy for e in evaluations],
                "learning_rate": rate[:, -1],
                "seconds": np.full(len(runs), (time.perf_counter() - start) / len(runs)),
            }
        )
        if not going.any():
            break
        mean = {key: np.mean(np.asarray(v)[going]) for key, v in epochs[-1].items()}
        words = (
            f"training loss {mean['train_loss']:.4f}, validation loss "
            f"{mean['validation_loss']:.4f}, accuracy {mean['validation_accuracy']:.2%}"
        )
    show(Progress(epoch + 1, 0, total, words))

    metrics_of_all = {
        key: np.array([epoch[key] for epoch in epochs], np.float64) for key in epochs[0]
    }
    variables = jax.device_get(variables)
    records = []
    for number, (run, evaluation) in enumerate(zip(runs, evaluations, strict=True)):
        variables_of_run = jax.tree.map(operator.itemgetter(number), variables)
        if going[number]:
            history.write_atomically(
                run.workdir / VARIABLES, flax.serialization.msgpack_serialize(variables_of_run)
            )
        metrics_of_run = {
            key: values[: lengths[number], number] for key, values in metrics_of_all.items()
        }
        parameters = model.parameter_count(variables_of_run["params"])
        records.append(_record(run, parameters, metrics_of_run, evaluation, validation_data))
        history.save(run.workdir / HISTORY, records[-1])
    return records


def _divergence(run: Run, epoch: int, step: int) -> str:
    config = run.config
    return (
        f"{run.name}, seed {config.seed}: the loss was not finite at epoch {epoch}, step {step}; "
        f"the learning rate ({config.learning_rate}) or the decay (L1 {config.l1}, L2 {config.l2}) "
        "is likely too high"
    )


def _record(
    run: Run,
    parameters: int,
    metrics: dict[str, np.ndarray],
    evaluation: training.Evaluation,
    validation: datasets.Dataset,
) -> Record:
    prediction = evaluation.probabilities.argmax(-1).astype(np.int32)
    wrong = np.flatnonzero(prediction != validation.labels).astype(np.int32)
    device = jax.devices()[0]
    return {
        "schema": history.SCHEMA,
        "name": run.name,
        "config": run.config.to_dict(),
        "seed": run.config.seed,
        "parameters": parameters,
        "metrics": metrics,
        "predictions": {
            "label": validation.labels.astype(np.int32),
            "prediction": prediction,
            "probabilities": evaluation.probabilities.astype(np.float32),
        },
        "mistakes": {"index": wrong, "images": validation.images[wrong, :, :, 0]},
        "label_names": list(datasets.label_names(run.config.dataset)),
        "packages": _package_versions(),
        "device": {"platform": device.platform, "kind": _device_kind(device), "count": 1},
    }


def load_variables(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """The final variables of a run, as NumPy arrays: `{"params": ..., "batch_stats": ...}`.

    Example::

        record = history.load("runs/gbn/history.pkl")
        network = runner.make_model(ConfigDict(record["config"]))
        variables = runner.load_variables("runs/gbn")
        test = datasets.load("mnist", "test")
        print(training.evaluate(network, variables, test).accuracy)

    Raises:
      OSError: the file cannot be read.
      ValueError: the file holds no variables.
    """
    path = Path(workdir) / VARIABLES
    try:
        variables = flax.serialization.msgpack_restore(path.read_bytes())
    except OSError:
        raise
    except Exception as error:  # msgpack has many, for bytes that are not what it wrote
        raise ValueError(f"{path} is damaged: train again to replace it") from error
    if not isinstance(variables, dict) or set(variables) != {"params", "batch_stats"}:
        raise ValueError(f"{path} holds no variables of a run")
    return variables


def _package_versions() -> dict[str, str]:
    packages = ("jax_mnist", "jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets")
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in packages}


def _device_kind(device: jax.Device) -> str:
    """The device's model; JAX calls every CPU "cpu", where Linux knows more."""
    if device.platform == "cpu" and _CPU_INFO.exists():
        model_name = re.search(r"^model name\s*: (.+)$", _CPU_INFO.read_text(), re.MULTILINE)
        return model_name[1] if model_name else device.device_kind
    return device.device_kind
