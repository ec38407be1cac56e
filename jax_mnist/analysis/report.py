"""The report of a study: Markdown, a self-contained HTML page, and their figures.

`_SECTIONS` lists the parts of the text in order. Each is a function from the study to blocks of
Markdown. The claims and the rule that judges them are in `claims`.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from jax_mnist.analysis import claims, drawing, mistakes, page, plots, run, statistics, study_plots
from jax_mnist.analysis.markup import code, escape, integers, interval, p_value, signed, table
from jax_mnist.config import NO_EFFECT
from jax_mnist.data.files import PathLike, write_atomically
from jax_mnist.runs import history
from jax_mnist.runs.history import Record

REFERENCE = "bn"  # the variant that the others are compared with
FEW_SEEDS = 10
MAX_CONFUSIONS = 12
MAX_HARD_IMAGES = 25


class _Study:
    """What the sections need of a study; `all_...` includes the runs that diverged."""

    def __init__(self, records: Sequence[Record], command: str) -> None:
        self.command = command
        self.all_variants = statistics.by_variant(records)
        self.variants = statistics.without_diverged(self.all_variants)
        if not self.variants:
            raise ValueError("every run diverged: lower the learning rate or the decay")
        self.all_records, self.records = (
            [record for runs in variants.values() for record in runs.values()]
            for variants in (self.all_variants, self.variants)
        )
        self.diverged = len(self.records) < len(self.all_records)
        configs = [record["config"] for record in self.all_records]
        self.of_original = all(c.get("dataset", "mnist") == "mnist" for c in configs)
        self.images = f"{len(self.records[0]['predictions']['label']):,}"
        others = [name for name in self.variants if name != REFERENCE]
        self.effects = statistics.differences(self.variants, run.final_accuracy, others, REFERENCE)


def write(records: Sequence[Record], folder: PathLike, command: str = "", note: str = "") -> None:
    """Writes `report.md`, `report.html` and the figures into a folder, each atomically.

    Args:
      records: The runs of a study in any order, preferably with the same seeds of each variant.
        Their names and other texts may come from strangers.
      folder: Where to write; it is created if it is missing.
      command: The command that made the records, which the report mentions.
      note: A sentence that the report shows near its top.

    Raises:
      ValueError: Every run diverged, or the records cannot be compared (`statistics.by_variant`).
      OSError: A file could not be written. An earlier file of that name is unchanged.
    """
    folder, study = Path(folder), _Study(records, command)
    for name, figure in _figures(study).items():
        plots.save(figure, folder / name)
    markdown = _text(study)
    if note:
        title, rest = markdown.split("\n\n", 1)
        markdown = f"{title}\n\n**{note}**\n\n{rest}"
    write_atomically(folder / "report.md", markdown.encode())
    write_atomically(folder / "report.html", page.self_contained(markdown, folder).encode())


def text(records: Sequence[Record], command: str = "") -> str:
    """Returns the report as Markdown; arguments and errors are those of `write`."""
    return _text(_Study(records, command))


def _text(study: _Study) -> str:
    return "\n\n".join(block for section in _SECTIONS for block in section(study)) + "\n"


def _figures(study: _Study) -> dict[str, Figure]:
    figures = {
        "accuracy.png": study_plots.bands(study.variants, drawing.ACCURACY),
        "loss.png": study_plots.bands(study.variants, drawing.LOSS),
    }
    if study.effects:
        figures["differences.png"] = study_plots.accuracy_differences(study.effects, REFERENCE)
    if hard := mistakes.hardest(study.records, MAX_HARD_IMAGES):
        names = study.records[0]["label_names"]
        figures["hardest.png"] = study_plots.hardest_images(hard, names, len(study.records))
    return figures


def _introduction(study: _Study) -> list[str]:
    total = len(study.all_records)
    seeds = integers(sorted({record["seed"] for record in study.all_records}))
    blocks = [
        "# Which regulariser helps, and by how much",
        f"{total} runs: {len(study.all_variants)} variants, seeds {seeds}. Each run was validated "
        f"on {study.images} images after every epoch. Intervals are 95 % intervals over seeds "
        "(Student's t). They cover the randomness of a seed, which determines initialisation, data "
        "order and augmentation, on these validation images; other images would shift all "
        "variants together.",
    ]
    sizes = {name: len(runs) for name, runs in study.variants.items()}
    if single := [code(name) for name, size in sizes.items() if size == 1]:
        which = "" if len(single) == len(sizes) else f": {', '.join(single)}"
        blocks.append(f"**A single seed gives no interval and decides nothing{which}.**")
    few = min((size for size in sizes.values() if size > 1), default=FEW_SEEDS)
    if few < FEW_SEEDS:
        blocks.append(f"**With only {few} seeds of a variant, its intervals are wide.**")
    if study.diverged:
        runs = [
            f"{code(r['name'])} seed {r['seed']} in epoch {len(r['metrics']['train_loss'])}"
            for r in study.all_records
            if history.has_diverged(r)
        ]
        blocks.append(
            f"**Diverged: {len(runs)} of {total} runs.** Their loss became infinite or "
            f"NaN. Tables and figures leave them out. They are {', '.join(runs)}."
        )
    return blocks


def _results(study: _Study) -> list[str]:
    columns = ["variant", "accuracy, %", "95 % interval", "best seed", "worst seed", "errors"]
    columns += ["spread, pp", "largest drop, pp", "seconds", *["diverged"] * study.diverged]
    rows = []
    for name, runs in study.all_variants.items():
        kept = list(study.variants.get(name, {}).values())
        lost = f"{len(runs) - len(kept)} of {len(runs)}"
        cells = _result_cells(kept) if kept else [""] * 8
        rows.append([code(name), *cells, *[lost] * study.diverged])
    return [
        "## Results",
        table(columns, rows),
        f"Accuracy and errors (of {study.images} images) are those of the last epoch. The spread "
        f"is the standard deviation of the accuracy over the last {run.LAST_EPOCHS} epochs, the "
        "largest drop that of the accuracy from one epoch to the next; both are means over seeds, "
        "in percentage points (pp). Seconds are the mean duration of a run, which may have shared "
        "its machine with others.",
        "![Validation accuracy over the epochs, for each variant](accuracy.png)",
        "![Validation loss over the epochs, for each variant](loss.png)",
    ]


def _result_cells(runs: Sequence[Record]) -> list[str]:
    def mean(measure: statistics.Measure) -> float:
        return sum(map(measure, runs)) / len(runs)

    accuracies = [run.final_accuracy(record) for record in runs]
    accuracy = statistics.mean_interval(accuracies)
    return [
        *(f"{accuracy.mean:.3f}", interval(accuracy)),
        *(f"{max(accuracies):.2f}", f"{min(accuracies):.2f}", f"{mean(run.errors):.1f}"),
        *(f"{mean(run.spread):.3f}", f"{mean(run.largest_drop):.2f}", f"{mean(run.seconds):.0f}"),
    ]


def _differences(study: _Study) -> list[str]:
    blocks = []
    if study.effects:
        rows = [
            [code(name), signed(effect.mean), interval(effect, signed), p_value(effect.p)]
            for name, effect in study.effects.items()
        ]
        blocks = [
            f"## Differences to {code(REFERENCE)}",
            table(["variant", "accuracy, pp", "95 % interval", "p"], rows),
            "The differences are paired by seed and tested by the two-sided paired t-test "
            "(`scipy.stats.ttest_rel`). The p-values are corrected for "
            f"{len(rows)} comparisons (Holm), the intervals are not.",
            f"![Differences to {REFERENCE} with their intervals](differences.png)",
        ]
    missing = [code(n) for n in study.variants if n != REFERENCE and n not in study.effects]
    if missing and REFERENCE in study.variants:
        blocks.append(f"No seed in common with {code(REFERENCE)}: {', '.join(missing)}.")
    return blocks


def _claims(study: _Study) -> list[str]:
    if not study.of_original:
        return []
    rows = []
    for v in claims.judge(study.all_variants):
        if v.effect is None:
            rows.append([v.claim, v.verdict, v.measure, *[""] * 4])
        else:
            effect = f"{signed(v.effect.mean)} {v.unit}"
            numbers = [effect, interval(v.effect, signed), p_value(v.effect.p)]
            rows.append([v.claim, f"**{v.verdict}**", v.measure, escape(v.rival), *numbers])
    columns = ["claim", "verdict", "measure", "closest rival", "effect", "95 % interval", "p"]
    blocks = [
        "## The original's claims",
        table(columns, rows),
        "The rule: the subject of a claim is compared with each rival, paired by seed, and the "
        "p-values are corrected for the number of rivals (Holm). A claim is *supported* if every "
        f"difference is in the claimed direction with p below {statistics.LEVEL}, *contradicted* "
        "if one is in the opposite direction with such a p, and otherwise *undecided*; each claim "
        "is judged by itself. The effect is the difference to the closest rival or, for a "
        "contradicted claim, to the rival that contradicts it most; it is positive in the claimed "
        "direction. Claims about the highest, the most stable or all refer to the original's eight "
        "variants. A pair not named is any pair of classes that the original does not call often "
        "confused; the errors between two classes are the mean over the runs of a seed.",
    ]
    if study.diverged:
        blocks.append(
            "Runs that diverged count in claims about variants, with the accuracy that they "
            f"reached and with a spread and a drop of {run.COLLAPSE:.0f} points."
        )
    return blocks


def _errors(study: _Study) -> list[str]:
    confusions = mistakes.confusions(study.records)
    if not confusions:
        return ["## Errors", "No run misclassified an image."]
    names = [escape(name) for name in study.records[0]["label_names"]]
    named = claims.CONFUSED_PAIRS if study.of_original else ()
    rows = []
    for rank, confusion in enumerate(confusions, start=1):
        a, b = (names[c] for c in confusion.classes)
        pair = f"**{a} and {b}**" if confusion.classes in named else f"{a} and {b}"
        each_way = f"{a} for {b}: {confusion.forward:.2f}, {b} for {a}: {confusion.backward:.2f}"
        if rank <= MAX_CONFUSIONS or confusion.classes in named:
            rows.append([str(rank), pair, f"{confusion.both:.2f}", each_way])
    bold = ", ".join(f"{names[a]} and {names[b]}" for a, b in named)
    return [
        "## Errors",
        "![The images that most runs get wrong](hardest.png)",
        table(["rank", "classes", "errors per run", "one taken for the other"], rows),
        *[f"The original names the pairs in bold: {bold}."] * bool(named),
    ]


def _settings(study: _Study) -> list[str]:
    configs = [record["config"] for record in study.all_records]
    fields = [f for f in configs[0] if f not in ("seed", "replicas", *NO_EFFECT)]
    varied = [f for f in fields if any(c.get(f) != configs[0][f] for c in configs)]
    common = [f"{f}={configs[0][f]}" for f in fields if f not in varied and configs[0][f] != ""]
    rows = [
        [code(name), *(code(next(iter(runs.values()))["config"].get(f)) for f in varied)]
        for name, runs in study.all_variants.items()
    ]
    machines = [
        f"{code(record['device']['kind'])} ({code(record['device']['platform'])}) with "
        + ", ".join(code(f"{name} {version}") for name, version in record["packages"].items())
        for record in study.all_records
    ]
    return [
        "## What was run",
        *[table(["variant", *map(code, varied)], rows)] * bool(varied),
        f"All runs have in common: {', '.join(map(code, common))}.",
        f"They were made on {'; '.join(dict.fromkeys(machines))}"
        + (f"; by {code(study.command)}." if study.command else "."),
    ]


_SECTIONS = (_introduction, _results, _differences, _claims, _errors, _settings)


# --- for the integrator: a minimal stand-in for the branch `report` ---
def terminal_summary(records: Sequence[Record]) -> str:
    """The results and the differences as plain text, at most 80 columns wide."""
    study = _Study(records, "")
    lines = [f"{'variant':20}  {'accuracy, %':>11}  {'lowest':>7}  {'highest':>7}"]
    for name, runs in study.variants.items():
        found = [run.final_accuracy(record) for record in runs.values()]
        lines.append(
            f"{name[:20]:20}  {sum(found) / len(found):11.3f}  {min(found):7.2f}  {max(found):7.2f}"
        )
    if study.effects:
        lines += ["", f"difference to {REFERENCE}, percentage points; 95 % interval"]
    for name, effect in study.effects.items():
        lines.append(
            f"{name[:20]:20}  {effect.mean:+11.3f}  {effect.low:+7.3f} to {effect.high:+7.3f}"
            f"  p = {effect.p:.3f}"
        )
    return "\n".join(lines)
