"""The report of a study: Markdown with its figures, the same as one HTML page, and CSV.

`markdown` has the report from top to bottom; the functions after it are its parts, in their order.
The page is that text converted, with the figures inside; its frame is `report.html`.
"""

import base64
import hashlib
import html
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template

import pandas as pd
from markdown import Markdown

from jax_mnist.analysis import claims, figures, table, words
from jax_mnist.analysis.study import Study, field_name
from jax_mnist.analysis.words import code, count, escape, interval, listing, signed
from jax_mnist.files import PathLike, write_atomically
from jax_mnist.runs.history import Record, has_diverged

FEW_SEEDS = 10
MAX_NAMES = 3  # in the title
MAX_FIELDS = 4  # likewise
MAX_CONFUSIONS = 12


def write(
    records: Sequence[Record],
    folder: PathLike,
    command: str = "",
    note: str = "",
    baseline: str = "",
    compare_claims_with: Mapping[str, Sequence[Record]] | None = None,
) -> str:
    """Writes `report.md` with its figures, `report.html`, `results.csv` and `epochs.csv`.

    Args:
      records: The runs of a study in any order, preferably with the same seeds of each variant.
        Their names and other texts may come from strangers.
      folder: Where to write; it is created if it is missing. Each file is written atomically.
      command: The command that made the records, which the report shows.
      note: A sentence that the report shows at its beginning.
      baseline: The variant that the others are compared with; by default `bn` or else the first.
      compare_claims_with: The records of other studies, by names, whose verdicts on the claims of
        the original are shown beside those of this one.

    Returns:
      The results, the differences and the answer as plain text for a terminal.

    Raises:
      ValueError: The records cannot be compared, see `Study`.
      OSError: A file could not be written. An earlier file of that name is unchanged.
    """
    study = Study(records, baseline)
    others = {name: Study(runs) for name, runs in (compare_claims_with or {}).items()}
    text = markdown(study, command, note, others)
    files = {name: figures.png(figure) for name, figure in figures.of_study(study).items()}
    page = to_html(text, files)
    files["results.csv"] = table.to_csv(study.all_runs).encode()
    files["epochs.csv"] = table.to_csv(table.epochs(study.all_records)).encode()
    files |= {"report.md": text.encode(), "report.html": page.encode()}
    for name, data in files.items():
        write_atomically(Path(folder) / name, data)
    return summary(study)


def markdown(
    study: Study, command: str = "", note: str = "", others: Mapping[str, Study] | None = None
) -> str:
    """Returns the report, from top to bottom; arguments are those of `write`."""
    sections = {
        "Results": _results(study),
        "Differences": _differences(study),
        "Effects": _effects(study),
        "Claims of the original": _claims(study, others or {}),
        "Errors": _errors(study),
        "What was run": _what_was_run(study, command),
    }
    sections = {head: paragraphs for head, paragraphs in sections.items() if paragraphs}
    contents = [f"[{head}](#{head.lower().replace(' ', '-')})" for head in sections]
    paragraphs = [
        f"# {_title(study)}",
        f"**{escape(note)}**" if note else "",
        answer(study),
        *_warnings(study),
        _extent(study),
        f"Contents: {' · '.join(contents)}",
        *(text for head, parts in sections.items() for text in (f"## {head}", *parts)),
    ]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def summary(study: Study) -> str:
    """Returns the results, the differences and the answer as text of at most 80 columns."""
    results = _results_rows(study)
    shown = ("accuracy, %", "95 % interval", "errors", "seconds", "diverged")
    parts = [results[[column for column in results if column in shown]]]
    if len(study.differences):
        name = f"difference to {words.shorten(study.baseline, 16)}, pp"
        parts.append(_estimate_rows(study.differences.rename(index=code), name))
    texts = [
        part.map(words.plain)
        .rename(columns=words.plain, index=lambda name: words.shorten(words.plain(name), 22))
        .to_string()
        for part in parts
    ]
    return "\n\n".join([*texts, textwrap.fill(words.plain(answer(study)), 80)])


