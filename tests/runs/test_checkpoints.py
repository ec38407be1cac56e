"""Checkpoints: what comes back is what was saved, or an older one, never anything damaged."""

import dataclasses
import errno
import itertools
import resource
import signal
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from tiny import config, kept

from jax_mnist.config import ConfigError
from jax_mnist.runs import checkpoints, loop
from jax_mnist.runs.folder import Run


@pytest.fixture(scope="module")
def trained():
    """Three runs that train together, one of which diverges, after one epoch and a half."""
    fields = ({}, {"seed": 1}, {"l2": 1e30})
    runs = [Run(f"{i}", config(epochs=3, **f), Path(f"{i}")) for i, f in enumerate(fields)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "MAX_STEPS_PER_CALL", {"cpu": 6})
        job, start = loop.build(runs)
        first = kept(start)
        seen = [kept(p) for p in itertools.islice(loop.training(job, start), 3)]
    return job, first, seen


@pytest.fixture
def saved(trained, tmp_path):
    """The same runs with folders, and a function that saves one of their progresses."""
    job, start, seen = trained
    job = job._replace(runs=[run._replace(workdir=tmp_path / run.name) for run in job.runs])

    def save(number, only=slice(None)):
        part = job._replace(runs=job.runs[only])
        progress = dataclasses.replace(
            seen[number],
            state=jax.tree.map(lambda leaf: leaf[only], seen[number].state),
            epochs=tuple({k: v[only] for k, v in e.items()} for e in seen[number].epochs),
            partial=jax.tree.map(lambda leaf: leaf[only], seen[number].partial),
            seconds=seen[number].seconds[only],
        )
        checkpoints.save(part, progress, keep=2)

    return job, start, seen, save


def assert_same(progress, expected):
    chex.assert_trees_all_equal(dataclasses.astuple(progress), dataclasses.astuple(expected))


def names(run):
    return sorted(path.name for path in (run.workdir / "checkpoints").iterdir())


def test_what_comes_back_is_what_was_saved_and_older_ones_go(saved):
    job, start, seen, save = saved
    assert checkpoints.newest_common_step(job.runs) is None
    for number, steps in enumerate((["2"], ["2", "4"], ["4", "6"])):
        save(number)
        assert names(job.runs[0]) == [f"{step}.msgpack" for step in steps]
        step = checkpoints.newest_common_step(job.runs)
        assert_same(checkpoints.restore(job, start, step), seen[number])
    assert not seen[-1].active[2] and seen[-1].partial.loss.shape == (3, 2)


def test_a_single_run_of_a_group_and_other_groups_resume_alone(saved):
    job, start, seen, save = saved
    save(2)
    for numbers in ([1], [2, 0]):
        part = job._replace(runs=[job.runs[n] for n in numbers])
        rows = np.array(numbers)
        state = jax.tree.map(lambda leaf, rows=rows: leaf[: len(rows)], start.state)
        restored = checkpoints.restore(part, dataclasses.replace(start, state=state), 6)
        expected = jax.tree.map(lambda leaf, rows=rows: leaf[rows], seen[2].state.params)
        chex.assert_trees_all_equal(restored.state.params, expected)
        np.testing.assert_array_equal(restored.partial.loss, seen[2].partial.loss[rows])
        np.testing.assert_array_equal(
            restored.epochs[0]["train_loss"], seen[2].epochs[0]["train_loss"][rows]
        )


def test_other_devices_resume_too(saved):
    job, _, seen, save = saved
    save(1)
    spread = [run.config.copy_and_resolve_references() for run in job.runs]
    for one in spread:
        one.update(replica_devices=2, data_devices=2)
    runs = [run._replace(config=c) for run, c in zip(job.runs, spread, strict=True)]
    other, start = loop.build(runs)
    assert other.mesh.size == 4
    restored = checkpoints.restore(other, start, 4)
    assert restored.state.step.tolist() == [4, 4, 4, 4]
    whole = jax.tree.map(lambda leaf: np.asarray(leaf)[:3], restored.state.params)
    chex.assert_trees_all_equal(whole, seen[1].state.params)
    progress = next(loop.training(other, restored))  # a fourth replica fills the mesh
    assert progress.step == 8 and progress.partial.loss.shape == (3, 4)


