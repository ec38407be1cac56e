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
from jax_mnist.runs.trainer import CheckpointPolicy, groups_to_train, train, train_together
from jax_mnist.training import augment, recipe
from jax_mnist.training.evaluation import evaluate


def ignore(job, progress):
    """An observer that does nothing."""


class Cut(BaseException):
    """As if the process had been killed."""


def cut_after(epochs):
    def observe(job, progress):
        if progress.step == (epochs + 1) * job.steps_per_epoch:
            raise Cut  # before this epoch's checkpoint

    return observe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "deep" / "small"
    return workdir, *train(config(), workdir)


def assert_same(record, expected):
    jax.tree.map(np.testing.assert_array_equal, without_times(record), without_times(expected))


def test_the_same_config_and_seed_give_identical_histories(run, tmp_path):
    (again,) = train(config(), tmp_path / "0" / "small")
    assert_same(run[1], again)
    (other,) = train(config(seed=1), tmp_path / "1" / "small")
    assert not np.array_equal(run[1]["metrics"]["train_loss"], other["metrics"]["train_loss"])


def test_replicas_have_folders_of_their_own(run, tmp_path):
    records = train(config(replicas=2), tmp_path / "small")
    assert [record["seed"] for record in records] == [0, 1]
    for record in records:
        loaded = load_record(tmp_path / "small" / f"seed-{record['seed']}" / "history.pkl")
        jax.tree.map(np.testing.assert_array_equal, loaded, record)
        assert record["name"] == "small" and record["config"]["replicas"] == 1
    assert_same(records[0], run[1])


def test_a_finished_run_is_left_alone_and_another_config_is_refused(run, capsys):
    workdir, record = run
    before = {p: p.stat().st_mtime_ns for p in workdir.iterdir()}
    (again,) = train(config(), workdir)
    jax.tree.map(np.testing.assert_array_equal, again, record)
    assert "is finished: nothing to do" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"another run \(l1 is 0.0 there, 0.1 here\)"):
        train(config(l1=0.1), workdir)
    assert before == {p: p.stat().st_mtime_ns for p in workdir.iterdir()}


def test_starting_afresh_moves_the_old_run_aside(tmp_path, capsys):
    workdir = tmp_path / "small"
    for seed in range(3):
        train(config(seed=seed), workdir, fresh=True)
    assert f"moved {workdir} to {workdir}.old-2" in capsys.readouterr().out
    seeds = {p.name: load_record(p / "history.pkl")["seed"] for p in tmp_path.iterdir()}
    assert seeds == {"small.old-1": 0, "small.old-2": 1, "small": 2}


def test_the_files_hold_what_was_returned_and_nothing_is_left_beside_them(run):
    workdir, record = run
    assert sorted(p.name for p in workdir.iterdir()) == [
        ".lock", "checkpoints", "config.json", "history.pkl", "metrics.jsonl", "variables.msgpack",
    ]  # fmt: skip
    loaded = load_record(workdir / "history.pkl")
    jax.tree.map(np.testing.assert_array_equal, loaded, record)
    assert loaded["config"] == json.loads((workdir / "config.json").read_text())
    assert loaded["config"] == config().to_dict()
    assert loaded["name"] == "small" and loaded["parameters"] == 16 * 2 + 16 * 10 + 10
    assert {"python", "jax", "flax", "optax"} <= set(loaded["packages"])
    assert loaded["device"]["platform"] == jax.default_backend()
    assert all(values.shape == (2,) for values in loaded["metrics"].values())


