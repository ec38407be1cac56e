"""What a person sees of training: lines that stay, and on a terminal a bar below them.

Lines go to standard output, warnings and the bar to standard error. A file gets the lines alone.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TextIO

from tqdm import tqdm

from jax_mnist.runs import history, processes
from jax_mnist.runs.history import Record
from jax_mnist.runs.loop import Program, Progress
from jax_mnist.runs.pace import Estimate, Pace
from jax_mnist.runs.run import Run

Observer = Callable[[Program, Progress], None]


def say(text: str) -> None:
    """Prints a line above the bar; of several processes only the first does."""
    _print(text, sys.stdout)


def warn(text: str) -> None:
    """Prints a line on standard error, above the bar; only the first process does."""
    _print(text, sys.stderr)


def _print(text: str, file: TextIO) -> None:
    if processes.is_first_process():
        clear = "\r\x1b[K" if file.isatty() else ""  # the bar may be that of another process
        print(f"{clear}{text}", file=file, flush=True)


def who(runs: Sequence[Run]) -> str:
    """Names runs that train together: `'gbn, seed 1'`, `'gbn, seeds 0 to 3'`, `'12 runs'`."""
    names, seeds = {run.name for run in runs}, [run.config.seed for run in runs]
    if len(runs) == 1:
        return f"{runs[0].name}, seed {seeds[0]}"
    if len(names) == 1 and seeds == [*range(seeds[0], seeds[-1] + 1)]:
        return f"{runs[0].name}, seeds {seeds[0]} to {seeds[-1]}"
    return f"{len(runs)} runs"


def where(program: Program, step: int) -> str:
    """Where the training is after a step: `'after epoch 3/15'`, `'in epoch 3/15, after step ...'`.

    Args:
      program: What is trained.
      step: At least 1.
    """
    epoch, within = divmod(step - 1, program.steps_per_epoch)
    name = f"epoch {epoch + 1}/{program.epochs}"
    if within + 1 == program.steps_per_epoch:
        return f"after {name}"
    return f"in {name}, after step {within + 1} of {program.steps_per_epoch}"


def epoch_line(number: int, epochs: int, metrics: Mapping[str, float], mean_of: int = 1) -> str:
    """The line of a complete epoch.

    Args:
      number: Of the epoch, from 1.
      epochs: Of the whole training.
      metrics: As in a record, of this epoch; `seconds` is the time that passed.
      mean_of: The number of runs whose mean the metrics are.
    """
    texts = [
        _count("epoch", number, epochs),
        f"loss {_loss(metrics['train_loss'])}",
        f"val loss {_loss(metrics['validation_loss'])}",
        f"val acc {_percent(metrics['validation_accuracy'])}",
        f"{metrics['seconds']:.1f} s",
        *[f"mean of {mean_of}"] * (mean_of > 1),
    ]
    return "  ".join(texts)


def run_line(number: int, runs: int, record: Record, width: int = 0) -> str:
    """The line of a finished run; `width` is that of the name, to align several lines."""
    metrics = record["metrics"]
    epochs = len(metrics["validation_accuracy"])
    result = f"val acc {_percent(metrics['validation_accuracy'][-1])}"
    if history.has_diverged(record):
        result = f"diverged in epoch {epochs}/{record['config']['epochs']}"
    of_run = f"{record['name']:{width}}  seed {record['seed']}"
    return f"{_count('run', number, runs)}  {of_run}  {result}  {metrics['seconds'].sum():.0f} s"


def _count(what: str, number: int, of: int) -> str:
    return f"{what} {number:>{len(str(of))}}/{of}"


def _loss(loss: float) -> str:
    return f"{loss:.3f}" if loss < 1000 else f"{loss:.2e}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def bar_format(label: str, texts: Sequence[str], columns: int) -> str:
    """The format of a `tqdm` bar, followed by those of the texts that fit the columns."""
    width, shown = columns // 5, ""
    for text in texts:
        if text and len(f"{label} ||{shown}  {text}") + width <= columns:
            shown += f"  {text}"
    return f"{label} |{{bar:{width}}}|{shown}"


def time_left(seconds: float) -> str:
    """`'02:41 left'`, or nothing if it is not known or less than a second."""
    return f"{tqdm.format_interval(seconds)} left" if seconds >= 1 else ""


Draw = Callable[[str, float, Sequence[str]], None]


@contextlib.contextmanager
def _bar() -> Iterator[Draw]:
    """Draws a bar with a label, how much of it is full, and texts; only on a terminal."""
    disable = None if processes.is_first_process() else True  # None: unless it is a terminal
    with contextlib.ExitStack() as stack:
        options = {"file": sys.stderr, "disable": disable, "leave": False, "dynamic_ncols": True}
        bar: tqdm | None = None

        def draw(label: str, full: float, texts: Sequence[str]) -> None:
            nonlocal bar
            if bar is None:  # not before there is something to draw
                bar = stack.enter_context(tqdm(total=1, bar_format=label, **options))
            if not bar.disable:
                bar.n = full
                bar.bar_format = bar_format(label, texts, bar.format_dict["ncols"] or 80)
                bar.refresh()

        yield draw


@contextlib.contextmanager
def of_epochs() -> Iterator[Observer]:
    """Shows the training of runs together: a line for each epoch, a bar for the one under way."""
    pace, shown, before = Pace(), -1, 0.0

    with _bar() as draw:

        def observe(program: Program, progress: Progress) -> None:
            nonlocal shown, before
            now = time.monotonic()
            steps, epochs = program.steps_per_epoch, len(progress.epochs)
            if shown >= 0:
                pace.add(epochs > shown, now - before)
            if epochs > shown >= 0 and progress.active.any():
                say(_line_of(program, progress))
            shown, before = epochs, now
            if progress.step < program.epochs * steps:
                within = progress.step - epochs * steps
                label = _count("epoch", epochs + 1, program.epochs)
                draw(label, within / steps, _texts(program, progress, pace))

        yield observe


def _line_of(program: Program, progress: Progress) -> str:
    active, number = progress.active, len(progress.epochs)
    metrics = {key: float(value[active].mean()) for key, value in progress.epochs[-1].items()}
    metrics["seconds"] = float(progress.epochs[-1]["seconds"].sum())
    return epoch_line(number, program.epochs, metrics, int(active.sum()))


def _texts(program: Program, progress: Progress, pace: Pace) -> list[str]:
    """What is said beside the bar, the most important first."""
    calls = program.steps_per_epoch // program.chunk
    done, first = progress.step // program.chunk, progress.step % program.steps_per_epoch == 0
    if pace.compiles(ends_epoch=(done + 1) % calls == 0):
        return ["compiling"]
    endings = program.epochs - len(progress.epochs)
    others = program.epochs * calls - done - endings
    left = endings * pace.seconds(True) + others * pace.seconds(False)
    loss = progress.partial.loss[progress.active]
    images = len(program.runs) * program.runs[0].config.batch_size * program.chunk
    texts = [time_left(left), "" if first else f"loss {_loss(float(loss.mean()))}"]
    if math.isfinite(left):
        texts.append(f"{images / pace.seconds(False):,.0f} images/s")
    return texts


class RunsDisplay:
    """Shows many runs: a line for each finished one, one bar for all. Made by `of_runs`."""

    def __init__(self, runs: Sequence[Run], lanes: int, finished: int, draw: Draw) -> None:
        self._runs, self._draw, self._finished = runs, draw, finished
        self._all = finished + len(runs)
        self._estimate = Estimate([run.config.epochs for run in runs], lanes)
        self._width = max(len(run.name) for run in runs)

    def advance(self, number: int, epochs: float) -> None:
        """Notes the epochs that run `number` has behind it."""
        self._estimate.report(number, epochs, time.monotonic())

    def finish(self, number: int, record: Record) -> None:
        """Prints the line of a finished run."""
        run = self._runs[number]
        self._estimate.done[number] = run.config.epochs  # also of one that diverged
        self._finished += 1
        named = {**record, "name": run.name}
        say(run_line(self._finished, self._all, named, self._width))

    def draw(self) -> None:
        """Draws the bar."""
        if self._finished < self._all:
            estimate = self._estimate
            share = sum(estimate.done.values()) / sum(estimate.epochs)
            full = 1 - (1 - share) * len(self._runs) / self._all
            left = estimate.seconds_left(time.monotonic())
            texts = ["compiling"] if estimate.compiling else [time_left(left)]
            self._draw(f"{self._finished}/{self._all} runs", full, texts)


@contextlib.contextmanager
def of_runs(runs: Sequence[Run], lanes: int, finished: int) -> Iterator[RunsDisplay]:
    """Shows the training of one or more runs, `lanes` at a time, beside `finished` ones."""
    with _bar() as draw:
        yield RunsDisplay(runs, lanes, finished, draw)
