"""What a run is: a seed of a config, its name, and its folder, with one writer."""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jax_mnist import config as config_lib
from jax_mnist.config import NO_PART, PER_REPLICA, ConfigError
from jax_mnist.data import files
from jax_mnist.runs import history

CONFIG, METRICS, VARIABLES = "config.json", "metrics.jsonl", "variables.msgpack"
HISTORY = "history.pkl"  # written last: it says that the run is finished
CHECKPOINTS, CHECKSUMS = "checkpoints", "sha256.json"
_LINK = "shared_checkpoints"
_DIGITS = 8  # of the name of several runs' checkpoints
_TEMPORARY = re.compile(  # what `files.write_atomically` leaves if it is killed
    rf"\.({'|'.join(map(re.escape, (CONFIG, METRICS, VARIABLES, HISTORY, _LINK)))})\.\d+\.tmp"
)


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
    """The runs of a config: in `workdir`, or each in `workdir/seed-N` if there are several.

    Raises:
      ConfigError: the folder holds one run where several are asked for, or the other way round.
    """
    inner = seed_folders(workdir, CONFIG, HISTORY)
    own = [f for f in (CONFIG, HISTORY) if (workdir / f).exists()]
    if own if config.replicas > 1 else inner:
        found = "a run of one seed" if own else f"runs of several seeds, such as {inner[0].name}"
        raise ConfigError(
            f"{workdir} holds {found}, and config.replicas is {config.replicas}: "
            "name another folder"
        )
    runs = []
    for seed in range(config.seed, config.seed + config.replicas):
        one = config.copy_and_resolve_references()
        one.update(seed=seed, replicas=1)
        runs.append(Run(name, one, workdir / f"seed-{seed}" if config.replicas > 1 else workdir))
    return runs


def seed_folders(workdir: Path, *names: str) -> list[Path]:
    """The folders of replicas in `workdir` with one of these files; none that was moved aside."""
    folders = {path.parent for name in names for path in workdir.glob(f"seed-*/{name}")}
    return sorted(path for path in folders if re.fullmatch(r"seed-\d+", path.name))


def move_aside(workdir: Path) -> Path | None:
    """Renames a folder of a run, or of replicas, and returns its new name; None if it is empty.

    Raises:
      ConfigError: it holds something else, or another process trains there.
    """
    inner = seed_folders(workdir, CONFIG, HISTORY)
    if not (inner or (workdir / CONFIG).exists() or (workdir / HISTORY).exists()):
        if not workdir.exists() or (workdir.is_dir() and not any(workdir.iterdir())):
            return None
        raise ConfigError(f"{workdir} holds no run, so it is not moved: name another folder")
    with contextlib.ExitStack() as stack:
        for folder in (workdir, *inner):
            stack.enter_context(_locked(folder))
        names = (Path(f"{workdir}.old-{number}") for number in itertools.count(1))
        aside = next(path for path in names if not path.exists())
        return workdir.rename(aside)


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
            if not isinstance(found, dict):
                raise ValueError
        except (ValueError, RecursionError):
            raise ConfigError(f"{begun} is damaged: remove it, or name another folder") from None
    found = config_lib.base().to_dict() | found  # a field that is newer than the run
    differences = ", ".join(
        f"{key} is {found.get(key)!r:.64} there, {wanted.get(key)!r:.64} here"
        for key in sorted(found.keys() | wanted.keys())
        if key not in NO_PART and not _equal(found.get(key), wanted.get(key))
    )
    if differences:
        raise ConfigError(f"{run.workdir} holds another run ({differences}): name another folder")
    return finished.exists()


def _equal(found: Any, wanted: Any) -> bool:
    return type(found) is type(wanted) and bool(found == wanted)  # found may be an array


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

    Raises:
      ConfigError: another process trains there, or began another run there meanwhile.
    """
    run.workdir.mkdir(parents=True, exist_ok=True)
    with _locked(run.workdir):
        is_finished(run)
        for path in run.workdir.iterdir():
            if _TEMPORARY.fullmatch(path.name):  # of a process that was killed
                path.unlink()
        config = json.dumps(run.config.to_dict(), indent=1)
        files.write_atomically(run.workdir / CONFIG, config.encode())
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(descriptor), folder.stat()):
                raise BlockingIOError  # it was moved aside, and made anew, meanwhile
        except BlockingIOError:
            raise ConfigError(f"{folder} is in use: another process trains there") from None
        yield
    finally:
        os.close(descriptor)


def identities(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What makes each run the one that it is, in plain values."""
    configs = [{k: v for k, v in run.config.items() if k not in NO_PART} for run in runs]
    return [{"name": r.name, "config": c} for r, c in zip(runs, configs, strict=True)]


def together(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs by who trains together: in one program, and on from one checkpoint, or from none."""
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if can_train_together([group[0], run]) and begun_in(group[0]) == begun_in(run):
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def checkpoint_folder(runs: Sequence[Run]) -> Path:
    """Where runs that train together save: the folder of one, the folder common to several.

    Each group of several has a folder of its own there, so that none writes over what another one,
    with more or fewer runs, may want to go on from. See `link_checkpoints` for how it is found.
    """
    if len(runs) == 1:
        return runs[0].workdir / CHECKPOINTS
    digest = hashlib.sha256(json.dumps(identities(runs), sort_keys=True).encode()).hexdigest()
    common = os.path.commonpath([run.workdir.absolute() for run in runs])
    return Path(common) / CHECKPOINTS / digest[:_DIGITS]


def link_checkpoints(runs: Sequence[Run]) -> None:
    """Links each of several runs to the checkpoints that they share; call this after a save."""
    if len(runs) > 1:
        folder = checkpoint_folder(runs)
        for run in runs:
            temporary = run.workdir / f".{_LINK}.{os.getpid()}.tmp"
            temporary.symlink_to(os.path.relpath(folder, run.workdir))
            temporary.replace(run.workdir / _LINK)


def begun_in(run: Run) -> Path | None:
    """The folder of the checkpoints that the run goes on from, if it has saved any.

    Raises:
      ConfigError: it is a link to elsewhere: whoever made the run's folder may not choose what is
        read, and removed if it is damaged, there.
    """
    own, link = run.workdir / CHECKPOINTS, run.workdir / _LINK
    if own.is_symlink():
        raise _leads_out(own)
    if any(own.glob(f"*/{CHECKSUMS}")) or not link.is_symlink():
        return own if own.is_dir() else None
    folder = link.resolve()
    if (
        folder.parent.name != CHECKPOINTS
        or len(folder.name) != _DIGITS
        or folder.parent.parent not in run.workdir.resolve().parents
    ):
        raise _leads_out(link)
    return folder if folder.is_dir() else None


def _leads_out(link: Path) -> ConfigError:
    return ConfigError(f"{link} leads out of the runs' folder: remove it, or name another folder")
