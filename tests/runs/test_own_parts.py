"""A network, a loss and an optimiser that a caller passes to `runs.train`."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from tiny import Tiny, config, without_times

from jax_mnist import runs
from jax_mnist.config import ConfigError
from jax_mnist.data import datasets
from jax_mnist.inference import predict
from jax_mnist.runs import study
from jax_mnist.runs.record import RecordError
from jax_mnist.training.parts import Overrides


class Linear(nn.Module):
    """No norm; half of the pixels are dropped in training."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(10)(x)


def double(logits, labels):
    return 2 * optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def slow_sgd(learning_rate):
    return optax.sgd(learning_rate / 2, momentum=0.9, nesterov=True)


PARTS = {"model": Linear(), "loss": double, "optimizer": slow_sgd}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "own"
    return workdir, *runs.train(config(), workdir, **PARTS)


def test_training_minimises_the_loss_with_the_optimiser_and_evaluates_cross_entropy(tmp_path):
    """Twice the loss at half the rate is the same training."""
    (usual,) = runs.train(config(), tmp_path / "usual")
    parts = PARTS | {"model": Tiny("ghost", 8, None)}
    (same,) = runs.train(config(), tmp_path / "own", **parts)
    for name, values in without_times(usual)["metrics"].items():
        factor = 2 if name == "train_loss" else 1
        np.testing.assert_allclose(same["metrics"][name], factor * values, rtol=1e-4, err_msg=name)


def test_the_record_names_the_parts_and_is_of_the_network(own):
    _, record = own
    names = {"model": "Linear()", "loss": "double", "optimizer": "slow_sgd"}
    assert record["config"] == config().to_dict() | names
    assert record["parameters"] == 784 * 10 + 10
    assert record["metrics"]["validation_accuracy"][-1] > 0.5


def test_a_folder_of_other_parts_is_refused_with_the_difference(own):
    message = (
        r"loss is 'double' there, 'squared_error' here, model is 'Linear\(\)' there, None here"
    )
    with pytest.raises(ConfigError, match=message):
        runs.train(config(), own[0], loss=optax.squared_error, optimizer=slow_sgd)


def test_predicting_needs_the_network_that_was_trained(own):
    workdir, record = own
    for model in (None, Tiny("ghost", 8, None)):
        with pytest.raises(RecordError, match=r"holds the network Linear\(\), not"):
            predict.load_network(workdir, model)
    images = datasets.load("mnist", "test[:150]").images[..., 0]
    probabilities = predict.predict(predict.load_network(workdir, Linear()), images)
    np.testing.assert_allclose(probabilities, record["predictions"]["probabilities"], atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "parts", "message"),
    [
        ({}, {"model": Linear}, "model must be a Flax module, such as CNN"),
        ({}, {"loss": 0.5}, "loss must be a function; got 0.5"),
        ({}, {"model": nn.Dense(np.ones(3))}, "model must be hashable; got a Dense"),
        ({"data_devices": 2}, PARTS, r"cannot spread a batch: set config\.data_devices to 1"),
        ({"dropout": 0.1}, PARTS, r"config\.dropout works only with"),
        ({"label_smoothing": 0.1}, {"loss": double}, r"config\.label_smoothing works only with"),
    ],
)
def test_parts_that_cannot_be_trained_are_refused_in_one_line(fields, parts, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as error:
        runs.train(config(**fields), tmp_path / "run", **parts)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_names_have_no_address_and_no_line_breaks():
    model = nn.Sequential([nn.Dense(3), functools.partial(jax.nn.elu, alpha=0.5)])
    names = Overrides(model, functools.partial(double), lambda rate: optax.sgd(rate)).names()
    assert names["model"].startswith("Sequential(layers=[Dense( # attributes features = 3")
    assert names["loss"] == "functools.partial(<function double>)"
    assert names["optimizer"].endswith("<lambda>")
    assert not any(" at 0x" in name or "\n" in name for name in names.values())


OWN_FILE = """
import flax.linen as nn
import jax.numpy as jnp
import optax
from jax_mnist.config import base

class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(10)(x.reshape(len(x), -1))

def get_config():
    config = base()
    config.update(epochs=1, batch_size=64, train_split="train[:640]", data_devices=1)
    return config

def get_parts():
    return {
        "model": Linear(),
        "loss": lambda logits, labels: optax.l2_loss(logits[:, 0], labels / 9).mean(),
        "optimizer": optax.adam,
        "augment": lambda key, image: jnp.zeros_like(image),
    }
"""


def test_a_study_trains_the_parts_of_a_config_file_in_its_worker_processes(tmp_path):
    """Functions that are defined in the file, which no process can send to another one."""
    (tmp_path / "own.py").write_text(OWN_FILE)
    variant = study.load_variant(tmp_path / "own.py")
    (record,) = study.train_all(study.paired_runs({"own": variant}, 1, tmp_path / "study"))
    assert record["parameters"] == 7850 and record["config"]["optimizer"] == "adam"
    (alone,) = runs.train(variant.config, tmp_path / "alone", **variant.overrides._asdict())
    for name in ("train_loss", "validation_loss"):
        np.testing.assert_allclose(record["metrics"][name], alone["metrics"][name], rtol=1e-5)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("{'los': max}", "own.py: there is no part 'los': get_parts.. may return model, loss,"),
        ("{'loss': 3}", "own.py: loss must be a function; got 3"),
        ("[max]", "own.py: get_parts.. must return a dict; got a list"),
        ("1 / 0", "own.py: ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_wrong_with_the_parts_of_a_config_file_is_one_line(parts, message, tmp_path):
    (tmp_path / "own.py").write_text(
        f"from jax_mnist.config import base as get_config\ndef get_parts(): return {parts}\n"
    )
    with pytest.raises(ConfigError, match=message) as error:
        study.load_variant(tmp_path / "own.py")
    assert "\n" not in str(error.value)
