"""Training with its files, on a little of the real MNIST."""

import json
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from rounding import assert_close, cross_entropy, log_softmax
from tiny import config, rounded_logits, without_times

from jax_mnist.config import ConfigError
from jax_mnist.data import datasets
from jax_mnist.runs import folder, loop
from jax_mnist.runs.folder import Run
from jax_mnist.runs.record import has_diverged, load_record
from jax_mnist.runs.signals import StoppedError
from jax_mnist.runs.trained import load_variables
from jax_mnist.runs.trainer import groups_to_train, train, train_together
from jax_mnist.training import augment, recipe
from jax_mnist.training.evaluation import evaluate
from jax_mnist.training.parts import Overrides


def ignore(job, progress):
    """An observer that does nothing."""


class Cut(BaseException):
    """As if the process had been killed."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "deep" / "small"
    return workdir, *train(config(), workdir)


def assert_identical(record, expected):
    jax.tree.map(np.testing.assert_array_equal, record, expected)


def test_replicas_have_folders_of_their_own(run, tmp_path):
    records = train(config(replicas=2), tmp_path / "small")
    assert [record["seed"] for record in records] == [0, 1]
    for record in records:
        workdir = tmp_path / "small" / f"seed-{record['seed']}"
        assert_identical(load_record(workdir / "history.pkl"), record)
        assert record["name"] == "small" and record["config"]["replicas"] == 1
    assert_identical(without_times(records[0]), without_times(run[1]))


def test_a_finished_run_is_left_alone_and_another_config_is_refused(run, capsys):
    workdir, record = run
    before = {p: p.stat().st_mtime_ns for p in workdir.iterdir()}
    assert_identical(*train(config(), workdir), record)
    assert "is finished: nothing to do" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"another run \(l1 is 0.0 there, 0.1 here\)"):
        train(config(l1=0.1), workdir)
    assert before == {p: p.stat().st_mtime_ns for p in workdir.iterdir()}


def test_starting_afresh_moves_the_old_run_aside(run, tmp_path, capsys):
    workdir = shutil.copytree(run[0], tmp_path / "small")
    train(config(seed=1), workdir, fresh=True)
    assert f"moved {workdir} to {workdir}.old-1" in capsys.readouterr().out
    seeds = {p.name: load_record(p / "history.pkl")["seed"] for p in tmp_path.iterdir()}
    assert seeds == {"small.old-1": 0, "small": 1}


def test_the_files_hold_what_was_returned_and_nothing_is_left_beside_them(run):
    workdir, record = run
    assert sorted(p.name for p in workdir.iterdir()) == [
        ".lock", "checkpoints", "config.json", "history.pkl", "metrics.jsonl", "variables.msgpack",
    ]  # fmt: skip
    assert_identical(load_record(workdir / "history.pkl"), record)
    assert record["config"] == json.loads((workdir / "config.json").read_text())
    assert record["config"] == config().to_dict()
    assert record["name"] == "small" and record["parameters"] == 16 * 2 + 16 * 10 + 10
    assert {"python", "jax", "flax", "optax"} <= set(record["packages"])
    assert record["device"]["platform"] == jax.default_backend()
    assert {len(values) for values in record["metrics"].values()} == {2}


def assert_predicts(record, variables, images, labels, normalization=augment.MNIST):
    """That the record's predictions are those of the variables, by hand and by `evaluate`."""
    network = recipe.make_model(ConfigDict(record["config"]))
    data = datasets.Dataset(images, labels)
    result = evaluate(network, variables, data, batch_size=40, normalization=normalization)
    predictions, metrics = record["predictions"], record["metrics"]
    logits = rounded_logits(variables, images, normalization)
    for probabilities in (result.probabilities, predictions["probabilities"]):
        assert_close(probabilities, log_softmax(logits).exp())
    for loss in (result.loss, metrics["validation_loss"][-1]):
        assert_close(loss, cross_entropy(logits, labels))
    right = predictions["prediction"] == labels
    assert result.accuracy == metrics["validation_accuracy"][-1] == right.mean()


def test_the_saved_variables_give_the_recorded_predictions(run):
    workdir, record = run
    test = datasets.load("mnist", "test[:150]")
    assert_predicts(record, load_variables(workdir), *test)
    np.testing.assert_array_equal(record["predictions"]["label"], test.labels)
    wrong = np.flatnonzero(record["predictions"]["prediction"] != test.labels)
    np.testing.assert_array_equal(record["mistakes"]["index"], wrong)
    np.testing.assert_array_equal(record["mistakes"]["images"], test.images[wrong, :, :, 0])


def test_damaged_variables_are_refused(run, tmp_path):
    for name in ("history.pkl", "variables.msgpack"):
        shutil.copy(run[0] / name, tmp_path)
    assert load_variables(tmp_path).keys() == {"params", "batch_stats"}
    path = tmp_path / "variables.msgpack"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"variables\.msgpack is damaged or belongs to another"):
        load_variables(tmp_path)


def test_runs_of_one_program_are_grouped(tmp_path):
    fields = [{}, {"seed": 1, "l2": 0.1}, {"ema": 0.0}, {"seed": 2, "rotation": 0.0}, {"epochs": 3}]
    runs = [Run(f"{i}", config(**f), tmp_path / f"{i}") for i, f in enumerate(fields)]
    runs += [run._replace(overrides=Overrides(loss=max)) for run in runs[:2]]
    groups = [[run.name for run in group] for group in groups_to_train(runs)]
    assert groups == [["0", "1", "3"], ["2"], ["4"], ["0", "1"]]


