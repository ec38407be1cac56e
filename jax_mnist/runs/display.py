"""What a person sees of training: lines that stay, and on a terminal a bar below them.

Lines go to standard output, warnings and the bar to standard error. A file gets the lines alone.
"""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from jax_mnist.runs.folder import Run
from jax_mnist.runs.loop import Job, Progress
from jax_mnist.runs.record import Record, has_diverged

Observer = Callable[[Job, Progress], None]
Update = Callable[[float, str], None]


def say(text: str) -> None:
    """Prints a line above the bar."""
    _print(text, sys.stdout)


def warn(text: str) -> None:
    """Prints a line on standard error, above the bar."""
    _print(text, sys.stderr)


def _print(text: str, file: TextIO) -> None:
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


def position(job: Job, step: int) -> str:
    """Where the training is after a step, at least 1.

    `'after epoch 3/15'`, or `'in epoch 3/15, after step 10 of 468'`.
    """
    epoch, within = divmod(step - 1, job.steps_per_epoch)
    name = f"epoch {epoch + 1}/{job.epochs}"
    if within + 1 == job.steps_per_epoch:
        return f"after {name}"
    return f"in {name}, after step {within + 1} of {job.steps_per_epoch}"


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
    if has_diverged(record):
        result = f"diverged in epoch {epochs}/{record['config']['epochs']}"
    of_run = f"{record['name']:{width}}  seed {record['seed']}"
    return f"{_count('run', number, runs)}  {of_run}  {result}  {metrics['seconds'].sum():.0f} s"


def _count(what: str, number: int, of: int) -> str:
    return f"{what} {number:>{len(str(of))}}/{of}"


def _loss(loss: float) -> str:
    return f"{loss:.3f}" if loss < 1000 else f"{loss:.2e}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


@contextlib.contextmanager
def bar(total: float) -> Iterator[Update]:
    """Shows a bar, and the time that is left, on a terminal or in a notebook.

    Yields:
      A function of what is done, of `total`, and the text before the bar. What is done at its first
      call was done before; until there is more, the program compiles.
    """
    console = Console(stderr=True)
    in_notebook = console.is_jupyter
    if in_notebook:  # where rich's widget needs a package, loses lines and stays in the file
        console = Console(
            file=io.StringIO(),
            force_jupyter=False,
            force_terminal=False,
            color_system=None,
            width=80,
        )
    with (
        Bar(
            TextColumn("{task.description}"),
            BarColumn(console.width // 4),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # a file gets its lines directly
            disable=not console.is_terminal,
        ) as shown,
        _notebook_line() if in_notebook else contextlib.nullcontext() as show,
    ):
        task = shown.add_task("compiling", total=total)
        before: float | None = None

        def update(done: float, text: str) -> None:
            nonlocal before
            before = done if before is None else before
            label = text if done > before else f"{text}  compiling"
            shown.update(task, completed=done, description=label, refresh=True)
            if show:
                with console.capture() as drawn:
                    console.print(shown.get_renderable())
                show(drawn.get())

        yield update


@contextlib.contextmanager
def _notebook_line() -> Iterator[Callable[[str], None]]:
    """Yields a function that shows a text in a notebook, in the place of the text before it."""
    from IPython.display import display

    line = display({"text/plain": ""}, raw=True, display_id=True)

    def show(text: str) -> None:
        line.update({"text/plain": text}, raw=True)

    try:
        yield show
    finally:
        show("")


@contextlib.contextmanager
def of_epochs(epochs: int) -> Iterator[Observer]:
    """Shows the training of runs together: a line for each epoch, a bar for all of them."""
    shown: int | None = None

    with bar(epochs) as update:

        def observe(job: Job, progress: Progress) -> None:
            nonlocal shown
            complete, active = len(progress.epochs), progress.active
            if shown is not None and complete > shown and active.any():
                metrics = {k: float(v[active].mean()) for k, v in progress.epochs[-1].items()}
                metrics["seconds"] = float(progress.epochs[-1]["seconds"].sum())
                say(epoch_line(complete, epochs, metrics, int(active.sum())))
            shown = complete
            text = _count("epoch", min(complete + 1, epochs), epochs)
            if progress.partial.loss.size and active.any():
                text += f"  loss {_loss(float(progress.partial.loss[active].mean()))}"
            update(progress.step / job.steps_per_epoch, text)

        yield observe


class RunsDisplay:
    """Shows many runs: a line for each finished one, one bar for all. Made by `of_runs`."""

    def __init__(self, runs: Sequence[Run], finished: int, update: Update) -> None:
        self._runs, self._finished, self._update = runs, finished, update
        self._all, self._width = finished + len(runs), max(len(run.name) for run in runs)
        self._epochs = dict.fromkeys(range(len(runs)), 0.0)  # that each run has behind it

    def advance(self, number: int, epochs: float) -> None:
        """Notes the epochs that run `number` has behind it."""
        self._epochs[number] = epochs
        self._update(sum(self._epochs.values()), f"{self._finished}/{self._all} runs")

    def finish(self, number: int, record: Record) -> None:
        """Prints the line of a finished run."""
        run = self._runs[number]
        self._finished += 1
        say(run_line(self._finished, self._all, {**record, "name": run.name}, self._width))
        self.advance(number, run.config.epochs)  # also of one that diverged


@contextlib.contextmanager
def of_runs(runs: Sequence[Run], finished: int) -> Iterator[RunsDisplay]:
    """Shows the training of one or more runs, beside `finished` ones."""
    with bar(sum(run.config.epochs for run in runs)) as update:
        yield RunsDisplay(runs, finished, update)
