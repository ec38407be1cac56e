"""The report of a study: Markdown with its figures, a self-contained HTML page, and CSV.

The text is composed in `sections` and `opening`, from the facts that `comparison` finds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from jax_mnist.analysis import (
    drawing,
    opening,
    page,
    plain,
    plots,
    sections,
    study_plots,
)
from jax_mnist.analysis.blocks import Block, Command, to_markdown
from jax_mnist.analysis.comparison import Comparison
from jax_mnist.analysis.markup import code, count, escape, integers
from jax_mnist.files import PathLike, write_atomically
from jax_mnist.runs.record import Record


def write(
    records: Sequence[Record],
    folder: PathLike,
    command: str = "",
    note: str = "",
    baseline: str = "",
    beside: Mapping[str, Sequence[Record]] | None = None,
) -> None:
    """Writes `report.md` with its figures, `report.html` and `results.csv`, each atomically.

    Args:
      records: The runs of a study in any order, preferably with the same seeds of each variant.
        Their names and other texts may come from strangers.
      folder: Where to write; it is created if it is missing.
      command: The command that made the records, which the report shows.
      note: A sentence that the report shows at its beginning.
      baseline: The variant that the others are compared with; by default `bn` or else the first.
      beside: The records of other studies, by names, whose verdicts on the claims of the original
        are shown beside those of this one.

    Raises:
      ValueError: Every run diverged, the records cannot be compared (`statistics.by_variant`), or
        the baseline has no run that did not diverge.
      OSError: A file could not be written. An earlier file of that name is unchanged.
    """
    folder, study = Path(folder), Comparison(records, baseline, beside)
    blocks = _blocks(study, command, note)
    for name, figure in _figures(study).items():
        plots.save(figure, folder / name)
    contents = {
        "results.csv": plain.results_csv(records),
        "report.md": f"{to_markdown(blocks)}\n",
        "report.html": page.self_contained(blocks),
    }
    for name, text in contents.items():
        write_atomically(folder / name, text.encode())


def text(records: Sequence[Record], command: str = "", note: str = "", baseline: str = "") -> str:
    """Returns the report as Markdown; arguments and errors are those of `write`."""
    return f"{to_markdown(_blocks(Comparison(records, baseline), command, note))}\n"


def terminal_summary(records: Sequence[Record], baseline: str = "") -> str:
    """Returns results and differences as plain text of at most 80 columns.

    Raises:
      ValueError: As in `write`.
    """
    return plain.summary(Comparison(records, baseline))


def plan(records: Sequence[Record], effect: float, baseline: str = "") -> str:
    """Returns the seeds that a study needs to show a difference, as text; see `plain.plan`.

    Raises:
      ValueError: As in `write` or `plain.plan`.
    """
    return plain.plan(Comparison(records, baseline), effect)


def _blocks(study: Comparison, command: str, note: str) -> list[Block]:
    parts = [section(study) for section in sections.SECTIONS]
    heads = [part[0].removeprefix("## ") for part in parts if part and isinstance(part[0], str)]
    contents = " · ".join(f"[{head}](#{head.lower().replace(' ', '-')})" for head in heads)
    seeds = integers(sorted({record["seed"] for record in study.all_records}))
    runs = count(len(study.all_records), "run")
    variants = count(len(study.all_variants), "variant")
    return [
        f"# {opening.title(study)}",
        *[f"**{escape(note)}**"] * bool(note),
        opening.answer(study),
        *sections.warnings(study),
        f"{runs}: {variants}, seeds {seeds}. Each run was {_trained(study)}evaluated on "
        f"{study.counted_images()} after every epoch.",
        f"Contents: {contents}",
        *(block for part in parts for block in part),
        *(("The command was:", Command(command)) if command else ()),
    ]


def _trained(study: Comparison) -> str:
    """On what and for how long, if that is the same for all runs."""
    if not {"epochs", "train_split"} <= study.common.keys():
        return ""
    epochs = count(study.common["epochs"], "epoch")
    return f"trained for {epochs} on {code(study.common['train_split'])} and "


def _figures(study: Comparison) -> dict[str, Figure]:
    images = study.counted_images(str)
    figures = {
        f"{metric.name}.png": study_plots.bands(
            study.variants, metric, f"{metric.name.capitalize()} on {drawing.shorten(images, 48)}"
        )
        for metric in (drawing.ACCURACY, drawing.LOSS)
    }
    if study.effects:
        figures["differences.png"] = study_plots.accuracy_differences(study.effects, study.baseline)
    if study.hardest:
        figures["hardest.png"] = study_plots.hardest_images(
            study.hardest,
            study.records[0]["label_names"],
            len(study.records),
            study.images(str),
        )
    return figures