def test_the_saved_variables_give_the_recorded_predictions(run):
    workdir, record = run
    network = recipe.make_model(ConfigDict(record["config"]))
    test = datasets.load("mnist", "test[:150]")
    result = evaluate(network, load_variables(workdir), test)
    predictions, metrics = record["predictions"], record["metrics"]
    logits = rounded_logits(load_variables(workdir), test.images)
    for probabilities in (result.probabilities, predictions["probabilities"]):
        assert_close(probabilities, log_softmax(logits).exp())
    assert result.accuracy == metrics["validation_accuracy"][-1]
    for loss in (result.loss, metrics["validation_loss"][-1]):
        assert_close(loss, cross_entropy(logits, test.labels))
    np.testing.assert_array_equal(predictions["label"], test.labels)
    wrong = np.flatnonzero(predictions["prediction"] != test.labels)
    np.testing.assert_array_equal(record["mistakes"]["index"], wrong)
    np.testing.assert_array_equal(record["mistakes"]["images"], test.images[wrong, :, :, 0])


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1])]
)
def test_damaged_variables_are_refused(run, tmp_path, damage):
    for name in ("history.pkl", "variables.msgpack"):
        shutil.copy(run[0] / name, tmp_path)
    assert load_variables(tmp_path).keys() == {"params", "batch_stats"}
    path = tmp_path / "variables.msgpack"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"variables\.msgpack is damaged or belongs to another"):
        load_variables(tmp_path)


def test_a_run_that_diverges_ends_and_the_others_go_on(run, tmp_path, capsys):
    both = [Run(n, config(l2=l2), tmp_path / n) for n, l2 in (("good", 0.0), ("bad", 1e30))]
    good, bad = train_together(both, ignore)
    assert len(good["metrics"]["train_loss"]) == 2 and not has_diverged(good)
    assert len(bad["metrics"]["train_loss"]) == 1 and has_diverged(bad)
    np.testing.assert_array_equal(good["metrics"]["train_loss"], run[1]["metrics"]["train_loss"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "finite" in line]
    assert re.match(r"bad, seed 0: the loss was not finite in epoch 1/2, at step \d; ", line)
    assert "(0.2)" in line and "L2 1e+30" in line
    assert not (tmp_path / "bad" / "variables.msgpack").exists()
    assert len((tmp_path / "bad" / "metrics.jsonl").read_text().splitlines()) == 1
    assert load_record(tmp_path / "bad" / "history.pkl")["name"] == "bad"


def test_an_overflow_in_the_last_update_leaves_no_weights(tmp_path, capsys, monkeypatch):
    original = loop.train_steps

    def overflow(recipe, *args, **kwargs):
        state, metrics = original(recipe, *args, **kwargs)
        last = int(state.step[0]) == recipe.steps
        factor = np.nan if last else 1.0
        return state.replace(params=jax.tree.map(lambda p: p * factor, state.params)), metrics

    monkeypatch.setattr(loop, "train_steps", overflow)
    (record,) = train(config(ema=0.0), tmp_path / "run")
    assert np.isfinite(record["metrics"]["train_loss"]).all()
    assert has_diverged(record)
    assert "the loss was not finite at the evaluation after epoch 2/2" in capsys.readouterr().err
    assert not (tmp_path / "run" / "variables.msgpack").exists()


def test_a_run_that_was_cut_off_resumes_even_if_a_field_is_new(run, tmp_path, capsys):
    workdir = tmp_path / "small"
    (one,) = folder.replicas("small", config(), workdir)
    with pytest.raises(Cut):
        train_together([one], cut_after(1))
    known = json.loads((workdir / "config.json").read_text())
    del known["shear"]  # as if the run had been begun before the field was added
    (workdir / "config.json").write_text(json.dumps(known))
    (record,) = train(config(), workdir)
    assert "small, seed 0: resuming after epoch 1/2" in capsys.readouterr().err
    assert_same(record, run[1])


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2)])
def test_more_and_fewer_seeds_of_runs_that_were_cut_off(run, tmp_path, capsys, before, after):
    workdir = tmp_path / "small"
    with pytest.raises(Cut):
        train_together(folder.replicas("small", config(replicas=before), workdir), cut_after(1))
    records = train(config(replicas=after), workdir)
    assert capsys.readouterr().err.count("resuming after epoch 1/2") == 1
    train(config(replicas=3), workdir)
    assert capsys.readouterr().err.count("resuming after epoch 1/2") == (after == 2)
    assert_same(records[0], run[1])
    (alone,) = train(config(seed=1), tmp_path / "alone" / "small")
    assert_same(records[1], alone)