def test_a_run_that_diverges_is_reported_and_leaves_no_weights(tmp_path, capsys):
    both = [Run(n, config(l2=l2), tmp_path / n) for n, l2 in (("good", 0.0), ("bad", 1e30))]
    good, bad = train_together(both, ignore)
    assert len(good["metrics"]["train_loss"]) == 2 and not has_diverged(good)
    assert len(bad["metrics"]["train_loss"]) == 1 and has_diverged(bad)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "finite" in line]
    assert re.match(r"bad, seed 0: the loss was not finite in epoch 1/2, at step \d; ", line)
    assert "(0.2)" in line and "L2 1e+30" in line
    assert not (tmp_path / "bad" / "variables.msgpack").exists()
    assert load_record(tmp_path / "bad" / "history.pkl")["name"] == "bad"


def test_an_overflow_in_the_last_update_leaves_no_weights(tmp_path, capsys, monkeypatch):
    original = loop.train_steps

    def overflow(recipe, *args, **kwargs):
        state, metrics = original(recipe, *args, **kwargs)
        factor = np.nan if int(state.step[0]) == recipe.steps else 1.0
        return state.replace(params=jax.tree.map(lambda p: p * factor, state.params)), metrics

    monkeypatch.setattr(loop, "train_steps", overflow)
    (record,) = train(config(ema=0.0), tmp_path / "run")
    assert np.isfinite(record["metrics"]["train_loss"]).all()
    assert has_diverged(record)
    assert "the loss was not finite at the evaluation after epoch 2/2" in capsys.readouterr().err
    assert not (tmp_path / "run" / "variables.msgpack").exists()


def test_more_and_fewer_seeds_of_runs_that_were_cut_off(run, tmp_path, capsys):
    workdir = tmp_path / "small"

    def cut(job, progress):
        if progress.step == 8:
            raise Cut  # before the second epoch's checkpoint

    with pytest.raises(Cut):
        train_together(folder.replicas("small", config(replicas=2), workdir), cut)
    for replicas, resumed in ((3, "seeds 0 to 1"), (2, None)):
        records = train(config(replicas=replicas), workdir)
        lines = [line for line in capsys.readouterr().err.splitlines() if "resuming" in line]
        assert lines == [f"small, {resumed}: resuming after epoch 1/2"] * bool(resumed)
    assert_identical(without_times(records[0]), without_times(run[1]))


def test_a_signal_in_mid_epoch_saves_and_stops_there(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "MAX_STEPS_PER_CALL", {"cpu": 2})
    (one,) = folder.replicas("small", config(), tmp_path / "small")

    def stop(job, progress):
        if progress.step == 6:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedError, match="in epoch 2/2, after step 2 of 4; run") as error:
        train_together([one], stop)
    assert error.value.signal == signal.SIGTERM
    assert (one.workdir / "checkpoints" / "6.msgpack").exists()
    (record,) = train_together([one], ignore)
    assert "resuming in epoch 2/2, after step 2 of 4" in capsys.readouterr().err
    assert_identical(without_times(record), without_times(run[1]))


@pytest.fixture
def inverted(tmp_path):
    """The first digits of MNIST, inverted, as files in a folder; and a config of it."""
    path = tmp_path / "own"
    path.mkdir()
    for split, prefix in (("train[:300]", "train"), ("test[:150]", "t10k")):
        images, labels = datasets.load("mnist", split)
        for kind, array in (("images-idx3", 255 - images[..., 0]), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            data = header + array.astype(np.uint8).tobytes()
            (path / f"{prefix}-{kind}-ubyte").write_bytes(data)
    own = config(dataset=str(path), train_split="train", validation_split="test")
    return path / "train-images-idx3-ubyte", own


def test_a_folder_is_trained_on_with_its_own_constants_and_resumes_with_the_same_data_only(
    inverted, tmp_path
):
    file, own = inverted
    workdir = tmp_path / "run"
    (expected,) = train(own, workdir)
    images = datasets.load(own.dataset, "train").images / 255
    constants = {"mean": round(images.mean(), 4), "std": round(images.std(), 4)}
    assert expected["normalization"] == constants
    assert constants["mean"] > 0.8  # a dark digit on light paper
    assert expected["label_names"] == list("0123456789")
    normalization = augment.Normalization(**constants)
    test = datasets.load(own.dataset, "test")
    assert_predicts(expected, load_variables(workdir), *test, normalization)

    (workdir / "history.pkl").unlink()  # as if it had been stopped
    original = file.read_bytes()
    file.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(ConfigError, match=r"own has changed since .*: bring it back") as error:
        train(own, workdir)
    assert "\n" not in str(error.value)
    file.write_bytes(original)
    assert_identical(*train(own, workdir), expected)


def test_images_without_contrast_are_refused(inverted, tmp_path):
    file, own = inverted
    file.write_bytes(file.read_bytes()[:16] + bytes(300 * 28 * 28))
    with pytest.raises(datasets.DatasetError, match="all pixels of 'train' of"):
        train(own, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 301}, "config.batch_size must be at most the 300 training examples"),
        ({"train_split": "tain"}, "bad split 'tain'"),
        ({"replica_devices": 3, "data_devices": 3}, "needs 9 devices; there are 8"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(fields, message, tmp_path):
    with pytest.raises((ConfigError, datasets.DatasetError), match=re.escape(message)) as error:
        train(config(**fields), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
