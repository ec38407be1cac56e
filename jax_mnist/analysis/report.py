"""The report of a study: Markdown, a self-contained HTML page, and their figures."""

import base64
import html
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import markdown

from jax_mnist.analysis import plots, statistics, study_plots
from jax_mnist.analysis.statistics import Confusion, Difference, Interval, Variants, Verdict
from jax_mnist.config import NO_EFFECT
from jax_mnist.data import files
from jax_mnist.runs import history
from jax_mnist.runs.history import Record

REFERENCE = "bn"
FEW_SEEDS = 10
MOST_CONFUSIONS = 12


def write(records: Sequence[Record], folder: files.PathLike, command: str = "") -> None:
    """Writes `report.md`, `report.html` and the figures into a folder, each atomically.

    Args:
      records: of the runs of a study, in any order, at best of the same seeds of each variant.
        Names and other texts in them may come from anybody.
      folder: made if there is none.
      command: what made the records, to be named in the report.

    Raises:
      ValueError: every run diverged, or see `statistics.by_variant`.
      OSError: a file could not be written, in one line; an earlier one is as it was.
    """
    folder = Path(folder)
    variants_of_all = statistics.by_variant(records)
    variants = statistics.sound(variants_of_all)
    if not variants:
        raise ValueError("every run diverged: lower the learning rate or the decay")
    records = [run for runs in variants.values() for run in runs.values()]
    others = [name for name in variants if name != REFERENCE and REFERENCE in variants]
    found = statistics.differences(
        variants, statistics.final_accuracy, [(name, REFERENCE) for name in others]
    )
    effects = {name: effect for (name, _), effect in found.items()}

    figures = {
        "accuracy.png": study_plots.variants_accuracy(variants),
        "loss.png": study_plots.variants_loss(variants),
    }
    if effects:
        figures["differences.png"] = study_plots.paired_differences(
            effects, REFERENCE, "percentage points of accuracy"
        )
    if hard := statistics.hardest(records, 25):
        figures["hardest.png"] = study_plots.hardest_images(
            hard, records[0]["label_names"], len(records)
        )
    for name, figure in figures.items():
        plots.save(figure, folder / name)

    text = _text(variants_of_all, variants, effects, command)
    files.write_atomically(folder / "report.md", text.encode())
    page = _page(text, folder)
    files.write_atomically(folder / "report.html", page.encode())


