"""Many runs: the same seeds of several variants, and grids of hyper-parameters."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jax_mnist import config as config_lib
from jax_mnist.config import ConfigError
from jax_mnist.files import PathLike
from jax_mnist.runs import compiler, display, history, trainer, workers
from jax_mnist.runs.display import RunsDisplay
from jax_mnist.runs.history import Record
from jax_mnist.runs.loop import Program, Progress, load_teachers
from jax_mnist.runs.run import HISTORY, Run, check_name, finished_folders, is_finished

_BOOLEANS = {"True": True, "False": False}


def paired_runs(variants: Mapping[str, ConfigDict], seeds: int, workdir: PathLike) -> list[Run]:
    """Runs of the same seeds of every variant, in `workdir/VARIANT/seed-N`, ordered by seed.

    Raises:
      ConfigError: A value is invalid, a name cannot be that of a folder, or the variants differ
        in the first seed or in what they are validated on.
    """
    runs = []
    for name, config in variants.items():
        check_name(name)
        config_lib.check(config)
        if config.replicas != 1:
            raise ConfigError("config.replicas must be 1 here: the number of seeds takes its place")
    for field in ("seed", "dataset", "validation_split"):
        if len(values := {config[field] for config in variants.values()}) > 1:
            raise ConfigError(
                f"config.{field} must be the same in all variants, to compare them; got "
                + ", ".join(sorted(map(repr, values)))
            )
    for seed, (name, config) in itertools.product(range(seeds), variants.items()):
        one = config.copy_and_resolve_references()
        one.seed = config.seed + seed
        config_lib.check(one)
        runs.append(Run(name, one, Path(workdir) / name / f"seed-{one.seed}"))
    return runs


def grid(config: ConfigDict, vary: Mapping[str, Sequence[str]]) -> dict[str, ConfigDict]:
    """A variant for every combination of values, named after them: `'l1=1e-05,l2=0.0001'`.

    Args:
      config: The values that all variants share.
      vary: Maps fields of the config to their values, as a user types them.

    Raises:
      ConfigError: There is no such field, or a value does not have its type.
    """
    choices = []
    for field, texts in vary.items():
        if field not in config:
            raise ConfigError(f"config has no field {field!r}")
        kind = type(config[field])
        try:
            values = [_BOOLEANS[text] if kind is bool else kind(text) for text in texts]
        except (KeyError, ValueError):
            raise ConfigError(
                f"config.{field} takes values of type {kind.__name__}; got {', '.join(texts)}"
            ) from None
        choices.append([(field, value) for value in values])
    variants = {}
    for fields in itertools.product(*choices):
        variant = config.copy_and_resolve_references()
        variant.update(dict(fields))
        variants[",".join(f"{field}={value}" for field, value in fields)] = variant
    return variants


def finished(workdir: PathLike) -> list[Record]:
    """The records of a study's finished runs, in `workdir/VARIANT/seed-N`.

    Raises:
      HistoryError: A history cannot be read.
    """
    variants = sorted(path for path in Path(workdir).glob("*") if path.is_dir())
    return [
        {**history.load(folder / HISTORY), "name": variant.name}
        for variant in variants
        for folder in finished_folders(variant)
    ]


def train_all(runs: Sequence[Run]) -> list[Record]:
    """Trains the unfinished runs, shows how far they are, and returns all records in order.

    If interrupted, call it again to resume. On a CPU each core trains one run in its own
    process, since small networks gain little from several cores. Elsewhere all runs that share a
    program train together.

    Raises:
      ConfigError: A folder holds a run of another config, or a teacher is of another split, and
        nothing was trained; or see `trainer.train_together`.
      DatasetError: The data cannot be loaded.
      HistoryError: A history or a teacher cannot be read.
      LostProcessError: A worker process was killed; the others saved checkpoints.
      StoppedError: SIGINT or SIGTERM was received; checkpoints were saved.
    """
    unfinished = [run for run in runs if not is_finished(run)]
    if unfinished:
        compiler.configure()  # before anything starts JAX, and for the worker processes too
    taught = {run.name: run.config for run in unfinished if run.config.distillation > 0}
    for config in taught.values():
        load_teachers(config)  # so that a missing one is reported before any run starts
    if unfinished:
        finished = len(runs) - len(unfinished)
        on_cpu = jax.default_backend() == "cpu"
        groups = [] if on_cpu else trainer.groups_to_train(unfinished)
        lanes = max(map(len, groups), default=len(workers.cores(len(unfinished))))
        display.say(f"{len(runs)} runs, {finished} of them finished; training {lanes} at a time")
        with display.of_runs(unfinished, lanes, finished) as shown:
            if on_cpu:
                _train_on_every_core(unfinished, shown)
            for group in groups:
                _train_group(unfinished, group, shown)
    # A finished run may have been trained alone, under another name.
    return [{**history.load(run.workdir / HISTORY), "name": run.name} for run in runs]


def _train_on_every_core(runs: Sequence[Run], shown: RunsDisplay) -> None:
    for finished in workers.train_on_every_core(runs, shown.advance):
        for number in finished:
            shown.finish(number, history.load(runs[number].workdir / HISTORY))
        shown.draw()


def _train_group(runs: Sequence[Run], group: Sequence[Run], shown: RunsDisplay) -> None:
    numbers = [runs.index(run) for run in group]

    def observe(program: Program, progress: Progress) -> None:
        for number in numbers:
            shown.advance(number, progress.step / program.steps_per_epoch)
        shown.draw()

    trainer.train_together(group, observe)
    for number in numbers:
        shown.finish(number, history.load(runs[number].workdir / HISTORY))