# The opening.


def _title(study: Study) -> str:
    names, data = study.all_variants, escape(study.data)
    if len(names) <= MAX_NAMES:
        return f"{listing([*map(code, names)])}{' compared' * (len(names) > 1)} on {data}"
    varied = listing([*map(field_name, study.varied)]) if study.varied else ""
    of = f" of {varied}" if 0 < len(study.varied) <= MAX_FIELDS else ""
    return f"{len(names)} variants{of} compared on {data}"


def answer(study: Study) -> str:
    """Returns what is shown to differ, by how much and at which confidence, and what is not."""
    names, differences = study.best or study.variants, study.differences
    best = study.accuracies.loc[names[0]]
    alone = len(names) == 1 and math.isfinite(best.low)
    sure = f" (95 % interval {interval(best)})" if alone else ""
    sentences = [
        f"The {'highest ' * bool(study.best)}mean accuracy on {study.counted_images()} is "
        f"{best['mean']:.3f} %{sure}, "
        f"that of {listing([*map(code, names)])}."
    ]
    is_shown, parts = differences.p < table.LEVEL, []
    for what, sign in (("more", 1), ("less", -1)):
        shown = differences[is_shown & (sign * differences["mean"] > 0)]
        shown = shown.sort_values("mean", ascending=sign < 0)
        texts = [
            f"{code(row.Index)} ({signed(row.mean)}, interval {interval(row, signs=True)})"
            for row in shown.itertuples()
        ]
        if texts:
            parts.append(f"shown to be {what} accurate: {listing(texts)}")
    rest = differences[~is_shown]
    if len(rest):
        text = f"not shown to differ: {listing([*map(code, rest.index)])}"
        if rest.low.notna().any():
            text += f" (intervals from {signed(rest.low.min())} to {signed(rest.high.max())})"
        parts.append(text)
    if differences.low.notna().any():
        holm = f" after Holm's correction for {len(differences)} comparisons"
        sentences.append(
            f"Compared with {code(study.baseline)}, in percentage points and at "
            f"{100 - 100 * table.LEVEL:.0f} % confidence{holm * (len(differences) > 1)}, "
            f"{'; '.join(parts)}."
        )
    elif parts:
        sentences.append(
            "No difference can be tested: that takes two shared seeds with unequal differences."
        )
    if verdicts := [verdict.verdict for verdict in claims.judge(study)]:
        kinds = sorted({*verdicts}, key=claims.KINDS.index)
        counts = [f"{verdicts.count(kind)} {kind}" for kind in kinds]
        sentences.append(f"Claims of the original: {listing(counts)}.")
    return " ".join(sentences)


def _warnings(study: Study) -> list[str]:
    """What is to be kept in mind: few seeds, and runs that diverged."""
    warnings = []
    seeds = study.runs.groupby("variant", sort=False).size()
    if single := [code(name) for name in seeds.index[seeds == 1]]:
        which = f": {', '.join(single)}" if len(single) < len(seeds) else ""
        warnings.append(f"**A single seed gives no interval and decides nothing{which}.**")
    few = seeds[seeds > 1].min()
    if few < FEW_SEEDS:
        of = " of a variant" if seeds.nunique() > 1 else ""
        warnings.append(f"**With only {few} seeds{of}, intervals are wide.**")
    diverged = [
        f"{code(record['name'])} seed {record['seed']} in epoch {len(record['metrics']['seconds'])}"
        for record in study.all_records
        if has_diverged(record)
    ]
    if diverged:
        warnings.append(
            f"**Diverged: {len(diverged)} of {count(len(study.all_runs), 'run')}.** The loss of "
            f"{listing(diverged)} became infinite or NaN. Tables and figures leave such runs out."
        )
    return warnings