def _text(
    variants_of_all: Variants, variants: Variants, effects: dict[str, Difference], command: str
) -> str:
    """The Markdown; `variants` are without the runs that diverged."""
    every = [run for runs in variants_of_all.values() for run in runs.values()]
    diverged = [run for run in every if history.has_diverged(run)]
    records = [run for runs in variants.values() for run in runs.values()]
    seeds = sorted({record["seed"] for record in every})
    single = [name for name, runs in variants.items() if len(runs) == 1]
    few = min((len(runs) for runs in variants.values() if len(runs) > 1), default=FEW_SEEDS)
    images = len(records[0]["predictions"]["label"])
    configs = [record["config"] for record in every]
    fields = [f for f in configs[0] if f not in ("seed", "replicas", *NO_EFFECT)]
    varied = [f for f in fields if any(c.get(f) != configs[0][f] for c in configs)]
    common = [f"{f}={configs[0][f]}" for f in fields if f not in varied and configs[0][f] != ""]
    original = all(c.get("dataset", "mnist") == "mnist" for c in configs)  # who claimed something
    close_calls = statistics.CLOSE_CALLS if original else ()
    pair_names = [f"{a} and {b}" for a, b in close_calls]

    missing = ", ".join(_code(n) for n in variants if n != REFERENCE and n not in effects)

    parts = [
        "# Which regulariser helps, and by how much",
        f"{len(every)} runs: {len(variants_of_all)} variants, seeds {_some(seeds)}, each validated "
        f"on {images:,} images after every epoch. Intervals are 95 % intervals over seeds "
        "(Student's t): they cover the luck of a seed, which sets initialisation, order and "
        "augmentation, on these validation images; other images would move all variants together.",
    ]
    if single:
        of = "" if len(single) == len(variants) else ": " + ", ".join(map(_code, single))
        parts.append(f"**One seed gives no interval, and decides nothing{of}.**")
    if few < FEW_SEEDS:
        parts.append(f"**With {few} seeds of a variant the intervals are wide.**")
    if diverged:
        parts += [
            f"**Diverged: {len(diverged)} of {len(every)} runs.** These came to a loss that is not "
            "finite. Tables and figures are of the runs that did not; only in the original's "
            "claims about variants do they count. They are "
            + ", ".join(
                f"{_code(record['name'])} seed {record['seed']} in epoch "
                f"{len(record['metrics']['train_loss'])}"
                for record in diverged
            )
            + "."
        ]
    parts += [
        "## Results",
        _table(
            "variant | accuracy, % | 95 % interval | best seed | worst seed | errors | spread, pp "
            "| largest drop, pp | seconds" + (" | diverged" if diverged else ""),
            (
                _result_row(name, list(variants.get(name, {}).values()))
                + ([f"{len(runs) - len(variants.get(name, {}))} of {len(runs)}"] * bool(diverged))
                for name, runs in variants_of_all.items()
            ),
        ),
        f"Accuracy and errors (of {images:,} images) are those of the last epoch. Spread: standard "
        f"deviation of the accuracy over the last {statistics.LAST_EPOCHS} epochs. Largest drop: "
        "of the accuracy from one epoch to the next. Both are means over seeds, in percentage "
        "points. Seconds: of a whole run, which may have shared its machine with others.",
        "![Validation accuracy over the epochs, for each variant](accuracy.png)",
        "![Validation loss over the epochs, for each variant](loss.png)",
    ]
    if effects:
        rows = [
            [_code(name), _signed(d.mean), _range(d, signed=True), _p(d.p)]
            for name, d in effects.items()
        ]
        parts += [
            f"## Differences to {_code(REFERENCE)}",
            _table("variant | accuracy, pp | 95 % interval | p", rows),
            "Paired by seed: paired t-test (`scipy.stats.ttest_rel`), two-sided, p-values "
            f"corrected for {len(effects)} comparisons (Holm); each interval is for itself."
            + (f" No seed in common with {_code(REFERENCE)}: {missing}." if missing else ""),
            f"![Differences to {REFERENCE} with their intervals](differences.png)",
        ]
    elif missing and REFERENCE in variants:
        parts.append(f"No seed in common with {_code(REFERENCE)}: {missing}.")
    claims = [
        "## The original's claims",
        _table(
            "claim | verdict | measure | closest rival | effect | 95 % interval | p",
            map(_verdict_row, statistics.judge_claims(variants_of_all)),
        ),
        "The rule: a claim is compared with each rival, paired by seed, and the p-values are "
        "corrected for the number of rivals (Holm). It is *supported* if every difference is in "
        f"the claimed direction with p below {statistics.LEVEL}, *contradicted* if one is in the "
        "opposite direction with such a p, else *undecided*; each claim is judged for itself. The "
        "effect is the difference to the closest rival, or to the one that contradicts most, "
        "positive in the claimed direction. Highest, most stable and all are meant among the eight "
        "variants. The pairs not named are those of two classes that the original does not call "
        "close; errors are the mean of a seed's runs."
        + (
            " A run that diverged counts in claims about variants, with the accuracy that it came "
            f"to, and with a spread and a drop of {statistics.COLLAPSE:.0f} points."
            if diverged
            else ""
        ),
    ]
    parts += [*(claims if original else ()), "## Errors"]
    if pairs := statistics.confusions(records):
        names = [str(name) for name in records[0]["label_names"]]
        rows = [
            _confusion_row(rank, pair, names, pair.classes in close_calls)
            for rank, pair in enumerate(pairs, start=1)
            if rank <= MOST_CONFUSIONS or pair.classes in close_calls
        ]
        parts += [
            "![The images that most runs get wrong](hardest.png)",
            _table("rank | classes | errors a run | taken for one another", rows),
        ]
        if original:
            parts.append(f"Bold: {' and '.join(pair_names)}, which the original names.")
    else:
        parts.append("No run made one.")
    if varied:
        rows = [
            [_code(name), *(_code(next(iter(runs.values()))["config"].get(f)) for f in varied)]
            for name, runs in variants_of_all.items()
        ]
        parts += ["## What was run", _table(" | ".join(["variant", *map(_code, varied)]), rows)]
    parts += [
        "All else is common: " + ", ".join(map(_code, common)) + ".",
        "Made on " + "; ".join(_made_on(every)) + (f"; by {_code(command)}." if command else "."),
    ]
    return "\n\n".join(parts) + "\n"


