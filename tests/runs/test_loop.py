"""The host loop on a little of the real MNIST."""

import fcntl
import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jax_mnist import config as config_lib
from jax_mnist.data import datasets
from jax_mnist.runs import history, results
from jax_mnist.runs import loop as runner
from jax_mnist.runs import run as runs
from jax_mnist.training import augment, recipe
from jax_mnist.training import step as training


def small_config(**fields) -> ConfigDict:
    config = config_lib.base()
    config.update(
        train_split="train[:300]",
        validation_split="test[:150]",
        epochs=2,
        batch_size=64,
        norm="ghost",
        ema=0.5,
        mesh="data=1",
    )
    config.update(**fields)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "deep" / "small"
    return workdir, *runner.train(small_config(), workdir)


def without_times(record):
    metrics = {k: v for k, v in record["metrics"].items() if k != "seconds"}
    return record | {"metrics": metrics}


def test_the_same_config_and_seed_give_identical_histories(run, tmp_path):
    _, record = run
    (again,) = runner.train(small_config(), tmp_path / "0" / "small")
    jax.tree.map(np.testing.assert_array_equal, without_times(record), without_times(again))
    (other,) = runner.train(small_config(seed=1), tmp_path / "1" / "small")
    assert not np.array_equal(record["metrics"]["train_loss"], other["metrics"]["train_loss"])


def test_each_replica_is_the_run_of_its_own_seed(run, tmp_path):
    records = runner.train(small_config(replicas=2), tmp_path / "small")
    assert [record["seed"] for record in records] == [0, 1]
    runner.train(small_config(seed=1), tmp_path / "alone" / "small")
    alone = [run[1], history.load(tmp_path / "alone" / "small" / "history.pkl")]
    for record, expected in zip(records, alone, strict=True):
        loaded = history.load(tmp_path / "small" / f"seed-{record['seed']}" / "history.pkl")
        jax.tree.map(np.testing.assert_array_equal, loaded, record)
        assert record["config"] == expected["config"] and record["name"] == "small"
        for part in ("metrics", "predictions"):
            jax.tree.map(
                np.testing.assert_array_equal,
                without_times(record)[part],
                without_times(expected)[part],
            )


def test_a_finished_run_is_left_alone_and_another_config_is_refused(run, capsys):
    workdir, record = run
    before = {p: p.stat().st_mtime_ns for p in workdir.iterdir()}
    (again,) = runner.train(small_config(), workdir)
    jax.tree.map(np.testing.assert_array_equal, again, record)
    assert "is finished: nothing to do" in capsys.readouterr().out
    with pytest.raises(config_lib.ConfigError, match=r"another run \(l1 is 0.0 there, 0.1 here\)"):
        runner.train(small_config(l1=0.1), workdir)
    assert before == {p: p.stat().st_mtime_ns for p in workdir.iterdir()}


def test_a_run_from_before_a_field_had_its_default(tmp_path):
    config = config_lib.base()
    run = runs.Run("old", config, tmp_path)
    known = config.to_dict()
    del known["schedule"]
    (tmp_path / "config.json").write_text(json.dumps(known))
    assert not runs.is_finished(run)
    config.schedule = "constant"
    with pytest.raises(config_lib.ConfigError, match="schedule is 'one_cycle' there"):
        runs.is_finished(run)


def test_starting_afresh_moves_the_old_run_aside(tmp_path, capsys):
    workdir = tmp_path / "small"
    for seed in range(3):
        runner.train(small_config(seed=seed, epochs=1), workdir, fresh=True)
    assert f"moved {workdir} to {workdir}.old-2" in capsys.readouterr().out
    seeds = {p.name: history.load(p / "history.pkl")["seed"] for p in tmp_path.iterdir()}
    assert seeds == {"small.old-1": 0, "small.old-2": 1, "small": 2}


