"""What a person sees of training: the lines, the bar at the width of a terminal, the estimates."""

import contextlib
import dataclasses
import os
import pty
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from records import diverged, make_record
from tiny import config

from jax_mnist.runs import display
from jax_mnist.runs.folder import Run

METRICS = {
    "train_loss": 0.0654,
    "validation_loss": 0.0309,
    "validation_accuracy": 0.98914,
    "seconds": 11.23,
}


def run(name="gbn", **fields):
    return Run(name, config(**fields), Path("/proc/nowhere"))


def test_the_line_of_an_epoch_fits_eighty_columns():
    line = "epoch  3/15  loss 0.065  val loss 0.031  val acc 98.91 %  11.2 s"
    assert display.epoch_line(3, 15, METRICS) == line
    assert display.epoch_line(3, 9, METRICS) == line.replace(" 3/15", "3/9")
    large = display.epoch_line(3, 15, METRICS | {"train_loss": 1e30}, mean_of=4)
    assert large == line.replace("0.065", "1.00e+30") + "  mean of 4" and len(large) <= 80


def test_the_line_of_a_run_says_its_accuracy_or_that_it_diverged():
    line = display.run_line(3, 10, make_record("l2", seed=7), width=4)
    assert line == "run  3/10  l2    seed 7  val acc 99.00 %  38 s"
    record = diverged("l2", 0, epochs=2)
    record["config"]["epochs"] = 15
    assert display.run_line(10, 10, record) == "run 10/10  l2  seed 0  diverged in epoch 2/15  25 s"


def test_runs_that_train_together_are_named():
    first, second, third = (run(seed=seed) for seed in (1, 2, 3))
    assert display.who([first]) == "gbn, seed 1"
    assert display.who([first, second, third]) == "gbn, seeds 1 to 3"
    assert display.who([first, third]) == display.who([run("bn"), second]) == "2 runs"


def test_one_way_to_say_where_training_is(three):
    assert display.position(three[0], 1) == "in epoch 1/2, after step 1 of 4"
    assert display.position(three[0], 4) == "after epoch 1/2"


def replay(three, first=0):
    job, progresses = three
    with display.of_epochs(2) as observe:
        for progress in progresses[first:]:
            observe(job, progress)


def test_a_file_gets_a_line_for_each_epoch_and_nothing_else(three, capsys):
    replay(three)
    out, err = capsys.readouterr()
    assert err == "" and "\r" not in out
    metrics = [epoch["validation_accuracy"][:2].mean() for epoch in three[1][-1].epochs]
    for number, (line, accuracy) in enumerate(zip(out.splitlines(), metrics, strict=True), 1):
        assert line.startswith(f"epoch {number}/2  loss ") and line.endswith(" s  mean of 2")
        assert f"val acc {100 * accuracy:.2f} %" in line


def test_a_resumed_run_shows_only_the_epochs_that_it_trains(three, capsys):
    replay(three, first=2)  # the first epoch is complete
    assert [line[:9] for line in capsys.readouterr().out.splitlines()] == ["epoch 2/2"]


def test_no_line_is_shown_once_every_run_has_diverged(three, capsys):
    job, progresses = three
    epoch = {**progresses[2].epochs[0], "train_loss": np.full(3, np.nan)}
    replay((job, [progresses[0], dataclasses.replace(progresses[2], epochs=(epoch,))]))
    assert capsys.readouterr().out == ""


@contextlib.contextmanager
def terminal(columns):
    """Makes standard output and error a terminal; yields the pieces that it is sent."""
    outer, inner = pty.openpty()
    received = []

    def read():  # meanwhile, since a terminal takes only so much that is not read
        with contextlib.suppress(OSError):  # its end
            while part := os.read(outer, 4096):
                received.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))  # else it is asked of the process's own terminal
        with os.fdopen(inner, "w", encoding="utf-8") as stream:
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "stderr", stream)
            yield received
            patch.undo()
        reader.join()
    os.close(outer)


def screens(received):
    """The states of the lines of a terminal, without colours."""
    sent = b"".join(received).decode()
    states = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", sent))
    return [state.rstrip() for state in states]


@pytest.mark.parametrize("columns", [40, 80])
def test_a_terminal_shows_compiling_then_a_bar_that_fits_and_keeps_the_lines(three, columns):
    with terminal(columns) as received:
        replay(three)
    shown = screens(received)
    bars = [state for state in shown if "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in state]
    assert bars and all(len(bar) <= columns for bar in bars)
    assert "compiling" in bars[1] and "compiling" not in bars[-1] and "epoch 2/2" in bars[-1]
    assert len({state for state in shown if "val acc" in state}) == 2
    assert shown[-1] == ""  # the bar is gone at the end


def test_a_study_shows_a_line_for_each_run_and_one_bar():
    runs = [run(seed=seed) for seed in range(2)]
    with terminal(80) as received, display.of_runs(runs, finished=1) as shown:
        for number in range(2):
            for done in (0.0, 0.5, 1.0, 2.0):
                shown.advance(number, done)
            shown.finish(number, make_record("gbn", seed=number))
    states = screens(received)
    assert [state for state in states if state.startswith("run ")] == [
        "run 2/3  gbn  seed 0  val acc 99.00 %  38 s",
        "run 3/3  gbn  seed 1  val acc 99.00 %  38 s",
    ]
    bars = [state for state in states if "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in state]
    assert bars[1].startswith("1/3 runs  compiling") and bars[-1].startswith("3/3 runs")
