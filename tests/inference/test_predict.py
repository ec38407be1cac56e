"""A finished run in use: its network is loaded, and names digits."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jax_mnist import config
from jax_mnist.data import datasets
from jax_mnist.inference.predict import load, predict
from jax_mnist.runs import history
from jax_mnist.runs.trainer import train

ROOT = Path(__file__).parents[2]
DRAWN = sorted((Path(__file__).parent / "digits").iterdir())


def test_several_replicas_answer_with_the_mean_of_what_they_recorded(run, images, recorded):
    network = load(run)
    assert [record["seed"] for record in network.records] == [0, 1]
    np.testing.assert_allclose(predict(network, images), recorded.mean(0), atol=1e-5)


def test_one_replica_can_be_loaded_by_itself(run):
    both, one = load(run), load(run / "seed-1")
    assert [record["seed"] for record in one.records] == [1]
    kernel, whole = (network.variables["params"]["conv5"]["kernel"] for network in (one, both))
    np.testing.assert_array_equal(kernel, whole[1:])


def test_what_was_trained_here_answers_as_it_recorded(thorough, tmp_path):
    if not thorough:
        pytest.skip("trains, which takes a minute to compile: --thorough")
    settings = config.base()
    settings.update(
        epochs=1, train_split="train[:1280]", validation_split="test[:50]", norm="ghost",
        replicas=2, data_devices=1,
    )  # fmt: skip
    train(settings, tmp_path)
    images = datasets.load("mnist", "test[:50]").images[..., 0]
    network = load(tmp_path)
    recorded = [record["predictions"]["probabilities"] for record in network.records]
    np.testing.assert_allclose(predict(network, images), np.mean(recorded, 0), atol=1e-6)
    one = load(tmp_path / "seed-1")
    np.testing.assert_allclose(predict(one, images), recorded[1], atol=1e-6)


def test_the_script_names_drawn_digits(run, scripts, tmp_path):
    result = scripts.run(ROOT / "scripts" / "predict.py", run, *DRAWN, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["picture"] for answer in answers] == list(map(str, DRAWN))
    for answer in answers:
        probabilities = answer["probabilities"]
        assert list(probabilities) == list("0123456789")
        assert max(probabilities, key=probabilities.get) == answer["label"]
        np.testing.assert_allclose(sum(probabilities.values()), 1, atol=1e-5)
    right = [answer["label"] == path.name[0] for answer, path in zip(answers, DRAWN, strict=True)]
    assert sum(right) >= 11

    table = scripts.run(ROOT / "scripts" / "predict.py", run, *DRAWN, cwd=tmp_path)
    assert table.returncode == 0, table.stderr
    head, *lines = table.stdout.splitlines()
    assert head.split() == ["label", *"0123456789"]
    assert [line.split()[1] for line in lines] == [answer["label"] for answer in answers]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("predict.py", ["nowhere", "a.png"], "nowhere holds no finished run"),
        ("predict.py", ["nowhere"], "name the folder of a run, and one or more pictures"),
        ("predict.py", ["RUN", "a.png"], "'a.png': No such file"),
        ("export.py", ["nowhere"], "nowhere holds no finished run"),
        ("export.py", [], "name the folder of one run"),
        ("export.py", ["RUN", "--out=file/x"], "'file/x': cannot be written: Not a directory"),
        ("plot.py", [], "name the folders of one or more runs, or their history.pkl"),
    ],
)
def test_bad_arguments_end_in_one_line(run, scripts, name, arguments, message, tmp_path):
    (tmp_path / "file").touch()
    arguments = [run if argument == "RUN" else argument for argument in arguments]
    result = scripts.run(ROOT / "scripts" / name, *arguments, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert message in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("weights", [b"\x01", b"\x80", b"\x81\xa6params\x80"])
def test_weights_of_another_network_are_refused(run, tmp_path, weights):
    record = history.load(run / "seed-0" / "history.pkl")
    record["variables_sha256"] = hashlib.sha256(weights).hexdigest()
    history.save(tmp_path / "history.pkl", record)
    (tmp_path / "variables.msgpack").write_bytes(weights)
    with pytest.raises(ValueError, match="holds weights of another network"):
        load(tmp_path)


def test_a_run_without_a_newer_field_of_the_config_is_loaded(run, tmp_path):
    record = history.load(run / "seed-0" / "history.pkl")
    del record["config"]["shear"]
    history.save(tmp_path / "history.pkl", record)
    shutil.copy(run / "seed-0" / "variables.msgpack", tmp_path)
    assert load(tmp_path).records[0]["seed"] == 0


def test_a_replica_that_was_moved_aside_is_left_out(run, tmp_path):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    shutil.copytree(run / "seed-0", tmp_path / "seed-0.old-1")
    assert [record["seed"] for record in load(tmp_path).records] == [0, 1]


def test_replicas_that_diverged_are_left_out_and_a_run_of_only_those_is_refused(run, tmp_path):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    for seed, others in ((0, [1]), (1, None)):
        path = tmp_path / f"seed-{seed}" / "history.pkl"
        record = history.load(path)
        record["metrics"]["train_loss"][-1] = np.nan
        history.save(path, record)
        path.with_name("variables.msgpack").unlink()  # such a run has none
        if others:
            assert [record["seed"] for record in load(tmp_path).records] == others
    with pytest.raises(history.HistoryError, match="diverged"):
        load(tmp_path)