def test_a_run_killed_between_its_last_writes_resumes_at_its_end(tmp_path, capsys):
    workdir = tmp_path / "small"
    (expected,) = train(config(), workdir)
    (workdir / "history.pkl").unlink()
    (record,) = train(config(), workdir)
    assert "resuming after epoch 2/2" in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, record, expected)


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
    assert_same(record, run[1])


def test_checkpoints_are_saved_as_often_as_asked(tmp_path):
    (one,) = folder.replicas("small", config(epochs=5), tmp_path / "small")
    train_together([one], ignore, CheckpointPolicy(every=2, keep=3))
    steps = {int(path.stem) for path in (tmp_path / "small" / "checkpoints").iterdir()}
    assert steps == {8, 16}


def test_who_trains_together_is_of_one_program_and_at_one_step(run, tmp_path):
    runs = [
        Run("done", config(), run[0]),
        *(Run("new", config(seed=s), tmp_path / f"{s}") for s in (1, 2)),
        Run("other", config(ema=0.0), tmp_path / "other"),
    ]
    assert [[r.name for r in group] for group in groups_to_train(runs)] == [
        ["new", "new"], ["other"],
    ]  # fmt: skip


@pytest.fixture
def idx_folder(tmp_path):
    """The first digits of MNIST, inverted, as files."""
    folder = tmp_path / "own"
    folder.mkdir()
    for split, prefix in (("train[:300]", "train"), ("test[:150]", "t10k")):
        images, labels = datasets.load("mnist", split)
        for kind, array in (("images-idx3", 255 - images[..., 0]), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            data = header + array.astype(np.uint8).tobytes()
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(data)
    return folder


def own(folder):
    return config(dataset=str(folder), train_split="train", validation_split="test")


def test_a_folder_is_trained_on_with_its_own_constants_and_resumes_with_the_same_data_only(
    idx_folder, tmp_path
):
    workdir = tmp_path / "run"
    (expected,) = train(own(idx_folder), workdir)
    images = datasets.load(str(idx_folder), "train").images / 255
    constants = {"mean": round(images.mean(), 4), "std": round(images.std(), 4)}
    assert expected["normalization"] == constants
    assert constants["mean"] > 0.8  # a dark digit on light paper
    assert expected["label_names"] == list("0123456789")
    variables, test = load_variables(workdir), datasets.load(str(idx_folder), "test")
    normalization = augment.Normalization(**constants)
    model = recipe.make_model(own(idx_folder))
    result = evaluate(model, variables, test, normalization=normalization)
    logits = rounded_logits(variables, test.images, normalization)
    for probabilities in (result.probabilities, expected["predictions"]["probabilities"]):
        assert_close(probabilities, log_softmax(logits).exp())

    (workdir / "history.pkl").unlink()  # as if it had been stopped
    file = idx_folder / "train-images-idx3-ubyte"
    original = file.read_bytes()
    file.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(ConfigError, match="own has changed since") as error:
        train(own(idx_folder), workdir)
    assert "\n" not in str(error.value)
    file.write_bytes(original)
    (record,) = train(own(idx_folder), workdir)
    jax.tree.map(np.testing.assert_array_equal, record, expected)


def test_images_without_contrast_are_refused(idx_folder, tmp_path):
    file = idx_folder / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:16] + bytes(300 * 28 * 28))
    with pytest.raises(datasets.DatasetError, match="all pixels of 'train' of"):
        train(own(idx_folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 301}, "config.batch_size must be at most the 300 training examples"),
        ({"ghost_batch_size": 0}, "config.ghost_batch_size must be at least 1"),
        ({"train_split": "tain"}, "bad split 'tain'"),
        ({"replica_devices": 3, "data_devices": 3}, "needs 9 devices; there are 8"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(fields, message, tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises((ConfigError, datasets.DatasetError), match=re.escape(message)) as error:
        train(config(**fields), workdir)
    assert "\n" not in str(error.value)
    assert not workdir.exists()
