"""Metrics to watch while runs train: `metrics.jsonl` and, if the config asks, TensorBoard's file.

Both are in the run's folder. Each epoch is appended to them, and they are rewritten from the
checkpoint when training resumes, so that no epoch is missing or repeated.

Each line of `metrics.jsonl` is one epoch in strict JSON: `epoch`, counted from 1, and the metrics
of `record`. Values that are not finite are null, which pandas, jq and JavaScript can read.
"""

import io
import json
import math
import time
from itertools import starmap
from pathlib import Path
from typing import Any

from PIL import Image

from jax_mnist import files
from jax_mnist.runs.folder import METRICS_FILE, Run
from jax_mnist.runs.loop import Job, Progress
from jax_mnist.runs.record import Mistake, Record, rank_mistakes

EVENTS = "events.out.tfevents.jax_mnist"

# The part before the slash is a section of TensorBoard's page.
TAGS = {
    "train_loss": "loss/train",
    "train_accuracy": "accuracy/train",
    "validation_loss": "loss/validation",
    "validation_accuracy": "accuracy/validation",
    "learning_rate": "training/learning rate",
    "seconds": "training/seconds",
}
_IMAGES, _ENLARGED = 25, 4  # how many misclassified images, and how many times enlarged


def begin(job: Job, progress: Progress) -> None:
    """Writes the files of every run with the epochs so far, replacing earlier ones.

    Raises:
      OSError: A file could not be written; the message is one line.
    """
    for number, run in enumerate(job.runs):
        epochs = [*enumerate(progress.epochs_of(number), 1)]
        files.write_atomically(run.workdir / METRICS_FILE, b"".join(starmap(_line, epochs)))
        if run.config.tensorboard:
            from tensorboard.plugins.hparams.summary_v2 import hparams_pb

            hparams = {"summary": hparams_pb(run.settings(), str(run.workdir))}
            version = {"file_version": "brain.Event:2"}
            # A viewer keeps the file open at an offset, so the file is overwritten in place: an
            # epoch always has the same offset.
            path = run.workdir / EVENTS
            data = _events(version, hparams, *starmap(_scalars, epochs))
            _write(path, "r+b" if path.exists() else "wb", data)


def add(job: Job, progress: Progress) -> None:
    """Appends the newest epoch to the files of every run that has it; raises as `begin` does."""
    for number, run in enumerate(job.runs):
        epochs = progress.epochs_of(number)
        if len(epochs) == len(progress.epochs):
            _write(run.workdir / METRICS_FILE, "ab", _line(len(epochs), epochs[-1]))
            if run.config.tensorboard:
                _write(run.workdir / EVENTS, "ab", _events(_scalars(len(epochs), epochs[-1])))


def end(run: Run, record: Record) -> None:
    """Adds the misclassified images to TensorBoard's file; raises as `begin` does."""
    if run.config.tensorboard:
        step = len(record["metrics"]["seconds"])
        images = [
            {"step": step, "summary": _image(rank, mistake, record["label_names"])}
            for rank, mistake in enumerate(rank_mistakes(record, _IMAGES), 1)
        ]
        _write(run.workdir / EVENTS, "ab", _events(*images))


def _image(rank: int, mistake: Mistake, names: list[str]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    size = tuple(_ENLARGED * side for side in mistake.image.shape)
    data = io.BytesIO()
    Image.fromarray(mistake.image).resize(size, Image.Resampling.NEAREST).save(data, "PNG")
    image = Summary.Image(
        encoded_image_string=data.getvalue(), width=size[0], height=size[1], colorspace=1
    )
    prediction = f"{names[mistake.prediction]} ({mistake.probability:.0%})"
    tag = f"misclassified/{rank:02} true {names[mistake.label]}, predicted {prediction}"
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def _line(epoch: int, metrics: dict[str, float]) -> bytes:
    finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
    return json.dumps({"epoch": epoch, **finite}, allow_nan=False).encode() + b"\n"


def _scalars(epoch: int, metrics: dict[str, float]) -> dict[str, Any]:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb

    values = [scalar_pb(TAGS[key], value).value[0] for key, value in metrics.items()]
    return {"step": epoch, "summary": Summary(value=values)}


def _events(*events: dict[str, Any]) -> bytes:
    """Serializes events, each given by the fields of TensorBoard's `Event`, as in its files.

    TensorBoard's own `EventFileWriter` writes in a thread, so that errors surface late, and cannot
    continue a file.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(Event(wall_time=time.time(), **event).SerializeToString())
    return buffer.getvalue()


def _write(path: Path, mode: str, data: bytes) -> None:
    """Writes to a file, and truncates it after the data."""
    try:
        with open(path, mode) as file:
            file.write(data)
            file.truncate()
    except OSError as error:
        raise OSError(f"{str(path)!r}: cannot be written: {error.strerror}") from error
