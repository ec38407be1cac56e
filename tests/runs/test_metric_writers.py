"""What can be watched: `metrics.jsonl` and TensorBoard's file, through kills, read by others."""

import io
import json
import math
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from jax_mnist import config as config_lib
from jax_mnist.runs import history, metric_writers
from jax_mnist.runs import loop as runner
from jax_mnist.runs import run as runs

TAGS = {
    "train_loss": "loss/train",
    "train_accuracy": "accuracy/train",
    "validation_loss": "loss/validation",
    "validation_accuracy": "accuracy/validation",
    "learning_rate": "training/learning rate",
    "seconds": "training/seconds",
}


def make_run(workdir, **fields):
    config = config_lib.base()
    config.update(
        train_split="train[:256]", validation_split="test[:100]", batch_size=64, mesh="data=1"
    )
    config.update(epochs=4, tensorboard=True, **fields)
    return runs.Run(workdir.name, config, workdir)


def made_up(epochs, number=2):
    """Epochs as a checkpoint holds them, of `number` runs."""
    values = iter(np.random.default_rng(0).uniform(size=10_000))
    return [
        {key: [float(next(values)) for _ in range(number)] for key in history.METRICS}
        for _ in range(epochs)
    ]


def lines(run):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (run.workdir / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events(run):
    """TensorBoard's own reading of the folder, which has one file of its."""
    assert len(list(run.workdir.glob("*tfevents*"))) == 1
    return EventAccumulator(str(run.workdir), size_guidance={"images": 0}).Reload()


def assert_shows(run, metrics):
    """That both files hold metrics, arrays over the epochs, and nothing else, in order."""
    epochs = list(range(1, len(metrics["seconds"]) + 1))
    assert [list(line) for line in lines(run)] == [["epoch", *history.METRICS]] * len(epochs)
    assert [line["epoch"] for line in lines(run)] == epochs
    found = events(run)
    for key, tag in TAGS.items():
        assert [line[key] for line in lines(run)] == list(metrics[key])
        tensors = found.Tensors(tag)
        assert [tensor.step for tensor in tensors] == epochs
        values = [tensor.tensor_proto.float_val[0] for tensor in tensors]
        np.testing.assert_array_equal(values, np.float32(metrics[key]))
    assert set(found.Tags()["tensors"]) - set(TAGS.values()) == {"_hparams_/session_start_info"}


def test_a_run_that_crashed_repeats_and_loses_no_epoch(tmp_path):
    run = make_run(tmp_path / "run")
    saving = runner.Saving(every=2)

    def crash(progress):
        if progress.epoch == 4:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        runner.train_together([run], crash, saving)
    assert [line["epoch"] for line in lines(run)] == [1, 2, 3]  # the checkpoint is of 2
    resumed_at = []
    (record,) = runner.train_together([run], lambda p: resumed_at.append(p.epoch), saving)
    assert resumed_at[0] == 3
    assert_shows(run, record["metrics"])

    (image,) = events(run).Images("misclassified")
    assert image.step == 4
    picture = Image.open(io.BytesIO(image.encoded_image_string))
    assert picture.size == (image.width, image.height) and picture.width == 1600
    values = events(run).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hparams = plugin_data_pb2.HParamsPluginData.FromString(values).session_start_info.hparams
    assert set(hparams) == set(run.config)
    assert hparams["l2"].number_value == run.config.l2
    assert hparams["norm"].string_value == "batch" and hparams["nesterov"].bool_value

    unwatched = run.config.copy_and_resolve_references()
    unwatched.tensorboard = False
    assert runs.is_finished(run._replace(config=unwatched))


def test_runs_that_train_together_have_their_own_files_of_their_own_length(tmp_path):
    both = [make_run(tmp_path / name) for name in ("long", "short")]
    for run in both:
        run.workdir.mkdir()
    epochs = made_up(4)
    epochs[1]["train_loss"][1] = math.nan  # where the second run ends
    epochs[1]["validation_loss"][1] = math.inf
    metric_writers.begin(both, [], [4, 4])
    assert [lines(run) for run in both] == [[], []]
    for number in range(1, 5):
        metric_writers.add(both, epochs[:number], [4, 4] if number < 2 else [4, 2])
    assert_shows(both[0], {key: [e[key][0] for e in epochs] for key in history.METRICS})
    assert [line["train_loss"] for line in lines(both[1])] == [epochs[0]["train_loss"][1], None]
    assert lines(both[1])[1]["validation_loss"] is None
    values = [t.tensor_proto.float_val[0] for t in events(both[1]).Tensors("loss/train")]
    assert len(values) == 2 and math.isnan(values[1])
    before = [(run.workdir / "metrics.jsonl").read_bytes() for run in both]
    metric_writers.begin(both, epochs, [4, 2])
    assert [(run.workdir / "metrics.jsonl").read_bytes() for run in both] == before
    assert len(events(both[1]).Tensors("loss/train")) == 2


def test_a_viewer_that_looks_on_sees_a_resumed_run_once(tmp_path):
    run = make_run(tmp_path)
    epochs = made_up(4, 1)
    metric_writers.begin([run], epochs[:3], [4])
    viewer = EventAccumulator(str(tmp_path)).Reload()
    assert [tensor.step for tensor in viewer.Tensors("loss/train")] == [1, 2, 3]
    metric_writers.begin([run], epochs[:2], [4])
    metric_writers.add([run], epochs[:3], [4])
    metric_writers.add([run], epochs, [4])
    steps = [tensor.step for tensor in viewer.Reload().Tensors("loss/train")]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["metrics.jsonl", "events"])
def test_a_full_disk_is_one_line(tmp_path, name):
    run = make_run(tmp_path)
    metric_writers.begin([run], [], [4])
    (path,) = tmp_path.glob(f"{name}*")
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"cannot be written: No space left on device$") as error:
        metric_writers.add([run], made_up(1, 1), [4])
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_without_the_library_it_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    run = make_run(tmp_path / "run")
    with pytest.raises(config_lib.ConfigError, match=r"pip install -e '\.\[tensorboard\]'$"):
        runner.train(run.config, run.workdir)
    assert not run.workdir.exists()
