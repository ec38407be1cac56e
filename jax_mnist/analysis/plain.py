"""A study as plain text for a terminal, and its runs as CSV for other programs."""

import csv
import io
import re
import textwrap
from collections.abc import Sequence

from jax_mnist.analysis import opening, planning, run, statistics
from jax_mnist.analysis.comparison import Comparison
from jax_mnist.analysis.drawing import shorten
from jax_mnist.analysis.markup import interval, p_value, signed
from jax_mnist.runs.record import Record, has_diverged

COLUMNS = ("variant", "seed", "accuracy_percent", "loss", "errors", "best_accuracy_percent",
           "best_epoch", "spread_pp", "largest_drop_pp", "diverged", "seconds")  # fmt: skip
_WIDTH = 80


def summary(study: Comparison) -> str:
    """Returns the results, the differences and the answer, in lines of at most 80 characters."""
    rows = [["variant", "accuracy, %", "95 % interval", "errors", "seconds", "diverged"]]
    for name, runs in study.all_variants.items():
        kept = list(study.variants.get(name, {}).values())
        cells = [""] * 4
        if kept:
            accuracy = study.accuracies[name]
            cells = [f"{accuracy.mean:.3f}", interval(accuracy)]
            cells += [f"{study.mean(name, run.errors):.1f}", f"{study.mean(name, run.seconds):.0f}"]
        rows.append([shorten(name, 22), *cells, f"{len(runs) - len(kept)} of {len(runs)}"])
    parts = [_aligned(rows if study.diverged else [row[:-1] for row in rows])]
    if study.effects:
        baseline = shorten(study.baseline, 16)
        rows = [["variant", f"difference to {baseline}, pp", "95 % interval", "p"]]
        for name, effect in study.effects.items():
            numbers = [signed(effect.mean), interval(effect, signed), p_value(effect.p)]
            rows.append([shorten(name, 22), *numbers])
        parts.append(_aligned(rows))
    parts.append(textwrap.fill(opening.answer(study, str), _WIDTH))
    return "\n\n".join(parts)


def plan(study: Comparison, effect: float) -> str:
    """Returns how many seeds show a difference of `effect`, in lines of at most 80 characters.

    Args:
      study: The study at hand.
      effect: The difference, above 0, in percentage points.

    Raises:
      ValueError: No variant has enough differences from the baseline, or they are all equal.
    """
    plans = planning.plan(study.variants, study.baseline, effect)
    if not plans:
        raise ValueError(
            f"a plan needs a variant that shares at least {planning.MIN_SEEDS} seeds with "
            f"{study.baseline}, with differences that are not all equal"
        )
    number = len(study.effects)
    rows = [["variant", "deviation, pp", "seeds", f"seeds if one of {number}", "shown, pp"]]
    for name, of in plans.items():
        few, many = (
            f"{seeds:,}" if seeds < planning.MAX_SEEDS else f"over {seeds:,}"
            for seeds in (of.alone, of.corrected)
        )
        rows.append([shorten(name, 22), f"{of.deviation:.3f}", few, many, f"{of.shown:.3f}"])
    text = (
        f"Seeds that a variant needs to be shown to differ from {study.baseline}, with a "
        f"probability of {planning.POWER:.0%}, if it truly differs by {effect:g} percentage points "
        f"(pp): as the only comparison, with p below {statistics.LEVEL}, and as the smallest p of "
        f"{number} after Holm's correction. The deviation is that of the paired difference, "
        "estimated from the seeds of this study, so that with few of them these numbers are rough. "
        "The last column is the difference that the seeds of this study show with that "
        "probability, after the correction."
    )
    return f"{_aligned(rows)}\n\n{textwrap.fill(text, _WIDTH)}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as lines, whose columns after the first are aligned at their right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])],
        ).rstrip()
        for row in rows
    )


def results_csv(records: Sequence[Record]) -> str:
    """Returns one line of CSV for each run, after a line of `COLUMNS`.

    A name that a spreadsheet could take for a formula begins with an apostrophe.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for runs in statistics.by_variant(records).values():
        for record in runs.values():
            name, best = record["name"], run.summary(record)
            writer.writerow([
                f"'{name}" if re.match(r"[=+\-@\t\r]", name) else name,
                record["seed"],
                f"{run.final_accuracy(record):.6g}",
                f"{record['metrics']['validation_loss'][-1]:.6g}",
                run.errors(record),
                f"{100 * best.best_accuracy:.6g}",
                best.best_epoch,
                f"{run.spread(record):.6g}",
                f"{run.largest_drop(record):.6g}",
                int(has_diverged(record)),
                f"{run.seconds(record):.1f}",
            ])  # fmt: skip
    return buffer.getvalue()
