"""What a person sees of training: the lines, the bar at the width of a terminal, the estimates."""

import contextlib
import dataclasses
import fcntl
import math
import os
import pty
import re
import struct
import sys
import termios
import threading
from pathlib import Path

import numpy as np
import pytest
from records import diverged, make_record
from tiny import config, kept
from tqdm import tqdm

from jax_mnist.runs import display, loop
from jax_mnist.runs.pace import Estimate, Pace
from jax_mnist.runs.run import Run

METRICS = {
    "train_loss": 0.0654,
    "validation_loss": 0.0309,
    "validation_accuracy": 0.98914,
    "seconds": 11.23,
}


def run(name="gbn", **fields):
    return Run(name, config(**fields), Path("/proc/nowhere"))


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "epoch  3/15  loss 0.065  val loss 0.031  val acc 98.91 %  11.2 s"),
        ({"epochs": 9}, "epoch 3/9  loss 0.065  val loss 0.031  val acc 98.91 %  11.2 s"),
        (
            {"mean_of": 4},
            "epoch  3/15  loss 0.065  val loss 0.031  val acc 98.91 %  11.2 s  mean of 4",
        ),
        (
            {"metrics": METRICS | {"train_loss": 1e30}},
            "epoch  3/15  loss 1.00e+30  val loss 0.031  val acc 98.91 %  11.2 s",
        ),
    ],
)
def test_the_line_of_an_epoch_fits_eighty_columns(fields, line):
    made = display.epoch_line(**({"number": 3, "epochs": 15, "metrics": METRICS} | fields))
    assert made == line and len(made) <= 80


def test_the_line_of_a_run_says_its_accuracy_or_that_it_diverged():
    line = display.run_line(3, 10, make_record("l2", seed=7), width=4)
    assert line == "run  3/10  l2    seed 7  val acc 99.00 %  38 s"
    record = diverged("l2", 0, epochs=2)
    record["config"]["epochs"] = 15
    assert display.run_line(10, 10, record) == "run 10/10  l2  seed 0  diverged in epoch 2/15  25 s"


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        ([run(seed=1)], "gbn, seed 1"),
        ([run(seed=s) for s in (1, 2, 3)], "gbn, seeds 1 to 3"),
        ([run(seed=s) for s in (1, 3)], "2 runs"),
        ([run("bn"), run(seed=1)], "2 runs"),
    ],
)
def test_runs_that_train_together_are_named(runs, text):
    assert display.who(runs) == text


TEXTS = ["02:41 left", "loss 0.065", "5,123 images/s"]


@pytest.mark.parametrize("columns", [10, 24, 40, 60, 80, 132])
def test_a_bar_is_never_wider_than_the_terminal(columns):
    form = display.bar_format("epoch  3/15", TEXTS, columns)
    line = tqdm.format_meter(0.5, 1, 9.0, ncols=columns, bar_format=form, unit_scale=False)
    assert len(line) <= columns
    shown = [text for text in TEXTS if text in line]
    assert shown == {10: [], 24: [], 40: TEXTS[:1], 60: TEXTS[:2]}.get(columns, TEXTS)


@pytest.mark.parametrize(("seconds", "text"), [(161.4, "02:41 left"), (0.4, ""), (math.nan, "")])
def test_a_time_left_is_said_if_it_is_known(seconds, text):
    assert display.time_left(seconds) == text


def test_calls_that_compile_are_no_part_of_the_pace():
    pace = Pace()
    assert pace.compiles(False) and math.isnan(pace.seconds(False))
    pace.add(False, 40.0)
    assert not pace.compiles(False) and math.isnan(pace.seconds(False))
    pace.add(False, 1.0)
    pace.add(False, 2.0)
    assert pace.compiles(True) and pace.seconds(True) == 1.5  # the best that is known
    pace.add(True, 9.0)
    pace.add(True, 4.0)
    assert (pace.seconds(False), pace.seconds(True)) == (1.5, 4.0)


def test_the_estimate_of_a_study_counts_neither_compilation_nor_what_was_trained_before():
    estimate = Estimate([10, 10, 10], lanes=2)
    estimate.report(0, 4.0, now=0.0)  # resumed
    estimate.report(1, 0.0, now=0.0)
    assert estimate.compiling
    estimate.report(0, 5.0, now=100.0)
    assert not estimate.compiling and math.isnan(estimate.seconds_left(now=100.0))
    estimate.report(0, 6.0, now=110.0)
    estimate.report(1, 0.5, now=120.0)  # compiled for longer, which is no part of it either
    estimate.report(1, 1.0, now=125.0)
    # Ten seconds an epoch: 4 + 10 epochs on one lane, 9 on the other.
    assert estimate.seconds_left(now=125.0) == pytest.approx(140)
    assert estimate.seconds_left(now=130.0) == pytest.approx(135)
    for number in range(3):
        estimate.report(number, 10.0, now=200.0)
    assert estimate.seconds_left(now=200.0) == 0


