"""Training runs: one seed of a config, with a name, a folder and a single writer."""

import contextlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from ml_collections import ConfigDict

from jax_mnist import config as config_lib
from jax_mnist import files
from jax_mnist.config import NO_EFFECT, ConfigError
from jax_mnist.runs.record import is_label, load_record
from jax_mnist.training.parts import AS_CONFIGURED, Overrides

CONFIG, METRICS_FILE, VARIABLES = "config.json", "metrics.jsonl", "variables.msgpack"
HISTORY = "history.pkl"  # written last: a run with a history is finished
CHECKPOINTS, LOCK = "checkpoints", ".lock"
_ELSEWHERE = "name another folder (--workdir=), or move this one aside (train.py --fresh)"
_FILES = "|".join(map(re.escape, (CONFIG, METRICS_FILE, VARIABLES, HISTORY)))
# What `files.write_atomically` leaves behind if it is killed.
_UNFINISHED = re.compile(rf"\.({_FILES}|\d+\.msgpack)\.\d+\.tmp")


class Run(NamedTuple):
    """A training run: one seed of one config.

    Attributes:
      name: Its name in legends and reports.
      config: The config of this seed; see `config.base`.
      workdir: The folder of its files, which is created if it does not exist.
      overrides: What replaces parts that the config describes.
      file: The config file that the overrides come from, if they do. Another process loads them
        from there, as functions that are defined in it cannot be sent.
    """

    name: str
    config: ConfigDict
    workdir: Path
    overrides: Overrides = AS_CONFIGURED
    file: Path | None = None

    def settings(self) -> dict[str, Any]:
        """What defines the run: the config's fields, and the names of parts that replace others."""
        return self.config.to_dict() | self.overrides.names()


def replicas(
    name: str, config: ConfigDict, workdir: Path, overrides: Overrides = AS_CONFIGURED
) -> list[Run]:
    """The runs of a config: in `workdir`, or in `workdir/seed-N` if there are several seeds.

    Raises:
      ConfigError: The folder holds one run but several are asked for, or the other way round.
    """
    several = config.replicas > 1
    if _holds_run(workdir) if several else seed_folders(workdir, CONFIG, HISTORY):
        content = "a run of one seed" if several else "runs of several seeds"
        raise ConfigError(
            f"{workdir} holds {content}, but config.replicas is {config.replicas}: {_ELSEWHERE}"
        )
    runs = []
    for seed in range(config.seed, config.seed + config.replicas):
        one = config.copy_and_resolve_references()
        one.update(seed=seed, replicas=1)
        folder = workdir / f"seed-{seed}" if several else workdir
        runs.append(Run(name, one, folder, overrides))
    return runs


def _holds_run(folder: Path) -> bool:
    return (folder / CONFIG).exists() or (folder / HISTORY).exists()


def seed_folders(workdir: Path, *names: str) -> list[Path]:
    """The folders `workdir/seed-N` that hold one of these files."""
    folders = {path.parent for name in names for path in workdir.glob(f"seed-*/{name}")}
    return sorted(path for path in folders if re.fullmatch(r"seed-\d+", path.name))


def finished_folders(workdir: Path) -> list[Path]:
    """The folders of a run's finished replicas: `workdir` itself, or `seed-N` in it."""
    return [workdir] if (workdir / HISTORY).exists() else seed_folders(workdir, HISTORY)


def check_name(name: str) -> None:
    """Checks that a run and its folder can have this name.

    Raises:
      ConfigError: The name is empty or too long, or has characters that are not allowed.
    """
    if not is_label(name) or "/" in name:
        raise ConfigError(
            f"the name of a run must have 1 to 64 printable characters and no slash; got {name!r}"
        )


def is_finished(run: Run) -> bool:
    """Whether the run's folder holds its history.

    Raises:
      ConfigError: The folder holds another run, finished or not.
      RecordError: The history cannot be read.
    """
    history, begun = run.workdir / HISTORY, run.workdir / CONFIG
    here = there = run.settings()
    finished = history.exists()
    if finished:
        there = load_record(history)["config"]
    elif begun.exists():
        try:
            there = {**json.loads(begun.read_bytes())}
        except (TypeError, ValueError, RecursionError):
            raise ConfigError(f"{begun} is damaged: remove it, or name another folder") from None
    there = config_lib.with_defaults(there)
    pairs = {key: (there.get(key), here.get(key)) for key in sorted(there.keys() | here.keys())}
    differences = ", ".join(
        f"{key} is {a!r:.64} there, {b!r:.64} here"
        for key, (a, b) in pairs.items()
        if key not in NO_EFFECT and (type(a) is not type(b) or a != b)
    )
    if differences:
        raise ConfigError(f"{run.workdir} holds another run ({differences}): {_ELSEWHERE}")
    return finished


@contextlib.contextmanager
def exclusive(run: Run) -> Iterator[None]:
    """Creates the run's folder, writes its config, and locks the folder for this process.

    The operating system releases the lock however the process ends.

    Raises:
      ConfigError: Another process trains there, or has begun another run there.
    """
    run.workdir.mkdir(parents=True, exist_ok=True)
    with _locked(run.workdir):
        if is_finished(run):  # checked again, since another process may have finished it
            raise ConfigError(f"{run.workdir} was finished meanwhile: run the same command again")
        for path in itertools.chain(run.workdir.iterdir(), run.workdir.glob(f"{CHECKPOINTS}/.*")):
            if _UNFINISHED.fullmatch(path.name):
                path.unlink()
        settings = json.dumps(run.settings(), indent=1)
        files.write_atomically(run.workdir / CONFIG, settings.encode())
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            before = folder.stat()
            stack.enter_context(FileLock(folder / LOCK, timeout=0))
            if not os.path.samestat(before, folder.stat()):
                raise FileNotFoundError  # it was moved aside and recreated meanwhile
        except (Timeout, FileNotFoundError) as error:
            raise ConfigError(f"{folder} is in use: another process trains there") from error
        yield


def move_aside(workdir: Path) -> Path | None:
    """Renames the folder of a run, or of several seeds.

    Returns:
      Its new name; None if there was nothing to rename.

    Raises:
      ConfigError: It holds something else, or another process trains there.
    """
    inner = seed_folders(workdir, CONFIG, HISTORY)
    if not (inner or _holds_run(workdir)):
        if not workdir.exists() or (workdir.is_dir() and not any(workdir.iterdir())):
            return None
        raise ConfigError(f"{workdir} holds no run, so it is not moved: name another folder")
    with contextlib.ExitStack() as stack:
        for folder in (workdir, *inner):
            stack.enter_context(_locked(folder))
        names = (Path(f"{workdir}.old-{number}") for number in itertools.count(1))
        aside = next(path for path in names if not path.exists())
        return workdir.rename(aside)