def _extent(study: Study) -> str:
    """How many runs there are, and on what and for how long all of them trained."""
    runs, variants = count(len(study.all_runs), "run"), count(len(study.all_variants), "variant")
    trained = ""
    if {"epochs", "train_split"} <= study.common.keys():
        epochs = count(study.common["epochs"], "epoch")
        trained = f"trained for {epochs} on {code(study.common['train_split'])} and "
    seeds = words.integers(sorted(study.all_runs.seed.unique()))
    return (
        f"{runs}: {variants}, seeds {seeds}. Each run was {trained}evaluated on "
        f"{study.counted_images()} after every epoch."
    )


# The sections, as paragraphs.


def _results(study: Study) -> list[str]:
    epochs = max(len(record["metrics"]["seconds"]) for record in study.records)
    stability = (
        "The spread is the standard deviation of the accuracy over the last "
        f"{min(epochs, table.LAST_EPOCHS)} epochs, and the largest drop is its largest fall from "
        "one epoch to the next; both are means over seeds, in percentage points (pp). "
    )
    return [
        _table("variant", _results_rows(study)),
        f"Accuracy and errors, of {study.counted_images()}, are those after the last epoch, as "
        f"means over seeds. {stability * (epochs > 1)}Seconds are the mean duration of a run with "
        "its compilation; runs may have shared a machine. Intervals are 95 % intervals over seeds "
        "(Student's t). They cover the randomness of a seed, which determines initialisation, data "
        "order and augmentation, on these images; other images would change the accuracies, mostly "
        "together, and the differences too.",
        "![Accuracy over the epochs, for each variant](accuracy.png)",
        "![Loss over the epochs, for each variant](loss.png)",
    ]


def _results_rows(study: Study) -> pd.DataFrame:
    of_variant = study.runs.groupby("variant", sort=False)
    means = of_variant[["errors", "spread_pp", "largest_drop_pp", "seconds"]].mean()
    lost = study.all_runs.groupby("variant").diverged.agg(["sum", "size"]).astype(str)
    rows = pd.DataFrame(
        {
            "accuracy, %": study.accuracies["mean"].map("{:.3f}".format),
            "95 % interval": _intervals(study.accuracies),
            "description": pd.Series({name: study.describe(name) for name in study.all_variants}),
            "errors": means.errors.map("{:.1f}".format),
            "best seed": of_variant.accuracy_percent.max().map("{:.2f}".format),
            "worst seed": of_variant.accuracy_percent.min().map("{:.2f}".format),
            "spread, pp": means.spread_pp.map("{:.3f}".format),
            "largest drop, pp": means.largest_drop_pp.map("{:.2f}".format),
            "seconds": means.seconds.map("{:.0f}".format),
            "diverged": lost["sum"] + " of " + lost["size"],
        },
        study.all_variants,
    ).fillna("")
    rows.loc[study.best, "accuracy, %"] = [f"**{rows.loc[n, 'accuracy, %']}**" for n in study.best]
    unused = ["description"] * (not study.varied)
    unused += ["diverged"] * (len(study.runs) == len(study.all_runs))
    if max(len(record["metrics"]["seconds"]) for record in study.records) == 1:
        unused += ["spread, pp", "largest drop, pp"]
    names = {name: f"**{code(name)}** (highest)" for name in study.best}
    return rows.drop(columns=unused).rename(index=lambda name: names.get(name, code(name)))


def _differences(study: Study) -> list[str]:
    """The paired differences to the baseline and, to be opened, to any other variant."""
    paragraphs = []
    for name in sorted(study.variants, key=lambda name: name != study.baseline):
        differences = table.differences(study.wide, name)
        if differences.empty:
            continue
        rows = _estimate_rows(differences.rename(index=code), f"difference to {code(name)}, pp")
        pairs = table.paired(study.wide, name).values()
        least = [table.could_show(values, table.LEVEL / len(pairs)) for values in pairs]
        rows["could show, pp"] = [f"{value:.3f}".replace("nan", "") for value in least]
        own = name == study.baseline
        paragraphs += [
            f'<details class="baseline"{" open" * own}>\n<summary>Differences to '
            f"{html.escape(name)}</summary>",
            _table("variant", rows),
            "![The differences with their intervals](differences.png)" * own,
            "</details>",
        ]
    if paragraphs:
        holm = "The p-values are corrected for the number of comparisons (Holm), the intervals are "
        paragraphs.append(
            "Differences in accuracy are in percentage points (pp), paired by seed and tested by "
            f"the two-sided paired t-test. {f'{holm}not. ' * (len(study.differences) > 1)}The last "
            "column is the true difference that as many seeds show with a probability of 80 %, "
            "at the strictest level of the correction."
        )
    missing = {*study.variants} - {study.baseline, *study.differences.index}
    if missing:
        names = ", ".join(code(name) for name in study.variants if name in missing)
        paragraphs.append(f"No seed in common with {code(study.baseline)}: {names}.")
    return paragraphs