@pytest.mark.parametrize(
    ("step", "text"),
    [(1, "in epoch 1/2, after step 1 of 4"), (4, "after epoch 1/2"), (8, "after epoch 2/2")],
)
def test_one_way_to_say_where_training_is(trained, step, text):
    assert display.where(trained[0], step) == text


@pytest.fixture(scope="module")
def trained():
    """Two seeds over two epochs, and one that diverges."""
    fields = ({"seed": 0}, {"seed": 1}, {"seed": 2, "l2": 1e30})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "MAX_STEPS_PER_CALL", {"cpu": 6})  # two of an epoch's four steps
        program, start = loop.build([run(**f) for f in fields])
        return program, [kept(start), *(kept(p) for p in loop.training(program, start))]


def replay(trained, first=0):
    program, seen = trained
    with display.of_epochs() as observe:
        for progress in seen[first:]:
            observe(program, progress)


def test_a_file_gets_a_line_for_each_epoch_and_nothing_else(trained, capsys):
    replay(trained)
    out, err = capsys.readouterr()
    assert err == "" and "\r" not in out
    metrics = [epoch["validation_accuracy"][:2].mean() for epoch in trained[1][-1].epochs]
    for number, (line, accuracy) in enumerate(zip(out.splitlines(), metrics, strict=True), 1):
        assert line.startswith(f"epoch {number}/2  loss ") and line.endswith(" s  mean of 2")
        assert f"val acc {100 * accuracy:.2f} %" in line


def test_a_resumed_run_shows_only_the_epochs_that_it_trains(trained, capsys):
    replay(trained, first=2)  # the first epoch is complete
    assert [line[:9] for line in capsys.readouterr().out.splitlines()] == ["epoch 2/2"]


def test_no_line_is_shown_once_every_run_has_diverged(trained, capsys):
    program, seen = trained
    lost = [{**epoch, "train_loss": np.full(3, np.nan)} for epoch in seen[-1].epochs]
    with display.of_epochs() as observe:
        observe(program, seen[0])
        observe(program, dataclasses.replace(seen[2], epochs=tuple(lost[:1])))
    assert capsys.readouterr().out == ""


@contextlib.contextmanager
def terminal(columns):
    """Makes standard output and error a terminal; yields the pieces that it is sent."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    received = []

    def read():  # meanwhile, since a terminal takes only so much that is not read
        with contextlib.suppress(OSError):  # its end
            while part := os.read(outer, 4096):
                received.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with pytest.MonkeyPatch.context() as patch:
        with os.fdopen(inner, "w", encoding="utf-8") as stream:
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "stderr", stream)
            yield received
            patch.undo()
        reader.join()
    os.close(outer)


def screens(received):
    """The states of the line that a terminal is at: what follows each carriage return."""
    sent = b"".join(received).decode()
    return [part.replace("\x1b[K", "").rstrip() for part in re.split(r"\r\n|\r", sent)]


@pytest.mark.parametrize("columns", [40, 80])
def test_a_terminal_shows_compiling_then_a_bar_that_fits_and_keeps_the_lines(trained, columns):
    with terminal(columns) as received:
        replay(trained)
    shown = screens(received)
    bars = [state for state in shown if "|" in state]
    assert bars and all(len(bar) <= columns for bar in bars)
    assert all("compiling" in bar for bar in bars[:2])  # the step, and then the evaluation
    assert "loss" in bars[-1] and "compiling" not in bars[-1]
    assert len([state for state in shown if "val acc" in state]) == 2
    assert shown[-1] == ""  # the bar is gone at the end


@pytest.mark.parametrize("columns", [40, 80])
def test_a_study_shows_a_line_for_each_run_and_one_bar(columns):
    runs = [run(seed=seed) for seed in range(2)]
    with terminal(columns) as received, display.of_runs(runs, lanes=1, finished=1) as shown:
        for number in range(2):
            for done in (0.0, 0.5, 1.0, 2.0):
                shown.advance(number, done)
                shown.draw()
            shown.finish(number, make_record("gbn", seed=number))
            shown.draw()
    states = screens(received)
    lines = [state for state in states if state.startswith("run ")]
    assert lines == [
        "run 2/3  gbn  seed 0  val acc 99.00 %  38 s",
        "run 3/3  gbn  seed 1  val acc 99.00 %  38 s",
    ]
    bars = [state for state in states if "|" in state]
    assert bars[0].startswith("1/3 runs |") and bars[0].endswith("compiling")
    assert bars[-1].startswith("2/3 runs |") and "compiling" not in bars[-1]
    assert all(len(bar) <= columns and "-" not in bar for bar in bars)