def _made_on(records: Sequence[Record]) -> list[str]:
    """Every machine and every set of versions that records were made with."""
    made = [
        f"{_code(device['kind'])} ({_code(device['platform'])}) with "
        + ", ".join(_code(f"{name} {version}") for name, version in record["packages"].items())
        for record in records
        for device in [record["device"]]
    ]
    return list(dict.fromkeys(made))


def _result_row(name: str, runs: list[Record]) -> list[str]:
    if not runs:
        return [_code(name), *[""] * 8]

    def mean(measure: statistics.Measure) -> float:
        return statistics.mean_interval([measure(run) for run in runs]).mean

    accuracies = [statistics.final_accuracy(run) for run in runs]
    interval = statistics.mean_interval(accuracies)
    return [
        _code(name),
        f"{interval.mean:.3f}",
        _range(interval),
        f"{max(accuracies):.2f}",
        f"{min(accuracies):.2f}",
        f"{mean(statistics.errors):.1f}",
        f"{mean(statistics.spread):.3f}",
        f"{mean(statistics.largest_drop):.2f}",
        f"{mean(statistics.seconds):.0f}",
    ]


def _verdict_row(v: Verdict) -> list[str]:
    if v.effect is None:
        return [v.claim, v.verdict, v.measure, "", "", "", ""]
    effect = f"{_signed(v.effect.mean)} {v.unit}"
    interval, p = _range(v.effect, signed=True), _p(v.effect.p)
    return [v.claim, f"**{v.verdict}**", v.measure, _escape(v.rival), effect, interval, p]


def _confusion_row(rank: int, pair: Confusion, names: list[str], bold: bool) -> list[str]:
    a, b = (_escape(names[c]) for c in pair.classes)
    both = f"{a} and {b}"
    return [
        str(rank),
        f"**{both}**" if bold else both,
        f"{pair.both:.2f}",
        f"{a} for {b} {pair.forward:.2f}, {b} for {a} {pair.backward:.2f}",
    ]


def _table(header: str, rows: Iterable[Sequence[str]]) -> str:
    columns = header.count("|") + 1
    lines = [header, " | ".join(["---"] * columns), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _escape(text: object) -> str:
    """Text as Markdown that shows it as it is, whatever it holds."""
    text = re.sub(r"([\\`*_\[\]()#+!~-])", r"\\\1", html.escape(str(text), quote=False))
    return re.sub(r"\s+", " ", text).replace("|", "&#124;")


def _code(text: object) -> str:
    plain = str(text)
    return f"`{plain}`" if re.fullmatch(r"[\w.,:=+/\[\] -]+", plain) else _escape(plain)


def _some(seeds: list[int]) -> str:
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _range(interval: Interval | Difference, signed: bool = False) -> str:
    if not math.isfinite(interval.low):
        return "none"
    low, high = interval.low, interval.high
    return f"{_signed(low)} to {_signed(high)}" if signed else f"{low:.3f} to {high:.3f}"


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: auto; padding: 1rem }
h1, h2 { line-height: 1.2 }
img { display: block; max-width: min(100%, 50rem); height: auto; margin: 1.5rem auto }
.table { overflow-x: auto }
table { border-collapse: collapse; font-size: 0.9rem; white-space: nowrap }
th, td { padding: 0.3rem 0.6rem; text-align: left; border-bottom: 1px solid #8886 }
td { font-variant-numeric: tabular-nums }
code { font-size: 0.95em; overflow-wrap: anywhere }
"""


def _page(text: str, folder: Path) -> str:
    """The Markdown as one HTML file that needs no other."""

    def embedded(match: re.Match[str]) -> str:
        picture = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{picture}"'

    body = markdown.markdown(text, extensions=["tables"])
    body = re.sub(r'src="(\w+\.png)"', embedded, body)
    body = body.replace("<table>", '<div class="table"><table>')
    body = body.replace("</table>", "</table></div>")
    title = html.escape(text.partition("\n")[0].removeprefix("# "))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
