"""A finished run in use: predictions, and the exported file."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest

from jax_mnist import config
from jax_mnist.data import datasets
from jax_mnist.inference import export
from jax_mnist.inference import predict as trained
from jax_mnist.runs import history
from jax_mnist.runs import loop as runner
from jax_mnist.training import augment

ROOT = Path(__file__).parents[2]
TEN_LINES = (ROOT / "README.md").read_text().partition("# ten lines\n")[2].partition("```")[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "small"
    settings = config.base()
    settings.update(
        epochs=1, train_split="train[:6400]", validation_split="test[:1000]", norm="ghost",
        replicas=2, mesh="data=1",
    )  # fmt: skip
    runner.train(settings, workdir)
    return workdir


def script(name, *arguments, cwd):
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / name, *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_several_replicas_answer_with_their_mean(run):
    network = trained.load(run)
    images = datasets.load("mnist", "test[:1000]").images[..., 0]
    recorded = [record["predictions"]["probabilities"] for record in network.records]
    assert len(recorded) == 2
    np.testing.assert_allclose(trained.predict(network, images), np.mean(recorded, 0), atol=1e-6)
    one = trained.load(run / "seed-1")
    np.testing.assert_allclose(trained.predict(one, images), recorded[1], atol=1e-6)


def test_the_script_names_digits(run, tmp_path):
    pictures = sorted((ROOT / "tests" / "digits").iterdir())
    said = script("predict.py", run, *pictures, "--json", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    answers = [json.loads(line) for line in said.stdout.splitlines()]
    assert [answer["picture"] for answer in answers] == list(map(str, pictures))
    for answer in answers:
        probabilities = answer["probabilities"]
        assert list(probabilities) == list("0123456789")
        assert max(probabilities, key=probabilities.get) == answer["label"]
        np.testing.assert_allclose(sum(probabilities.values()), 1, atol=1e-5)
    right = [
        answer["label"] == path.name[0] for answer, path in zip(answers, pictures, strict=True)
    ]
    assert sum(right) >= 6  # half, after 6,400 images

    table = script("predict.py", run, *pictures[:2], cwd=tmp_path)
    assert table.returncode == 0, table.stderr
    head, first, second = table.stdout.splitlines()
    assert head.split() == ["label", *"0123456789"]
    assert [line.split()[1] for line in (first, second)] == [a["label"] for a in answers[:2]]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("predict.py", ["nowhere", "a.png"], "nowhere holds no finished run"),
        ("predict.py", ["nowhere"], "name the folder of a run, and pictures"),
        ("predict.py", ["RUN", "a.png"], "'a.png': No such file"),
        ("export.py", ["nowhere"], "nowhere holds no finished run"),
        ("export.py", [], "name the folder of one run"),
        ("export.py", ["RUN", "--out=/nowhere\0"], ""),
    ],
)
def test_what_cannot_be_done_ends_in_one_line(run, name, arguments, message, tmp_path):
    arguments = [str(run) if a == "RUN" else a.replace("\0", "/x/y") for a in arguments]
    if arguments and arguments[-1].startswith("--out"):
        (tmp_path / "file").touch()
        arguments[-1] = f"--out={tmp_path}/file/x"
    said = script(name, *arguments, cwd=tmp_path)
    assert said.returncode == 2
    assert message in said.stderr and len(said.stderr.splitlines()) == 1


@pytest.mark.parametrize("weights", [b"\x01", b"\x80", b"\x81\xa6params\x80"])
def test_weights_of_no_network_are_refused(run, tmp_path, weights):
    record = history.load(run / "seed-0" / "history.pkl")
    record["variables_sha256"] = ""  # as in a run of an older version
    del record["config"]["mesh"]
    history.save(tmp_path / "history.pkl", record)
    shutil.copy(run / "seed-0" / "variables.msgpack", tmp_path)
    assert trained.load(tmp_path).records[0]["seed"] == 0
    (tmp_path / "variables.msgpack").write_bytes(weights)
    with pytest.raises(ValueError, match="holds weights of another network"):
        trained.load(tmp_path)


def test_a_replica_that_was_moved_aside_has_no_part(run, tmp_path):
    for folder in run.glob("seed-*"):
        shutil.copytree(folder, tmp_path / folder.name)
    expected = len(trained.load(tmp_path).records)
    shutil.copytree(run / "seed-0", tmp_path / "seed-0.old-1")
    assert len(trained.load(tmp_path).records) == expected


def test_a_run_that_diverged_is_refused(run, tmp_path):
    record = history.load(run / "seed-0" / "history.pkl")
    record["metrics"]["train_loss"][-1] = np.nan
    history.save(tmp_path / "history.pkl", record)
    with pytest.raises(history.HistoryError, match="diverged"):
        trained.load(tmp_path)


def test_the_exported_file_gives_the_models_outputs_where_there_is_only_jax(run, tmp_path):
    said = script("export.py", run, "--out=small.jaxexport", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    images = datasets.load("mnist", "test[:1000]").images[..., 0]
    np.save(tmp_path / "images.npy", images)
    assert len(TEN_LINES.splitlines()) <= 10
    ours = ("jax_mnist", "flax", "optax", "ml_collections", "tensorflow_datasets")
    program = f"import sys\nfor name in {ours}: sys.modules[name] = None\n" + TEN_LINES
    program = program.replace("my_digits.npy", "images.npy").replace("gbn", "small")
    program += "\nnp.save('out.npy', probabilities)\n"
    environment = {"PATH": "", "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True, env=environment)
    expected = trained.predict(trained.load(run), images)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)


def test_the_exported_function_takes_any_batch_on_the_platforms_it_names(run):
    network = trained.load(run)
    exported = jax.export.deserialize(bytearray(export.serialize(network.model, network.variables)))
    assert exported.platforms == ("cpu", "cuda")
    images = datasets.load("mnist", "test[:9]").images[..., 0]
    whole = exported.call(images)
    assert whole.shape == (9, 10) and whole.dtype == np.float32
    for image, expected in zip(images, whole, strict=True):
        np.testing.assert_allclose(exported.call(image[None])[0], expected, atol=1e-6)


def test_constants_of_another_data_set_are_exported_with_it(run):
    network = trained.load(run / "seed-0")
    images = datasets.load("mnist", "test[:5]").images
    data = export.serialize(network.model, network.variables, augment.Normalization(0.25, 0.5))
    x = (np.asarray(images, np.float32) / 255 - 0.25) / 0.5
    variables = jax.tree.map(lambda leaf: leaf[0], network.variables)
    logits = network.model.apply(variables, x, train=False)
    out = jax.export.deserialize(bytearray(data)).call(images[..., 0])
    np.testing.assert_allclose(out, jax.nn.softmax(logits), atol=1e-5)
