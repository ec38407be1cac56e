"""Metrics to watch: `metrics.jsonl` and TensorBoard's file, through kills, read by others."""

import dataclasses
import io
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from jax_mnist.config import ConfigError
from jax_mnist.runs import folder, metric_writers
from jax_mnist.runs.loop import Progress
from jax_mnist.runs.record import METRICS, rank_mistakes
from jax_mnist.runs.trainer import CheckpointPolicy, train, train_together
from jax_mnist.training.step import StepMetrics


def make_run(workdir, **fields):
    return folder.Run(workdir.name, tiny.config(epochs=4, tensorboard=True, **fields), workdir)


def made_up(epochs, number=2):
    """Progress with invented metrics of `number` runs."""
    rng = np.random.default_rng(0)
    return Progress(
        state=None,
        step=0,
        epochs=tuple({k: rng.uniform(size=number) for k in METRICS} for _ in range(epochs)),
        partial=StepMetrics(*np.empty((3, number, 0))),
        seconds=np.zeros(number),
    )


def first(progress, epochs):
    return dataclasses.replace(progress, epochs=progress.epochs[:epochs])


def lines(run):
    text = (run.workdir / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    assert "NaN" not in text and "Infinity" not in text  # which are not JSON
    return [json.loads(line) for line in text.splitlines()]


def events(run):
    """TensorBoard's own reading of the folder, which has one file of its."""
    assert len(list(run.workdir.glob("*tfevents*"))) == 1
    return EventAccumulator(str(run.workdir), size_guidance={"images": 0}).Reload()


def assert_shows(run, metrics):
    """That both files hold metrics, arrays over the epochs, and nothing else, in order."""
    epochs = list(range(1, len(metrics["seconds"]) + 1))
    assert [list(line) for line in lines(run)] == [["epoch", *METRICS]] * len(epochs)
    assert [line["epoch"] for line in lines(run)] == epochs
    shown = events(run)
    for key, tag in metric_writers.TAGS.items():
        assert [line[key] for line in lines(run)] == list(metrics[key])
        tensors = shown.Tensors(tag)
        assert [tensor.step for tensor in tensors] == epochs
        values = [tensor.tensor_proto.float_val[0] for tensor in tensors]
        np.testing.assert_array_equal(values, np.float32(metrics[key]))
    tags = {*metric_writers.TAGS.values(), "_hparams_/session_start_info"}
    assert {*shown.Tags()["tensors"]} == tags


def test_a_run_that_crashed_repeats_and_loses_no_epoch(tmp_path):
    run = make_run(tmp_path / "run")

    def crash(job, progress):
        if len(progress.epochs) == 3:
            raise RuntimeError

    policy, complete = CheckpointPolicy(every=2), []
    with pytest.raises(RuntimeError):
        train_together([run], crash, policy)
    assert [line["epoch"] for line in lines(run)] == [1, 2, 3]  # the checkpoint is of 2
    (record,) = train_together([run], lambda _, p: complete.append(len(p.epochs)), policy)
    assert complete[0] == 2
    assert_shows(run, record["metrics"])

    mistakes = rank_mistakes(record, 25)
    shown = events(run)
    tags = sorted(shown.Tags()["images"])
    assert len(tags) == len(mistakes) > 3
    for tag, mistake in zip(tags, mistakes, strict=True):
        assert f" true {mistake.label}, predicted {mistake.prediction} (" in tag
        (image,) = shown.Images(tag)
        picture = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        np.testing.assert_array_equal(picture[::4, ::4], mistake.image)
        assert image.step == 4 and picture.shape == (image.height, image.width) == (112, 112)
    values = shown.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hparams = plugin_data_pb2.HParamsPluginData.FromString(values).session_start_info.hparams
    assert set(hparams) == set(run.config)
    assert hparams["l2"].number_value == run.config.l2
    assert hparams["norm"].string_value == "ghost" and hparams["nesterov"].bool_value


def test_runs_that_train_together_have_their_own_files_of_their_own_length(tmp_path):
    both = [make_run(tmp_path / name) for name in ("long", "short")]
    job = SimpleNamespace(runs=both)
    for run in both:
        run.workdir.mkdir()
    progress = made_up(4)
    progress.epochs[1]["train_loss"][1] = math.nan  # where the second run ends
    progress.epochs[1]["validation_loss"][1] = math.inf
    metric_writers.begin(job, first(progress, 0))
    assert [lines(run) for run in both] == [[], []]
    for number in range(1, 5):
        metric_writers.add(job, first(progress, number))
    assert_shows(both[0], {key: [e[key][0] for e in progress.epochs] for key in METRICS})
    losses = [line["train_loss"] for line in lines(both[1])]
    assert losses == [progress.epochs[0]["train_loss"][1], None]
    assert lines(both[1])[1]["validation_loss"] is None
    values = [t.tensor_proto.float_val[0] for t in events(both[1]).Tensors("loss/train")]
    assert len(values) == 2 and math.isnan(values[1])


def test_a_viewer_that_looks_on_sees_a_resumed_run_once(tmp_path):
    job, progress = SimpleNamespace(runs=[make_run(tmp_path)]), made_up(4, 1)
    metric_writers.begin(job, first(progress, 3))
    viewer = EventAccumulator(str(tmp_path)).Reload()
    assert [tensor.step for tensor in viewer.Tensors("loss/train")] == [1, 2, 3]
    metric_writers.begin(job, first(progress, 2))
    metric_writers.add(job, first(progress, 3))
    metric_writers.add(job, progress)
    steps = [tensor.step for tensor in viewer.Reload().Tensors("loss/train")]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["metrics.jsonl", "events"])
def test_a_full_disk_is_one_line(tmp_path, name):
    job, progress = SimpleNamespace(runs=[make_run(tmp_path)]), made_up(1, 1)
    metric_writers.begin(job, first(progress, 0))
    (path,) = tmp_path.glob(f"{name}*")
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"cannot be written: No space left on device$") as error:
        metric_writers.add(job, progress)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_without_the_library_it_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    run = make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[tensorboard\]'$"):
        train(run.config, run.workdir)
    assert not run.workdir.exists()