def _effects(study: Study) -> list[str]:
    """What each setting does on average, if the variants are all combinations of settings."""
    if study.effects.empty:
        return []
    return [
        _table("setting", _estimate_rows(study.effects, "effect, pp")),
        "The variants are all combinations of these settings. The effect of a setting is the mean "
        f"difference in accuracy over the {len(study.variants) // 2} pairs of variants "
        "that differ in it alone, in percentage points, by seed. It uses all runs, and so it is "
        "more certain than a single difference, but it averages over combinations in which the "
        f"setting may do more or less. The p-values are corrected for {len(study.effects)} effects "
        "(Holm), the intervals are not.",
    ]


def _claims(study: Study, others: Mapping[str, Study]) -> list[str]:
    """The claims of the original that the study has the variants for."""
    verdicts = claims.judge(study)
    if not verdicts:
        return []
    estimates = pd.DataFrame([verdict.effect for verdict in verdicts])
    rows = _estimate_rows(estimates.set_axis([v.claim for v in verdicts]), "effect")
    rows["effect"] += [f" {verdict.unit}" * (verdict.rival != "") for verdict in verdicts]
    rows["measure"] = [escape(verdict.measure) for verdict in verdicts]
    rows["closest rival"] = [escape(verdict.rival) for verdict in verdicts]
    for place, (name, other) in enumerate(others.items()):
        there = {verdict.claim: verdict.verdict for verdict in claims.judge(other)}
        column = [there.get(verdict.claim, "not in that study") for verdict in verdicts]
        rows.insert(place, f"verdict in {code(name)}", column)
    rows.insert(0, "verdict", [f"**{verdict.verdict}**" for verdict in verdicts])
    diverged = (
        "Runs that diverged count in claims about variants, with the accuracy that they reached "
        f"and with a spread and a drop of {table.COLLAPSE:.0f} points."
    )
    return [
        _table("claim", rows),
        claims.RULE * claims.of_original(study),
        claims.RULE_OF_MORE * (verdicts[-1].claim == claims.MORE_REGULARIZERS),
        diverged * (len(study.runs) < len(study.all_runs)),
    ]


def _errors(study: Study) -> list[str]:
    """The images and the classes that most runs get wrong."""
    if study.mistakes.empty:
        return ["No run misclassified an image."]
    names = [escape(name) for name in study.records[0]["label_names"]]

    def said(predictions: pd.Series) -> str:
        return ", ".join(f"{names[c]} ({runs})" for c, runs in predictions.value_counts().items())

    hardest = study.hardest
    of_hardest = study.mistakes[study.mistakes.position.isin(hardest.index)]
    by_variant = of_hardest.groupby(["position", "variant"]).said.agg(said).unstack(fill_value="")
    images = pd.DataFrame({
        "position": [f"{position:,}" for position in hardest.index],
        "true": [names[c] for c in hardest.true],
        "wrong": [f"{runs:,}" for runs in hardest.runs],
        **{code(n): by_variant[n][hardest.index].array for n in study.variants if n in by_variant},
    }, range(1, 1 + len(hardest)))  # fmt: skip

    named = claims.CONFUSED_PAIRS if claims.of_original(study) else ()
    pairs = {}
    for rank, pair in enumerate(study.confusions.itertuples(), start=1):
        a, b = names[pair.a], names[pair.b]
        bold = "**" * ((pair.a, pair.b) in named)
        each_way = f"{a} for {b}: {pair.forward:.2f}, {b} for {a}: {pair.backward:.2f}"
        if rank <= MAX_CONFUSIONS or bold:
            pairs[rank] = (f"{bold}{a} and {b}{bold}", f"{pair.both:.2f}", each_way)
    columns = ["classes", "errors per run", "one taken for the other"]
    bold = ", ".join(f"{names[a]} and {names[b]}" for a, b in named)
    return [
        "![The images that most runs get wrong](hardest.png)",
        "<details>\n<summary>Who gets them wrong</summary>",
        _table("number", images),
        f"An image is named by its position among the {study.images()}, counted from 0; `wrong` is "
        "the number of runs that get it wrong. A variant has what its runs say, and how many do.",
        "</details>",
        _table("rank", pd.DataFrame.from_dict(pairs, orient="index", columns=columns)),
        f"The original names the pairs in bold: {bold}." if bold else "",
    ]


