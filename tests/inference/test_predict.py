"""A finished run in use: its network is loaded, and names digits."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jax_mnist.inference.predict import load_network, predict
from jax_mnist.runs.record import RecordError, load_record, save_record

ROOT = Path(__file__).parents[2]
DRAWN = sorted((Path(__file__).parent / "digits").iterdir())


def seeds(network):
    return [record["seed"] for record in network.records]


def test_replicas_answer_with_the_mean_of_what_they_recorded_or_alone(run, images, recorded):
    for folder, numbers in ((run, [0, 1]), (run / "seed-1", [1])):
        network = load_network(folder)
        assert seeds(network) == numbers
        expected = recorded[numbers].mean(0)
        np.testing.assert_allclose(predict(network, images), expected, atol=1e-5)


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
    ("name", "argument", "message"),
    [
        ("predict", "a.png", "'a.png': No such file or directory"),
        ("export", "--out=file/x", "'file/x': cannot be written: Not a directory"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(
    run, scripts, name, argument, message, tmp_path
):
    (tmp_path / "file").touch()
    result = scripts.run(ROOT / "scripts" / f"{name}.py", run, argument, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"{name}.py: {message}") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("weights", [b"\x01", b"\x80", b"\x81\xa6params\x80"])
def test_weights_of_another_network_are_refused(run, tmp_path, weights):
    record = load_record(run / "seed-0" / "history.pkl")
    record["variables_sha256"] = hashlib.sha256(weights).hexdigest()
    save_record(tmp_path / "history.pkl", record)
    (tmp_path / "variables.msgpack").write_bytes(weights)
    with pytest.raises(ValueError, match="holds weights of another network"):
        load_network(tmp_path)


def test_a_run_without_a_newer_field_of_the_config_is_loaded(run, tmp_path):
    record = load_record(run / "seed-0" / "history.pkl")
    del record["config"]["shear"]
    save_record(tmp_path / "history.pkl", record)
    shutil.copy(run / "seed-0" / "variables.msgpack", tmp_path)
    assert seeds(load_network(tmp_path)) == [0]


def test_replicas_that_diverged_or_were_moved_aside_are_left_out(run, tmp_path):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    shutil.copytree(run / "seed-0", tmp_path / "seed-0.old-1")
    for seed, others in ((0, [0, 1]), (1, [1])):
        assert seeds(load_network(tmp_path)) == others
        path = tmp_path / f"seed-{seed}" / "history.pkl"
        record = load_record(path)
        record["metrics"]["train_loss"][-1] = np.nan
        save_record(path, record)
        path.with_name("variables.msgpack").unlink()  # such a run has none
    with pytest.raises(RecordError, match="diverged"):
        load_network(tmp_path)