def test_only_a_run_is_moved_aside(tmp_path):
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter").write_text("")
    with pytest.raises(config_lib.ConfigError, match="thesis holds no run, so it is not moved"):
        runner.train(small_config(), other, fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]
    assert runs.move_aside(tmp_path / "none") is None


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_run_that_is_being_trained_is_not_moved_aside(tmp_path, replicas):
    workdir = tmp_path / "small"
    for run in (all_runs := runs.replicas("small", small_config(replicas=replicas), workdir)):
        with runs.only_writer(run):
            pass
    with (
        runs.only_writer(all_runs[-1]),
        pytest.raises(config_lib.ConfigError, match="is in use: another process trains there"),
    ):
        runs.move_aside(workdir)
    assert workdir.exists()
    assert runs.move_aside(workdir) == tmp_path / "small.old-1"


def test_a_folder_moved_aside_while_it_was_taken_is_not_written_in(tmp_path, monkeypatch):
    run = runs.Run("small", small_config(), tmp_path / "small")
    flock = fcntl.flock

    def move_then_lock(*arguments):
        run.workdir.rename(tmp_path / "aside")
        run.workdir.mkdir()
        flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", move_then_lock)
    with pytest.raises(config_lib.ConfigError, match="in use"), runs.only_writer(run):
        pass
    assert not list(tmp_path.rglob("*.json"))


def test_one_seed_and_several_do_not_share_a_folder(tmp_path):
    def begin(replicas, workdir):
        for run in runs.replicas("small", small_config(replicas=replicas), workdir):
            with runs.only_writer(run):
                pass

    for first, second, found in ((1, 2, "a run of one seed"), (2, 1, "runs of several seeds")):
        begin(first, tmp_path / str(first))
        with pytest.raises(config_lib.ConfigError, match=f"{first} holds {found}"):
            runner.train(small_config(replicas=second), tmp_path / str(first))
    begin(3, tmp_path / "2")


def test_only_what_a_killed_run_left_is_removed(tmp_path):
    for name in (".history.pkl.12.tmp", ".history.pkl.x.tmp", ".own.12.tmp", "history.pkl.1.tmp"):
        (tmp_path / name).write_text("")
    with runs.only_writer(runs.Run("small", small_config(), tmp_path)):
        left = {path.name for path in tmp_path.iterdir()}
    assert left == {".history.pkl.x.tmp", ".own.12.tmp", "history.pkl.1.tmp", "config.json"}


@pytest.mark.parametrize("text", ["null", "[]", "3", '"x"', "{", "[" * 100_000])
def test_a_damaged_config_file_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(config_lib.ConfigError, match=r"config\.json is damaged: remove it"):
        runner.train(small_config(), tmp_path)


def test_a_strange_value_in_a_folder_is_a_difference_like_any(tmp_path):
    known = small_config().to_dict() | {"seed": [0], "l2": {"x": 1}, "norm": "x" * 1000}
    (tmp_path / "config.json").write_text(json.dumps(known))
    with pytest.raises(config_lib.ConfigError, match=r"seed is \[0\] there, 0 here") as error:
        runner.train(small_config(), tmp_path)
    assert len(str(error.value)) < 400


class Cut(BaseException):
    """As if the process had been killed."""


def cut_after_an_epoch(progress):
    if progress.epoch == 2:
        raise Cut


def test_more_seeds_of_runs_that_were_cut_off(run, tmp_path, capsys):
    workdir = tmp_path / "small"
    with pytest.raises(Cut):
        runner.train_together(
            runs.replicas("small", small_config(replicas=2), workdir), cut_after_an_epoch
        )
    records = runner.train(small_config(replicas=3), workdir)
    assert capsys.readouterr().err.count("going on after epoch 1, ") == 1
    alone = [run[1], *(runner.train(small_config(seed=s), tmp_path / f"{s}")[0] for s in (1, 2))]
    for record, expected in zip(records, alone, strict=True):
        expected = expected | {"name": "small"}
        jax.tree.map(np.testing.assert_array_equal, without_times(record), without_times(expected))