def test_runs_are_grouped_by_their_newest_common_step(saved):
    job, _, _, save = saved
    runs = job.runs

    def groups():
        return [[run.name for run in g] for g in checkpoints.group_by_step(runs)]

    assert groups() == [["0", "1", "2"]]
    save(0)
    save(1, slice(0, 2))  # a kill while the group saved: the third has not got this one
    assert groups() == [["0", "1", "2"]]
    assert checkpoints.newest_common_step(runs) == 2
    save(2, slice(0, 2))  # fewer seeds went on alone, until the third was too far behind
    assert groups() == [["2"], ["0", "1"]]
    assert checkpoints.newest_common_step(runs[:2]) == 6
    more = [*runs, runs[0]._replace(name="new", workdir=runs[0].workdir / "new")]
    found = checkpoints.group_by_step(more)
    assert [[run.name for run in g] for g in found] == [["new"], ["2"], ["0", "1"]]


DAMAGE = {
    "emptied": lambda data: b"",
    "truncated": lambda data: data[:-1],
    "first bit flipped": lambda data: bytes([data[0] ^ 4]) + data[1:],
    "last bit flipped": lambda data: data[:-1] + bytes([data[-1] ^ 4]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_removed_and_an_older_one_taken(saved, damage, capsys):
    job, start, seen, save = saved
    save(0)
    save(1)
    path = job.runs[1].workdir / "checkpoints" / "4.msgpack"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert checkpoints.newest_common_step(job.runs) == 2
    assert "4.msgpack was damaged and has been removed" in capsys.readouterr().err
    assert_same(checkpoints.restore(job, start, 2), seen[0])
    save(1)
    assert_same(checkpoints.restore(job, start, 4), seen[1])


def test_what_cannot_be_read_just_now_is_kept(saved, monkeypatch):
    job, _, _, save = saved
    save(0)

    def read_bytes(path):
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        with pytest.raises(OSError, match="Too many open files"):
            checkpoints.newest_common_step(job.runs)
    assert checkpoints.newest_common_step(job.runs) == 2


@pytest.mark.parametrize("limit", [0, 100, 1000])
def test_a_full_disk_leaves_the_earlier_checkpoint(saved, limit):
    job, start, seen, save = saved
    save(0)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match="cannot be written: File too large") as error:
            save(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(error.value)
    assert names(job.runs[0]) == ["2.msgpack"]
    assert_same(checkpoints.restore(job, start, 2), seen[0])


def test_changed_data_are_refused(saved):
    job, start, _, save = saved
    save(0)
    changed = job._replace(data_digests=["other"])
    with pytest.raises(ConfigError, match="was written: bring it back"):
        checkpoints.restore(changed, start, 2)


def test_a_checkpoint_of_another_network_is_refused(saved):
    job, start, _, save = saved
    save(0)
    larger = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf], -1), start.state.params)
    other = dataclasses.replace(start, state=start.state.replace(params=larger))
    with pytest.raises(ConfigError, match="is of another network or version"):
        checkpoints.restore(job, other, 2)


def test_checkpoints_that_are_elsewhere_are_refused(saved, tmp_path):
    job, *_ = saved
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "2024.msgpack").write_text("")
    job.runs[0].workdir.mkdir()
    (job.runs[0].workdir / "checkpoints").symlink_to("../precious")
    with pytest.raises(ConfigError, match="checkpoints is a link: remove it"):
        checkpoints.newest_common_step(job.runs)
    assert (tmp_path / "precious" / "2024.msgpack").exists()
