"""Checkpoints: what comes back is what was saved, or an older one, never anything damaged."""

import dataclasses
import errno
import operator
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from jax_mnist.config import ConfigError
from jax_mnist.runs import checkpoints, loop


def rows(progress, numbers):
    """The part of a progress that belongs to some of its runs."""
    take = operator.itemgetter(numbers)
    state, epochs, partial = jax.tree.map(take, (progress.state, progress.epochs, progress.partial))
    return loop.Progress(state, progress.step, epochs, partial, take(progress.seconds))


@pytest.fixture
def saved(three, tmp_path):
    """Three runs with folders, their progresses, and a function that saves one of these."""
    job, progresses = three
    job = job._replace(runs=[run._replace(workdir=tmp_path / run.name) for run in job.runs])

    def save(number, only=slice(None)):
        checkpoints.save(job._replace(runs=job.runs[only]), rows(progresses[number], only), keep=2)

    return job, progresses, save


def assert_same(progress, expected):
    chex.assert_trees_all_equal(dataclasses.astuple(progress), dataclasses.astuple(expected))


def names(run):
    return sorted(path.name for path in (run.workdir / "checkpoints").iterdir())


def test_what_comes_back_is_what_was_saved_and_older_ones_go(saved):
    job, progresses, save = saved
    assert checkpoints.restore(job, progresses[0]) is progresses[0]
    for number, steps in enumerate((["2"], ["2", "4"], ["4", "6"]), 1):
        save(number)
        assert names(job.runs[0]) == [f"{step}.msgpack" for step in steps]
        assert_same(checkpoints.restore(job, progresses[0]), progresses[number])


def test_a_single_run_of_a_group_and_other_groups_resume_alone(saved):
    job, progresses, save = saved
    save(3)
    for numbers in ([1], [2, 0]):
        part = job._replace(runs=[job.runs[n] for n in numbers])
        start = rows(progresses[0], np.arange(len(numbers)))
        assert_same(checkpoints.restore(part, start), rows(progresses[3], np.array(numbers)))


def test_other_devices_resume_too(saved):
    job, progresses, save = saved
    save(2)
    runs = [run._replace(config=run.config.copy_and_resolve_references()) for run in job.runs]
    for run in runs:
        run.config.update(replica_devices=2, data_devices=2)
    other, start = loop.build(runs)
    restored = checkpoints.restore(other, start)
    assert other.mesh.size == 4 and len(restored.state.step) == 4  # the last fills the mesh
    chex.assert_trees_all_equal(
        jax.device_get(restored.state.params),
        rows(progresses[2], np.array([0, 1, 2, 2])).state.params,
    )


def test_runs_are_grouped_by_their_newest_common_step(saved):
    job, progresses, save = saved
    runs = job.runs

    def groups(runs=runs):
        return [[run.name for run in group] for group in checkpoints.group_by_step(runs)]

    assert groups() == [["0", "1", "2"]]
    save(1)
    save(2, slice(0, 2))  # a kill while the group saved: the third has not got this one
    assert groups() == [["0", "1", "2"]]
    assert checkpoints.restore(job, progresses[0]).step == 2
    save(3, slice(0, 2))  # fewer seeds went on alone, until the third was too far behind
    new = runs[0]._replace(name="new", workdir=runs[0].workdir / "new")
    assert groups([*runs, new]) == [["new"], ["2"], ["0", "1"]]


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 4])],
    ids=["emptied", "truncated", "a bit flipped"],
)
def test_a_damaged_checkpoint_is_removed_and_an_older_one_taken(saved, damage, capsys):
    job, progresses, save = saved
    save(1)
    save(2)
    path = job.runs[1].workdir / "checkpoints" / "4.msgpack"
    path.write_bytes(damage(path.read_bytes()))
    assert_same(checkpoints.restore(job, progresses[0]), progresses[1])
    assert "4.msgpack was damaged and has been removed" in capsys.readouterr().err
    assert not path.exists()


def test_what_cannot_be_read_just_now_is_kept(saved, monkeypatch):
    job, progresses, save = saved
    save(1)

    def read_bytes(path):
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        with pytest.raises(OSError, match="Too many open files"):
            checkpoints.restore(job, progresses[0])
    assert checkpoints.restore(job, progresses[0]).step == 2


def test_a_checkpoint_of_another_network_is_refused(saved):
    job, (start, *_), save = saved
    save(1)
    larger = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf], -1), start.state.params)
    other = dataclasses.replace(start, state=start.state.replace(params=larger))
    with pytest.raises(ConfigError, match="is of another network or version"):
        checkpoints.restore(job, other)


def test_checkpoints_that_are_elsewhere_are_refused(saved, tmp_path):
    job, progresses, _ = saved
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "2024.msgpack").write_text("")
    job.runs[0].workdir.mkdir()
    (job.runs[0].workdir / "checkpoints").symlink_to("../precious")
    with pytest.raises(ConfigError, match="checkpoints is a link: remove it"):
        checkpoints.restore(job, progresses[0])
    assert (tmp_path / "precious" / "2024.msgpack").exists()
