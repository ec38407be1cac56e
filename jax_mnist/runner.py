"""The host loop: from a config to a trained model, its history and its files."""

import functools
import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from jax_mnist import augment, datasets, history, model, training, xla
from jax_mnist import config as config_lib
from jax_mnist.batch_last import largest_divisor
from jax_mnist.normalization import GhostBatchNorm

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


def steps_per_call(steps: int) -> int:
    """How many of an epoch's steps one call of `training.train_epoch` takes: a divisor."""
    most = MAX_STEPS_PER_CALL if jax.default_backend() == "cpu" else steps
    return largest_divisor(steps, most)


def train(config: ConfigDict, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Trains, and writes `history.pkl` and `variables.msgpack` into `workdir`.

    Args:
      config: see `config.base`.
      workdir: made if it does not exist; its last part names the run in legends.

    Returns:
      The record in `history.pkl`; see `history`.

    Raises:
      ConfigError: a value cannot be trained with; nothing was computed.
      DatasetError: the data cannot be had.
    """
    config_lib.check(config)
    workdir = Path(workdir)
    name = workdir.resolve().name
    if not name.isprintable() or not 0 < len(name) <= 64:
        raise config_lib.ConfigError(
            f"workdir must end in a name of at most 64 printable characters; got {str(workdir)!r}"
        )
    load = functools.partial(
        datasets.load,
        config.dataset,
        data_dir=config.data_dir or None,
        source_dir=config.source_dir or None,
    )
    train_data, validation_data = load(config.train_split), load(config.validation_split)
    examples = len(train_data.images)
    steps = examples // config.batch_size
    if not steps:
        raise config_lib.ConfigError(
            f"config.batch_size must be at most the {examples} training examples of "
            f"{config.train_split!r}; got {config.batch_size}"
        )
    workdir.mkdir(parents=True, exist_ok=True)

    xla.configure()
    recipe, hyper = make_recipe(config, examples)
    print(model.layer_table(recipe.model), flush=True)
    data = jax.device_put(train_data)
    validation = jax.device_put(validation_data)
    state = training.init(recipe, hyper, config.seed)
    chunk = steps_per_call(steps)
    epochs = []
    with tqdm(
        total=config.epochs * steps * config.batch_size,
        unit=" images",
        unit_scale=True,
        dynamic_ncols=True,
        bar_format="{desc} |{bar}| {rate_fmt}, {remaining} left{postfix}",
    ) as bar:
        for epoch in range(config.epochs):
            start = time.perf_counter()
            bar.set_description(f"epoch {epoch + 1}/{config.epochs}")
            order = np.asarray(training.epoch_order(state.key, epoch, examples, config.batch_size))
            metrics = []
            for first in range(0, steps, chunk):
                part = order[first : first + chunk]
                state, chunk_metrics = training.train_epoch(recipe, hyper, state, data, part)
                metrics.append(jax.device_get(chunk_metrics))
                bar.update(part.size)
            variables = training.inference_variables(hyper, state)
            evaluation = training.evaluate(recipe.model, variables, validation)
            loss, accuracy, learning_rate = (np.concatenate(m) for m in zip(*metrics, strict=True))
            epochs.append(
                {
                    "train_loss": loss.mean(dtype=np.float64),
                    "train_accuracy": accuracy.mean(dtype=np.float64),
                    "validation_loss": evaluation.loss,
                    "validation_accuracy": evaluation.accuracy,
                    "learning_rate": learning_rate[-1],
                    "seconds": time.perf_counter() - start,
                }
            )
            bar.set_postfix_str(
                f"training loss {epochs[-1]['train_loss']:.4f}, "
                f"validation loss {evaluation.loss:.4f}, accuracy {evaluation.accuracy:.2%}"
            )

    prediction = evaluation.probabilities.argmax(-1).astype(np.int32)
    wrong = np.flatnonzero(prediction != validation_data.labels).astype(np.int32)
    device = jax.devices()[0]
    record = {
        "schema": history.SCHEMA,
        "name": name,
        "config": config.to_dict(),
        "seed": config.seed,
        "parameters": model.parameter_count(state.params),
        "metrics": {
            key: np.array([epoch[key] for epoch in epochs], np.float64) for key in epochs[0]
        },
        "predictions": {
            "label": validation_data.labels.astype(np.int32),
            "prediction": prediction,
            "probabilities": evaluation.probabilities.astype(np.float32),
        },
        "mistakes": {"index": wrong, "images": validation_data.images[wrong, :, :, 0]},
        "label_names": list(datasets.label_names(config.dataset)),
        "packages": _package_versions(),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": 1,
        },
    }
    history.write_atomically(
        workdir / VARIABLES, flax.serialization.msgpack_serialize(jax.device_get(variables))
    )
    history.save(workdir / HISTORY, record)
    return record


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
