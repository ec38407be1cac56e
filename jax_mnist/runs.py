"""What a run is: a seed of a config, its name, and its folder, with one writer."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jax_mnist import config as config_lib
from jax_mnist import history
from jax_mnist.config import NO_PART, PER_REPLICA, ConfigError

HISTORY, CONFIG = "history.pkl", "config.json"


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


def replicas(name: str, config: ConfigDict, workdir: Path) -> list[Run]:
    """The runs of a config: in `workdir`, or each in `workdir/seed-N` if there are several."""
    runs = []
    for seed in range(config.seed, config.seed + config.replicas):
        one = config.copy_and_resolve_references()
        one.update(seed=seed, replicas=1)
        runs.append(Run(name, one, workdir / f"seed-{seed}" if config.replicas > 1 else workdir))
    return runs


def check_name(name: str) -> None:
    """Raises `ConfigError` unless a run can have this name, and a folder too."""
    if not name.isprintable() or not 0 < len(name) <= 64 or "/" in name:
        raise ConfigError(
            f"a run's folder needs a name of at most 64 printable characters; got {name!r}"
        )


def is_finished(run: Run) -> bool:
    """Whether the run's folder holds its history.

    Raises:
      ConfigError: it holds another run, finished or not.
      HistoryError: the history cannot be read.
    """
    finished, begun = run.workdir / HISTORY, run.workdir / CONFIG
    wanted = run.config.to_dict()
    if finished.exists():
        found = history.load(finished)["config"]
    else:
        try:
            found = json.loads(begun.read_bytes()) if begun.exists() else wanted
        except ValueError:
            raise ConfigError(f"{begun} is damaged: remove it, or name another folder") from None
    found = config_lib.base().to_dict() | found  # a field that is newer than the run
    differing = {key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)}
    if differing.difference(NO_PART):
        differences = ", ".join(
            f"{key} is {found.get(key)!r} there, {wanted.get(key)!r} here"
            for key in sorted(differing.difference(NO_PART))
        )
        raise ConfigError(f"{run.workdir} holds another run ({differences}): name another folder")
    return finished.exists()


def can_train_together(runs: Sequence[Run]) -> bool:
    """Whether the runs differ only in what replicas of one compiled program may differ in."""
    shared = [
        {k: v for k, v in run.config.items() if k not in PER_REPLICA}
        | {"averages": run.config.ema > 0}
        for run in runs
    ]
    return all(fields == shared[0] for fields in shared)


@contextlib.contextmanager
def only_writer(run: Run) -> Iterator[None]:
    """Makes the run's folder, which tells its config, and holds it for this process.

    The system frees it however the process ends.
    """
    run.workdir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run.workdir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for leftover in run.workdir.glob(".*.tmp"):  # of a process that was killed
            leftover.unlink()
        config = json.dumps(run.config.to_dict(), indent=1)
        history.write_atomically(run.workdir / CONFIG, config.encode())
        yield
    except BlockingIOError:
        raise ConfigError(f"{run.workdir} is in use: another process trains there") from None
    finally:
        os.close(descriptor)


def identities(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What makes each run the one that it is, in plain values."""
    configs = [{k: v for k, v in run.config.items() if k not in NO_PART} for run in runs]
    return [{"name": r.name, "config": c} for r, c in zip(runs, configs, strict=True)]


def checkpoint_folder(runs: Sequence[Run]) -> Path:
    """Of runs that train together: in their folder, or in the one that is common to them."""
    shared = {k: v for k, v in runs[0].config.items() if k not in (*PER_REPLICA, *NO_PART)}
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()
    common = os.path.commonpath([run.workdir.absolute() for run in runs])
    return Path(common) / "checkpoints" / digest[:8]
