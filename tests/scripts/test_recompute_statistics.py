"""The script that recomputes the statistics of the norms of finished networks."""

import csv
import functools
import io
import sys

import jax
import modules
import numpy as np
import pytest
import tiny

from jax_mnist import runs
from jax_mnist.data import datasets
from jax_mnist.nn.cnn import CNN, RELU_NORM, Layer
from jax_mnist.nn.ghost_batch_norm import GhostBatchNorm
from jax_mnist.nn.kernels import PLAIN
from jax_mnist.training import recipe
from jax_mnist.training.augment import MNIST, Normalization

script = modules.load("scripts/recompute_statistics.py")


def convolved(x, kernel):
    """ReLU of a valid convolution, float64 `[n, height, width, features]`."""
    size = kernel.shape[0]
    patches = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return np.maximum(np.einsum("nhwcij,ijcf->nhwf", patches, np.asarray(kernel, np.float64)), 0)


@pytest.mark.usefixtures("quickly_compiled", "in_float64")
def test_they_are_those_of_all_images_without_augmentation(monkeypatch):
    monkeypatch.setattr(script, "BATCH", 20)
    images = datasets.load("mnist", "train[:50]").images  # of which two batches are used
    norm = functools.partial(GhostBatchNorm, ghost_batch_size=3, momentum=0.9)
    model = CNN(norm=norm, kernels=PLAIN)  # which may be float64
    variables = model.init(jax.random.key(0), np.zeros((1, 28, 28, 1)), train=False)
    variables = tiny.wide(variables)
    constants = Normalization(*map(np.float64, MNIST))
    found = script.recomputed(model, variables, images, constants)
    params = found["params"]
    jax.tree.map(np.testing.assert_array_equal, params, variables["params"])
    x = (images[:40] / 255 - MNIST.mean) / MNIST.std
    first = convolved(x, params["conv1"]["kernel"])
    # The second norm's input comes from a first norm that uses the statistics of its batch.
    batches = first.reshape(2, -1, first.shape[-1])
    mean, var = batches.mean(1, keepdims=True), batches.var(1, keepdims=True)
    normalised = (batches - mean) / np.sqrt(var + 1e-5) * params["norm1"]["scale"]
    normalised = (normalised + params["norm1"]["bias"]).reshape(first.shape)
    second = convolved(normalised, params["conv2"]["kernel"])
    for name, inputs in (("norm1", first), ("norm2", second)):
        expected = {"mean": inputs.mean((0, 1, 2)), "var": inputs.var((0, 1, 2))}
        for key, value in expected.items():
            statistics = found["batch_stats"][name][key]
            # Pixels alone are float32, whose last digits two layers make 100 times larger at most.
            np.testing.assert_allclose(statistics, value, rtol=1e-5, err_msg=name)


def test_each_network_is_evaluated_both_ways(tmp_path, monkeypatch, capsys):
    # Two layers and plain convolutions, since those compile in a moment.
    layers = (Layer(3, 4, (*RELU_NORM, "max-pool 2x2")), Layer(13, 10, ()))
    model = CNN(layers=layers, kernels=PLAIN)
    monkeypatch.setattr(recipe, "make_model", lambda config, axis_name=None: model)
    config = tiny.config(train_split="train[:400]", epochs=1, replicas=2, ema=0.0)
    config.learning_rate = 0.01
    records = runs.train(config, tmp_path / "few")
    capsys.readouterr()
    script.main([str(tmp_path / "few")])
    rows = [*csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert [row["seed"] for row in rows] == ["0", "1"]
    for row, record in zip(rows, records, strict=True):
        loss = record["metrics"]["validation_loss"][-1]
        np.testing.assert_allclose(float(row["loss"]), loss, rtol=1e-4)
        # After six steps, running statistics are far from those of the training images.
        assert float(row["recomputed_loss"]) < 0.9 * loss


def test_a_folder_without_a_finished_run_ends_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["recompute_statistics.py"])
    with pytest.raises(SystemExit) as end:
        script.main([str(tmp_path)])
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("recompute_statistics.py: ") and "no finished run" in errors
    assert errors.count("\n") == 1
