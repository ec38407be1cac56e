"""Watching runs while they train: `metrics.jsonl` and, if the config asks, TensorBoard's file.

Both are in the run's folder. They are written anew from the checkpoint when training goes on, so
that no epoch is there twice or missing, and grow by an epoch at a time.

A line of `metrics.jsonl` is an epoch, in strict JSON: `epoch`, from 1, and the metrics of
`history`. A value that is not finite is null, which pandas, jq and JavaScript read.
"""

import io
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_mnist.data import files
from jax_mnist.runs import history
from jax_mnist.runs.run import METRICS, Run

EVENTS = "events.out.tfevents.jax_mnist"

# As history.METRICS; what stands before the stroke is a section of TensorBoard's page.
_TAGS = {
    "train_loss": "loss/train",
    "train_accuracy": "accuracy/train",
    "validation_loss": "loss/validation",
    "validation_accuracy": "accuracy/validation",
    "learning_rate": "training/learning rate",
    "seconds": "training/seconds",
}


def begin(
    runs: Sequence[Run], epochs: Sequence[dict[str, list[float]]], lengths: Sequence[int]
) -> None:
    """Writes the files with the epochs so far; what an earlier beginning wrote goes.

    Args:
      runs: that train together.
      epochs: of each complete epoch, the metrics of `history`, each a list over the runs.
      lengths: of each run, the most epochs that it has.

    Raises:
      OSError: a file could not be written, in one line.
    """
    for number, run in enumerate(runs):
        known = list(enumerate(epochs[: lengths[number]], 1))
        lines = [_line(epoch, _of(metrics, number)) for epoch, metrics in known]
        files.write_atomically(run.workdir / METRICS, b"".join(lines))
        if run.config.tensorboard:
            from tensorboard.plugins.hparams.summary_v2 import hparams_pb

            path = run.workdir / EVENTS
            data = _events(
                {"file_version": "brain.Event:2"},
                {"summary": hparams_pb(run.config.to_dict(), str(run.workdir))},
                *(_scalars(epoch, _of(metrics, number)) for epoch, metrics in known),
            )
            # A viewer that looks on keeps the file open, and its place in it: so the same file, in
            # which an epoch has always the same place.
            _write(path, "r+b" if path.exists() else "wb", data)


def add(
    runs: Sequence[Run], epochs: Sequence[dict[str, list[float]]], lengths: Sequence[int]
) -> None:
    """Appends the last of the epochs; the arguments are those of `begin`."""
    for number, run in enumerate(runs):
        if len(epochs) <= lengths[number]:
            metrics = _of(epochs[-1], number)
            _write(run.workdir / METRICS, "ab", _line(len(epochs), metrics))
            if run.config.tensorboard:
                _write(run.workdir / EVENTS, "ab", _events(_scalars(len(epochs), metrics)))


def end(run: Run, record: history.Record) -> None:
    """Adds the misclassified images to TensorBoard's file.

    Raises:
      OSError: the file could not be written, in one line.
    """
    if run.config.tensorboard:
        from tensorboard.compat.proto.summary_pb2 import Summary

        from jax_mnist.analysis import plots

        figure = plots.misclassified(record)
        width, height = figure.canvas.get_width_height()
        image = Summary.Image(
            encoded_image_string=plots.png(figure), width=width, height=height, colorspace=4
        )
        summary = Summary(value=[Summary.Value(tag="misclassified", image=image)])
        step = len(record["metrics"]["seconds"])
        _write(run.workdir / EVENTS, "ab", _events({"step": step, "summary": summary}))


def _of(metrics: dict[str, list[float]], number: int) -> dict[str, float]:
    return {key: metrics[key][number] for key in history.METRICS}


def _line(epoch: int, metrics: dict[str, float]) -> bytes:
    finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
    return json.dumps({"epoch": epoch, **finite}, allow_nan=False).encode() + b"\n"


def _scalars(epoch: int, metrics: dict[str, float]) -> dict[str, Any]:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb

    values = [scalar_pb(_TAGS[key], value).value[0] for key, value in metrics.items()]
    return {"step": epoch, "summary": Summary(value=values)}


def _events(*events: dict[str, Any]) -> bytes:
    """Events, given by the fields of TensorBoard's `Event`, as in its files.

    Its own `EventFileWriter` writes in a thread, where errors are late, and cannot go on with a
    file.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(Event(wall_time=time.time(), **event).SerializeToString())
    return buffer.getvalue()


def _write(path: Path, mode: str, data: bytes) -> None:
    """Writes to a file, which then ends there."""
    try:
        with open(path, mode) as file:
            file.write(data)
            file.truncate()
    except OSError as error:
        raise OSError(f"{str(path)!r}: cannot be written: {error.strerror}") from error