def test_runs_cut_off_between_their_last_writes_find_their_checkpoint(tmp_path, capsys):
    folders = ("a/seed-0", "a/seed-1", "b/seed-0")
    group = [
        runs.Run("ab"[n // 2], small_config(seed=n % 2, epochs=1, l2=0.1 * (n // 2)), tmp_path / f)
        for n, f in enumerate(folders)
    ]
    expected = runner.train_together(group, lambda progress: None)
    for run in group[:2]:  # now they have another folder in common
        (run.workdir / "history.pkl").unlink()
    (again,) = runs.together(group[:2])
    records = runner.train_together(again, lambda progress: None)
    assert "going on after epoch 1, step 0" in capsys.readouterr().err
    for pair in zip(records, expected[:2], strict=True):
        jax.tree.map(np.testing.assert_array_equal, *pair)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    run = runs.Run("b", group[2].config, moved / "b" / "seed-0")
    assert runs.begun_in(run).parent.parent == moved


def test_fewer_seeds_do_not_cost_the_others_their_checkpoint(run, tmp_path, capsys):
    workdir = tmp_path / "small"
    with pytest.raises(Cut):
        runner.train_together(
            runs.replicas("small", small_config(replicas=3), workdir), cut_after_an_epoch
        )
    runner.train(small_config(replicas=2), workdir)
    assert capsys.readouterr().err.count("going on after epoch 1, ") == 1
    records = runner.train(small_config(replicas=3), workdir)
    assert capsys.readouterr().err.count("going on after epoch 1, ") == 1
    alone = [run[1], *(runner.train(small_config(seed=s), tmp_path / f"{s}")[0] for s in (1, 2))]
    for record, expected in zip(records, alone, strict=True):
        expected = expected | {"name": "small"}
        jax.tree.map(np.testing.assert_array_equal, without_times(record), without_times(expected))
    one = runs.replicas("small", small_config(replicas=3), workdir)[2]
    assert runs.begun_in(one) == one.workdir / "checkpoints"  # it went on alone


def test_who_train_together_have_begun_together(tmp_path):
    def new(seed, **fields):
        return runs.Run("x", small_config(seed=seed, **fields), tmp_path / f"{seed}")

    first, second, third, averaged = new(0), new(1), new(2), new(3, ema=0.0)
    assert runs.together([first, second, averaged, third]) == [[first, second, third], [averaged]]
    folders = {runs.checkpoint_folder(g) for g in ([first, second], [first, third], [first])}
    assert len(folders) == 3
    runs.checkpoint_folder([first, third]).mkdir(parents=True)
    for run in (first, third):
        run.workdir.mkdir()
    runs.link_checkpoints([first, third])
    assert runs.together([first, second, third]) == [[first, third], [second]]


@pytest.mark.parametrize("target", ["/", "../../elsewhere", "../elsewhere/01234567", "loop"])
def test_checkpoints_that_lead_elsewhere_are_refused(tmp_path, target):
    run = runs.Run("x", small_config(), tmp_path / "run")
    run.workdir.mkdir()
    (run.workdir / "loop").mkdir()
    (run.workdir / "shared_checkpoints").symlink_to(target)
    with pytest.raises(config_lib.ConfigError, match="leads out of the runs' folder"):
        runner.train(run.config, run.workdir)
    assert {path.name for path in run.workdir.iterdir()} == {"loop", "shared_checkpoints"}


def test_checkpoints_that_are_elsewhere_are_refused(tmp_path):
    (tmp_path / "precious" / "2024").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to("../precious")
    with pytest.raises(config_lib.ConfigError, match="leads out of the runs' folder"):
        runner.train(small_config(), tmp_path / "run")
    assert (tmp_path / "precious" / "2024").exists()


def test_a_run_that_another_process_began_meanwhile_is_not_written_over(tmp_path):
    first, second = (runs.Run("x", small_config(l2=l2), tmp_path / "run") for l2 in (0.1, 0.2))
    assert not runs.is_finished(second)
    with runs.only_writer(first):
        pass
    before = (tmp_path / "run" / "config.json").read_bytes()
    with (
        pytest.raises(config_lib.ConfigError, match=r"l2 is 0\.1 there, 0\.2 here"),
        runs.only_writer(second),
    ):
        pass
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_run_that_diverges_ends_and_the_others_go_on(run, tmp_path, capsys):
    configs = {"good": small_config(), "bad": small_config(l2=1e30)}
    both = [runs.Run(name, config, tmp_path / name) for name, config in configs.items()]
    good, bad = runner.train_together(both, lambda progress: None)
    assert len(good["metrics"]["train_loss"]) == 2 and not history.has_diverged(good)
    assert len(bad["metrics"]["train_loss"]) == 1 and history.has_diverged(bad)
    np.testing.assert_allclose(
        good["metrics"]["train_loss"], run[1]["metrics"]["train_loss"], rtol=0.02
    )
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "finite" in line]
    assert line.startswith("bad, seed 0: the loss was not finite at epoch 1, step ")
    assert "learning rate (0.2)" in line and "L2 1e+30" in line
    assert sorted(p.name for p in (tmp_path / "bad").iterdir()) == [
        "config.json",
        "history.pkl",
        "metrics.jsonl",
        "shared_checkpoints",
    ]
    assert history.load(tmp_path / "bad" / "history.pkl")["name"] == "bad"


def test_the_files_hold_what_was_returned_and_nothing_is_left_beside_them(run):
    workdir, record = run
    assert sorted(p.name for p in workdir.iterdir()) == [
        "checkpoints",
        "config.json",
        "history.pkl",
        "metrics.jsonl",
        "variables.msgpack",
    ]
    loaded = history.load(workdir / "history.pkl")
    jax.tree.map(np.testing.assert_array_equal, loaded, record)
    assert loaded["config"] == small_config().to_dict()
    assert loaded["name"] == "small"
    assert loaded["parameters"] == 8546
    assert {"python", "jax", "flax", "optax"} <= set(loaded["packages"])
    assert loaded["device"]["platform"] == jax.default_backend()


def test_a_workdir_without_a_usable_name_is_refused(tmp_path):
    with pytest.raises(config_lib.ConfigError, match="name of at most 64 printable characters"):
        runner.train(small_config(), tmp_path / ("x" * 65))


def test_a_folder_that_another_process_trains_in_is_refused(tmp_path):
    code = """
import pathlib, sys
from jax_mnist import config
from jax_mnist.runs import run as runs
with runs.only_writer(runs.Run("run", config.base(), pathlib.Path(sys.argv[1]))):
    print(flush=True)
    input()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    run = runs.Run("run", config_lib.base(), tmp_path / "run")
    with holder:
        holder.stdout.readline()
        with (
            pytest.raises(config_lib.ConfigError, match="in use: another process trains there"),
            runs.only_writer(run),
        ):
            pass
        holder.kill()
    with runs.only_writer(run):  # freed by the death of its holder
        assert [path.name for path in run.workdir.iterdir()] == ["config.json"]


def test_metrics_are_those_of_the_epochs(run):
    metrics = run[1]["metrics"]
    assert all(values.shape == (2,) for values in metrics.values())
    steps = 300 // 64
    # One cycle over 8 steps: 30 % of the way up by step 2; each epoch's last step is recorded.
    for epoch in range(2):
        progress = ((epoch + 1) * steps - 1 - 2) / 6
        low, high = 0.2 / 250_000, 0.2
        expected = low + (high - low) * (1 + np.cos(np.pi * progress)) / 2
        np.testing.assert_allclose(metrics["learning_rate"][epoch], expected, rtol=1e-4)
    assert (metrics["seconds"] > 0).all()


def test_the_saved_variables_give_the_recorded_predictions(run):
    workdir, record = run
    network = recipe.make_model(ConfigDict(record["config"]))
    test = datasets.load("mnist", "test[:150]")
    result = training.evaluate(network, results.load_variables(workdir), test)
    predictions = record["predictions"]
    np.testing.assert_allclose(result.probabilities, predictions["probabilities"], atol=1e-6)
    assert result.accuracy == record["metrics"]["validation_accuracy"][-1]
    np.testing.assert_allclose(result.loss, record["metrics"]["validation_loss"][-1], rtol=1e-6)
    np.testing.assert_array_equal(predictions["label"], test.labels)
    wrong = np.flatnonzero(predictions["prediction"] != test.labels)
    np.testing.assert_array_equal(record["mistakes"]["index"], wrong)
    np.testing.assert_array_equal(record["mistakes"]["images"], test.images[wrong, :, :, 0])


@pytest.fixture
def idx_folder(tmp_path):
    """The first digits of MNIST, inverted, as files."""
    folder = tmp_path / "own"
    folder.mkdir()
    for split, prefix in (("train[:200]", "train"), ("test[:100]", "t10k")):
        images, labels = datasets.load("mnist", split)
        for kind, array in (("images-idx3", 255 - images[..., 0]), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            data = header + array.astype(np.uint8).tobytes()
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(data)
    return folder


def test_a_folder_is_trained_on_with_its_own_constants(idx_folder, tmp_path):
    config = small_config(
        dataset=str(idx_folder), train_split="train[:128]", validation_split="test", epochs=1
    )
    (record,) = runner.train(config, tmp_path / "run")
    images = datasets.load(str(idx_folder), "train[:128]").images / 255
    expected = {"mean": round(images.mean(), 4), "std": round(images.std(), 4)}
    assert record["normalization"] == expected
    assert expected["mean"] > 0.8  # a dark digit on light paper
    assert record["label_names"] == list("0123456789")
    result = training.evaluate(
        recipe.make_model(config),
        results.load_variables(tmp_path / "run"),
        datasets.load(str(idx_folder), "test"),
        normalization=augment.Normalization(**expected),
    )
    expected = record["predictions"]["probabilities"]
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-6)


def test_a_run_goes_on_with_the_same_data_only(idx_folder, tmp_path):
    workdir = tmp_path / "run"
    config = small_config(dataset=str(idx_folder), train_split="train", validation_split="test")
    (expected,) = runner.train(config, workdir)
    (workdir / "history.pkl").unlink()  # as if it had been stopped
    file = idx_folder / "train-images-idx3-ubyte"
    original = file.read_bytes()
    file.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(config_lib.ConfigError, match="own has changed since") as error:
        runner.train(config, workdir)
    assert "\n" not in str(error.value)
    file.write_bytes(original)
    (record,) = runner.train(config, workdir)
    jax.tree.map(np.testing.assert_array_equal, record, expected)


def test_images_without_contrast_are_refused(idx_folder, tmp_path):
    file = idx_folder / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:16] + bytes(200 * 28 * 28))
    config = small_config(dataset=str(idx_folder), train_split="train", validation_split="test")
    with pytest.raises(datasets.DatasetError, match="the pixels of 'train' of"):
        runner.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 301}, "config.batch_size must be at most the 300 training examples"),
        ({"ghost_batch_size": 0}, "config.ghost_batch_size must be at least 1"),
        ({"train_split": "tain"}, "bad split 'tain'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(fields, message, tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(
        (config_lib.ConfigError, datasets.DatasetError), match=re.escape(message)
    ) as error:
        runner.train(small_config(**fields), workdir)
    assert "\n" not in str(error.value)
    assert not workdir.exists()


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1])]
)
def test_damaged_variables_are_refused(run, tmp_path, damage):
    for name in ("history.pkl", "variables.msgpack"):
        shutil.copy(run[0] / name, tmp_path)
    assert results.load_variables(tmp_path).keys() == {"params", "batch_stats"}
    (tmp_path / "variables.msgpack").write_bytes(
        damage((run[0] / "variables.msgpack").read_bytes())
    )
    with pytest.raises(ValueError, match=r"variables\.msgpack"):
        results.load_variables(tmp_path)
