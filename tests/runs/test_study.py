"""Many runs: what is trained, what is not trained again, in whose folder."""

import contextlib
import io
import re

import jax
import numpy as np
import pytest
from tiny import config, without_times

from jax_mnist import config as config_lib
from jax_mnist.config import ConfigError
from jax_mnist.data import datasets
from jax_mnist.runs import study, trainer
from jax_mnist.runs.record import load_record
from jax_mnist.runs.study import Variant


def variants(**fields):
    # A rate so low that rounding does not grow.
    common = {"norm": "batch", "learning_rate": 1e-4} | fields
    return {"bn": Variant(config(**common)), "l2": Variant(config(l2=0.1, **common))}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trained together in this process, as on a GPU; tests/scripts starts workers."""
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as shown,
    ):
        patch.setattr(study.jax, "default_backend", lambda: "gpu")
        runs = study.paired_runs(variants(), 2, tmp_path_factory.mktemp("study"))
        return runs, study.train_all(runs), shown.getvalue()


def assert_close(record, expected):
    assert record["config"] == expected["config"]
    for name, values in without_times(expected)["metrics"].items():
        tolerance = {"atol": 0.02} if "accuracy" in name else {"rtol": 1e-3}  # 0.02: 3 images
        np.testing.assert_allclose(record["metrics"][name], values, err_msg=name, **tolerance)


def test_every_variant_is_trained_with_the_same_seeds(trained):
    runs, records, _ = trained
    assert [(r["name"], r["seed"], r["config"]["l2"]) for r in records] == [
        ("bn", 0, 0.0), ("l2", 0, 0.1), ("bn", 1, 0.0), ("l2", 1, 0.1),
    ]  # fmt: skip
    for run, record in zip(runs, records, strict=True):
        assert run.workdir.parts[-2:] == (record["name"], f"seed-{record['seed']}")
        loaded = load_record(run.workdir / "history.pkl")
        jax.tree.map(np.testing.assert_array_equal, loaded, record)
        assert loaded["config"] == run.config.to_dict()
    assert len({record["metrics"]["train_loss"][0] for record in records}) == 4


def test_only_what_is_not_finished_is_trained(trained, monkeypatch):
    monkeypatch.setattr(study.jax, "default_backend", lambda: "gpu")
    runs, records, _ = trained

    def times():
        return [(run.workdir / "variables.msgpack").stat().st_mtime_ns for run in runs]

    (runs[2].workdir / "history.pkl").unlink()
    before, again = times(), study.train_all(runs)
    assert [b == a for b, a in zip(before, times(), strict=True)] == [True, True, False, True]
    assert_close(again.pop(2), records[2])  # a program for one run rounds otherwise than for four
    others = [record for record in records if record is not records[2]]
    jax.tree.map(np.testing.assert_array_equal, again, others)


def test_runs_that_share_a_program_train_together_off_the_cpu(trained, tmp_path):
    assert trained[2].startswith("4 runs, 0 of them finished; training 4 at a time\n")
    (alone,) = trainer.train(variants()["l2"].config, tmp_path / "l2")
    assert_close(trained[1][1], alone)


def test_a_run_is_called_what_its_folder_says(trained):
    renamed = [run._replace(name="other") for run in trained[0]]
    assert {record["name"] for record in study.train_all(renamed)} == {"other"}


def test_a_folder_of_another_config_is_refused_with_the_difference(trained):
    runs = trained[0]
    other = study.paired_runs(variants(epochs=3), 1, runs[0].workdir.parent.parent)
    message = f"{runs[0].workdir} holds another run (epochs is 2 there, 3 here)"
    with pytest.raises(ConfigError, match=re.escape(message)):
        study.train_all(other)


def test_an_error_in_a_worker_is_the_studys(tmp_path):
    runs = study.paired_runs(variants(batch_size=301), 1, tmp_path)[:1]
    with pytest.raises(ConfigError, match="must be at most the 300 training examples"):
        study.train_all(runs)


def test_what_is_wrong_with_the_data_is_said_before_any_process_starts(tmp_path):
    runs = study.paired_runs(variants(train_split="train[:x]"), 1, tmp_path / "study")
    with pytest.raises(datasets.DatasetError, match=r"bad split 'train\[:x\]'"):
        study.train_all(runs)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("l2", {"seed": 3}, "config.seed must be the same in all variants"),
        ("l2", {"validation_split": "test[:10]"}, "config.validation_split must be the same"),
        ("l2", {"dataset": "kmnist"}, "config.dataset must be the same in all variants"),
        ("l2", {"replicas": 2}, "config.replicas must be 1 here"),
        ("l2", {"l2": -1.0}, "config.l2 must be at least 0"),
        ("", {}, "must have 1 to 64 printable characters"),
    ],
)
def test_variants_that_cannot_be_compared_are_refused(name, fields, message, tmp_path):
    other = config()
    other.update(fields)
    with pytest.raises(ConfigError, match=re.escape(message)):
        study.paired_runs({"bn": Variant(config()), name: Variant(other)}, 2, tmp_path)


def test_a_grid_has_every_combination():
    grid = study.grid(
        Variant(config_lib.base()), {"l2": ["0", "1e-4"], "nesterov": ["False"], "seed": ["3"]}
    )
    assert list(grid) == ["l2=0.0,nesterov=False,seed=3", "l2=0.0001,nesterov=False,seed=3"]
    assert [variant.config.l2 for variant in grid.values()] == [0.0, 1e-4]
    assert not any(variant.config.nesterov for variant in grid.values())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("l3", "1", "no field 'l3'"),
        ("epochs", "1.5", "config.epochs takes values of type int; got 1.5"),
        ("nesterov", "yes", "config.nesterov takes values of type bool; got yes"),
    ],
)
def test_a_grid_of_nonsense_is_refused(field, value, message):
    with pytest.raises(ConfigError, match=message):
        study.grid(Variant(config_lib.base()), {field: [value]})