def _what_was_run(study: Study, command: str) -> list[str]:
    """The settings of the runs, the machines and the versions."""
    common = [code(f"{field}={value}") for field, value in study.common.items() if value != ""]
    machines: dict[str, None] = {}
    packages: dict[str, dict[str, None]] = {}
    for record in study.all_records:
        kind, platform, number = (record["device"][key] for key in ("kind", "platform", "count"))
        on = f" ({code(platform)})" if platform != kind else ""
        machines[f"{f'{number} times ' * (number > 1)}{code(kind)}{on}"] = None
        for package, version in record["packages"].items():
            packages.setdefault(package, {})[version] = None
    versions = [code(f"{package} {' or '.join(each)}") for package, each in packages.items()]
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    return [
        f"All runs have in common: {', '.join(common)}.",
        f"They were made on {listing([*machines])}, with {', '.join(versions)}.",
        "Beside this report, `results.csv` has a row for each run and `epochs.csv` for each epoch.",
        f"The command was:\n\n{fence}bash\n{command}\n{fence}" if command else "",
    ]


# Tables.


def _estimate_rows(estimates: pd.DataFrame, name: str) -> pd.DataFrame:
    columns = {
        name: estimates["mean"].map(signed, na_action="ignore"),
        "p": estimates.p.map(words.p_value, na_action="ignore"),
        "95 % interval": _intervals(estimates, signs=True),
    }
    return pd.DataFrame(columns).fillna("")


def _intervals(estimates: pd.DataFrame, signs: bool = False) -> pd.Series:
    return pd.Series([interval(row, signs) for row in estimates.itertuples()], estimates.index)


def _table(first: str, rows: pd.DataFrame) -> str:
    lines = [[first, *rows], ["---"] * (1 + rows.shape[1]), *rows.itertuples()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


# The page.


def to_html(text: str, pictures: Mapping[str, bytes]) -> str:
    """Returns a report in Markdown as an HTML page that needs no other file.

    Args:
      text: What `markdown` returned. Its texts from strangers are escaped.
      pictures: The PNG files that it names. In the page they open large.
    """
    text = text.replace("<details", '<details markdown="1"')
    body = Markdown(extensions=["fenced_code", "md_in_html", "tables", "toc"]).convert(text)
    for name, data in pictures.items():
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        body = body.replace(f'src="{name}"', f'class="{Path(name).stem}" src="{source}"')
    body = re.sub(
        "<p>(<img [^>]*>)</p>", r'<details class="figure"><summary>\1</summary></details>', body
    )
    body = re.sub("<table>.*?</table>", r'<div class="table">\g<0></div>', body, flags=re.DOTALL)
    body = re.sub(
        r" (to|of) (?=[+\N{MINUS SIGN}\d])", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", body
    )
    title = re.sub("<[^>]*>", "", body[: body.index("</h1>")])
    frame = (resources.files("jax_mnist.analysis") / "report.html").read_text("utf-8")
    script = frame.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(frame).substitute(title=title, body=body, digest=digest)
