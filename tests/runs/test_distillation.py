"""A run that learns from finished runs."""

import shutil
import signal

import numpy as np
import pytest
from tiny import config, without_times

from jax_mnist import runs
from jax_mnist.config import ConfigError
from jax_mnist.runs import history, study
from jax_mnist.runs.history import HistoryError
from jax_mnist.runs.run import Run
from jax_mnist.runs.trainer import StoppedError, train_together


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "teacher"
    runs.train(config(replicas=2), workdir)
    return workdir


def student(teacher, **fields):
    return config(seed=5, teacher=str(teacher), distillation=0.9, temperature=2.0, **fields)


def test_a_student_learns_from_all_replicas_of_its_teacher_and_resumes(teacher, tmp_path):
    (expected,) = runs.train(student(teacher), tmp_path / "whole")
    (alone,) = runs.train(student(teacher / "seed-0"), tmp_path / "of-one")
    assert expected["metrics"]["train_loss"][0] != alone["metrics"]["train_loss"][0]

    def stop(program, progress):
        if progress.step == 4:
            signal.raise_signal(signal.SIGTERM)

    copy, workdir = tmp_path / "teacher", tmp_path / "whole-2"
    shutil.copytree(teacher, copy)
    with pytest.raises(StoppedError):
        train_together([Run("whole", student(copy), workdir)], stop)
    shutil.rmtree(copy / "seed-1")
    shutil.copytree(copy / "seed-0", copy / "seed-1")
    with pytest.raises(ConfigError, match="teacher has changed since"):
        runs.train(student(copy), workdir)
    shutil.rmtree(copy)
    shutil.copytree(teacher, copy)
    (record,) = runs.train(student(copy), workdir)
    for name, values in without_times(expected)["metrics"].items():
        np.testing.assert_array_equal(record["metrics"][name], values, err_msg=name)


def test_a_teacher_that_cannot_teach_is_refused_before_anything_is_written(teacher, tmp_path):
    with pytest.raises(HistoryError, match="nowhere holds no finished run"):
        runs.train(student("nowhere"), tmp_path / "run")
    shutil.copytree(teacher / "seed-0", tmp_path / "other")
    record = history.load(tmp_path / "other" / "history.pkl")
    record["normalization"]["mean"] = 0.5
    history.save(tmp_path / "other" / "history.pkl", record)
    with pytest.raises(ConfigError, match="other was trained with other constants of norm"):
        runs.train(student(tmp_path / "other"), tmp_path / "run")
    # It may know the images that this student is validated on.
    with pytest.raises(ConfigError, match=r"on train\[:300\], and this run trains on train\[:200"):
        runs.train(student(teacher, train_split="train[:200]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_study_with_an_unfit_teacher_is_refused_before_any_run_starts(teacher, tmp_path):
    damaged = shutil.copytree(teacher / "seed-0", tmp_path / "damaged")
    (damaged / "variables.msgpack").write_bytes(b"")
    for taught, message in (
        (student("nowhere"), "nowhere holds no finished run"),
        (student(damaged), "variables.msgpack is damaged"),
        (student(teacher, train_split="train[:200]"), "name a teacher of the same split"),
    ):
        variants = {"alone": config(seed=5), "taught": taught}
        with pytest.raises((ConfigError, HistoryError), match=message):
            study.train_all(study.paired_runs(variants, 1, tmp_path / "study"))
        assert not (tmp_path / "study").exists()
