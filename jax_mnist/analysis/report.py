"""The report of a study: Markdown with its figures, the same as one HTML page, and CSV.

`report.md` beside this module has the report from top to bottom, and each function here what is
filled into it, in its order. The page is that text converted, with the figures inside; its frame
is `report.html`.
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
from jax_mnist.analysis.words import code, count, escape, interval, listing, number, signed
from jax_mnist.files import PathLike, write_atomically
from jax_mnist.runs.record import Record, has_diverged

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
    narrow = {
        f"{metric}.png": figures.png(
            figures.curves(study.records, metric, words.plain(study.images), narrow=True)
        )
        for metric in ("accuracy", "loss")
    }
    page = to_html(text, files, narrow)
    files["results.csv"] = table.to_csv(study.all_runs).encode()
    files["epochs.csv"] = table.to_csv(table.epochs(study.all_records)).encode()
    files |= {"report.md": text.encode(), "report.html": page.encode()}
    for name, data in files.items():
        write_atomically(Path(folder) / name, data)
    return summary(study, text)


def markdown(
    study: Study, command: str = "", note: str = "", others: Mapping[str, Study] | None = None
) -> str:
    """Returns the report; arguments are those of `write`.

    Of the template, paragraphs are left out that have an empty value, and sections without any.
    """
    effects = study.effects
    values = {
        "title": _title(study),
        "note": escape(note),
        **_answer(study),
        **_runs(study),
        "images": study.images,
        "results": _table("variant", _results_rows(study)),
        **_differences(study),
        "effects": _table("setting", _estimate_rows(effects, "effect, pp")) if len(effects) else "",
        "pairs": count(len(study.variants) // 2, "pair"),
        "settings": str(len(effects) or ""),
        **_claims(study, others or {}),
        **_errors(study),
        **_what_was_run(study, command),
    }
    opening, *sections = re.split(r"\n+(?=## )", _template("report.md"))
    texts = [text for text in (_fill(section, values) for section in sections) if "\n" in text]
    heads = [text.partition("\n")[0].removeprefix("## ") for text in texts]
    links = [f"[{head}](#{head.lower().replace(' ', '-')})" for head in heads]
    values["contents"] = " · ".join(links)
    return "\n\n".join([_fill(opening, values), *texts]) + "\n"


def _fill(text: str, values: Mapping[str, str]) -> str:
    """Fills in the paragraphs of a template that have no empty value."""
    paragraphs = map(Template, text.strip().split("\n\n"))
    return "\n\n".join(
        paragraph.substitute(values)
        for paragraph in paragraphs
        if all(values[name] for name in paragraph.get_identifiers())
    )


def _template(name: str) -> str:
    return (resources.files("jax_mnist.analysis") / name).read_text("utf-8")


def summary(study: Study, text: str) -> str:
    """Returns the results, the differences and the opening of a report for a terminal.

    Args:
      study: The study.
      text: What `markdown` returned for it. Lines have at most 80 columns.
    """
    results = _results_rows(study)
    shown = ("accuracy, %", "95 % interval", "errors", "seconds", "diverged")
    rows = [results[[column for column in results if column in shown]]]
    if len(study.differences):
        name = f"difference to {words.shorten(study.baseline, 16)}, pp"
        rows.append(_estimate_rows(study.differences.rename(index=code), name))
    tables = [
        part.map(words.plain)
        .rename(columns=words.plain, index=lambda name: words.shorten(words.plain(name), 22))
        .to_string()
        for part in rows
    ]
    _, *opening = text.partition("\n\nContents:")[0].split("\n\n")
    paragraphs = [textwrap.fill(words.plain(paragraph), 80) for paragraph in opening]
    return "\n\n".join([*tables, *paragraphs])


# The opening.


def _title(study: Study) -> str:
    names, data = study.all_variants, escape(study.data)
    if len(names) <= MAX_NAMES:
        return f"{listing([*map(code, names)])}{' compared' * (len(names) > 1)} on {data}"
    varied = listing([*map(field_name, study.varied)]) if study.varied else ""
    of = f" of {varied}" if 0 < len(study.varied) <= MAX_FIELDS else ""
    return f"{len(names)} variants{of} compared on {data}"


def _answer(study: Study) -> dict[str, str]:
    """What is shown to differ, by how much and at which confidence, and what is not."""
    names, differences = study.best or study.variants, study.differences
    best = study.accuracies.loc[names[0]]
    accuracy = f"{number(best['mean'])} %"
    if len(names) == 1 and math.isfinite(best.low):
        accuracy += f" (95 % interval {interval(best)})"
    confidence = f"{100 - 100 * table.LEVEL:.0f} % confidence"
    if len(differences) > 1:
        confidence += f" after Holm's correction for {len(differences)} comparisons"

    # What is shown to differ, the largest difference first, and what is not.
    sure, means = differences.p < table.LEVEL, differences["mean"]
    parts = []
    for what, which in (("more", sure & (means > 0)), ("less", sure & (means < 0))):
        texts = [
            f"{code(row.Index)} ({signed(row.mean)}, interval {interval(row, signs=True)})"
            for row in differences[which].sort_values("mean", key=lambda v: -abs(v)).itertuples()
        ]
        parts += [f"shown to be {what} accurate: {listing(texts)}"] * (len(texts) > 0)
    rest = differences[~sure]
    if len(rest):
        ends = f" (intervals from {signed(rest.low.min())} to {signed(rest.high.max())})"
        parts.append(f"not shown to differ: {listing([*map(code, rest.index)])}")
        parts[-1] += ends * int(rest.low.notna().any())
    tested = bool(differences.low.notna().any())
    verdicts = [verdict.verdict for verdict in claims.judge(study)]
    return {
        "mean": f"{'highest ' * bool(study.best)}mean accuracy",
        "accuracy": accuracy,
        "best": listing([*map(code, names)]),
        "baseline": code(study.baseline),
        "confidence": confidence,
        "shown": "; ".join(parts) if tested else "",
        "untested": code(study.baseline) if parts and not tested else "",
        "verdicts": listing([f"{verdicts.count(k)} {k}" for k in claims.KINDS if k in verdicts]),
    }


def _runs(study: Study) -> dict[str, str]:
    """How many runs there are and how they were trained; few seeds, and runs that diverged."""
    epochs = max(len(record["metrics"]["seconds"]) for record in study.records)
    evaluated = "evaluated"
    if {"epochs", "train_split"} <= study.common.keys():
        trained = f"{count(study.common['epochs'], 'epoch')} on {code(study.common['train_split'])}"
        evaluated = f"trained for {trained} and evaluated"
    seeds = study.runs.groupby("variant", sort=False).size()
    single = ", ".join(code(name) for name in seeds.index[seeds == 1])
    few = seeds[seeds > 1].min()
    of = " of a variant" if seeds.nunique() > 1 else ""
    lost = [
        f"{code(record['name'])} seed {record['seed']} in epoch {len(record['metrics']['seconds'])}"
        for record in study.all_records
        if has_diverged(record)
    ]
    return {
        "runs": count(len(study.all_runs), "run"),
        "variants": count(len(study.all_variants), "variant"),
        "seeds": words.integers(sorted(study.all_runs.seed.unique())),
        "evaluated": evaluated,
        "last": str(min(epochs, table.LAST_EPOCHS)) if epochs > 1 else "",
        "single": f": {single}" if single else "",
        "few": f"{few} seeds{of}" if few < FEW_SEEDS else "",
        "diverged": str(len(lost) or ""),
        "lost": listing(lost),
    }


# The sections.


def _results_rows(study: Study) -> pd.DataFrame:
    of_variant = study.runs.groupby("variant", sort=False)
    means = of_variant[["errors", "spread_pp", "largest_drop_pp", "seconds"]].mean()
    lost = study.all_runs.groupby("variant").diverged.agg(["sum", "size"]).astype(str)
    rows = pd.DataFrame(
        {
            "accuracy, %": study.accuracies["mean"].map(number),
            "95 % interval": _intervals(study.accuracies),
            "description": pd.Series({name: study.describe(name) for name in study.all_variants}),
            "errors": means.errors.apply(number, digits=1),
            "best seed": of_variant.accuracy_percent.max().apply(number, digits=2),
            "worst seed": of_variant.accuracy_percent.min().apply(number, digits=2),
            "spread, pp": means.spread_pp.map(number),
            "largest drop, pp": means.largest_drop_pp.apply(number, digits=2),
            "seconds": means.seconds.apply(number, digits=0),
            "diverged": lost["sum"] + " of " + lost["size"],
        },
        study.all_variants,
    ).fillna("")
    rows.loc[study.best, "accuracy, %"] = "**" + rows.loc[study.best, "accuracy, %"] + "**"
    unused = ["description"] * (not study.varied)
    unused += ["diverged"] * (len(study.runs) == len(study.all_runs))
    if max(len(record["metrics"]["seconds"]) for record in study.records) == 1:
        unused += ["spread, pp", "largest drop, pp"]
    names = {name: f"**{code(name)}** (highest)" for name in study.best}
    return rows.drop(columns=unused).rename(index=lambda name: names.get(name, code(name)))


def _differences(study: Study) -> dict[str, str]:
    """The paired differences to the baseline and, to be opened, to any other variant."""
    parts = []
    for name in sorted(study.variants, key=lambda name: name != study.baseline):
        differences = table.differences(study.wide, name)
        if differences.empty:
            continue
        rows = _estimate_rows(differences.rename(index=code), f"difference to {code(name)}, pp")
        pairs = table.paired(study.wide, name)
        least = pairs.apply(table.could_show, level=table.LEVEL / pairs.shape[1])
        rows["could show, pp"] = [*map(number, least)]
        text = _table("variant", rows)
        if name == study.baseline:
            text += "\n\n![The differences with their intervals](differences.png)"
        kind = ' class="baseline"' + " open" * (name == study.baseline)
        parts.append(_details(f"Differences to {name}", text, kind))
    compared = study.differences.index
    strangers = [name for name in study.variants if name not in (study.baseline, *compared)]
    return {
        "differences": "\n\n".join(parts),
        "comparisons": count(len(compared), "comparison") if parts else "",
        "strangers": ", ".join(map(code, strangers)),
    }


def _claims(study: Study, others: Mapping[str, Study]) -> dict[str, str]:
    """The claims of the original that the study has the variants for."""
    verdicts = claims.judge(study)
    estimates = pd.DataFrame([v.effect for v in verdicts], columns=["mean", "low", "high", "p"])
    rows = _estimate_rows(estimates.set_axis([v.claim for v in verdicts]), "effect")
    rows["effect"] += [f" {verdict.unit}" * (verdict.rival != "") for verdict in verdicts]
    rows["measure"] = [escape(verdict.measure) for verdict in verdicts]
    rows["closest rival"] = [escape(verdict.rival) for verdict in verdicts]
    for place, (name, other) in enumerate(others.items()):
        there = {verdict.claim: verdict.verdict for verdict in claims.judge(other)}
        column = [there.get(verdict.claim, "not in that study") for verdict in verdicts]
        rows.insert(place, f"verdict in {code(name)}", column)
    rows.insert(0, "verdict", [f"**{verdict.verdict}**" for verdict in verdicts])
    more = claims.MORE_REGULARIZERS in rows.index
    return {
        "claims": _table("claim", rows) if verdicts else "",
        "level_of_original": str(table.LEVEL) if claims.of_original(study) else "",
        "level_of_more": str(table.LEVEL) if more else "",
        "added_to": code(claims.ADDED_TO),
        "collapse": f"{table.COLLAPSE:.0f}" if verdicts else "",
    }


def _errors(study: Study) -> dict[str, str]:
    """The images and the classes that most runs get wrong."""
    if study.mistakes.empty:
        nothing = dict.fromkeys(("hardest", "who", "confusions", "bold"), "")
        return nothing | {"no_mistakes": "No run misclassified an image."}
    names = [escape(name) for name in study.records[0]["label_names"]]

    def said(predictions: pd.Series) -> str:
        return ", ".join(f"{names[c]} ({runs})" for c, runs in predictions.value_counts().items())

    hardest = study.hardest
    of_hardest = study.mistakes[study.mistakes.position.isin(hardest.index)]
    by_variant = of_hardest.groupby(["position", "variant"]).said.agg(said).unstack(fill_value="")
    images = pd.DataFrame({
        "position": hardest.index.map("{:,}".format),
        "true": hardest.true.map(names.__getitem__),
        "wrong": hardest.runs.map("{:,}".format),
        **{code(name): by_variant[name] for name in study.variants if name in by_variant},
    }, hardest.index).set_axis(range(1, 1 + len(hardest)))  # fmt: skip

    named = claims.CONFUSED_PAIRS if claims.of_original(study) else ()
    pairs = {}
    for rank, pair in enumerate(study.confusions.itertuples(), start=1):
        a, b = names[pair.a], names[pair.b]
        bold = "**" * ((pair.a, pair.b) in named)
        each_way = f"{a} for {b}: {pair.forward:.2f}, {b} for {a}: {pair.backward:.2f}"
        if rank <= MAX_CONFUSIONS or bold:
            pairs[rank] = (f"{bold}{a} and {b}{bold}", f"{pair.both:.2f}", each_way)
    columns = ["classes", "errors per run", "one taken for the other"]
    confusions = pd.DataFrame.from_dict(pairs, orient="index", columns=columns)
    return {
        "no_mistakes": "",
        "hardest": count(len(hardest), "image"),
        "who": _details("Who gets them wrong", _table("number", images)),
        "confusions": _table("rank", confusions),
        "bold": ", ".join(f"{names[a]} and {names[b]}" for a, b in named),
    }


def _what_was_run(study: Study, command: str) -> dict[str, str]:
    """The settings of the runs, the machines and the versions."""
    common = [code(f"{field}={value}") for field, value in study.common.items() if value != ""]
    machines: dict[str, None] = {}
    for device in (record["device"] for record in study.all_records):
        on = f" ({code(device['platform'])})" * (device["platform"] != device["kind"])
        times = f"{device['count']} times " * (device["count"] > 1)
        machines[f"{times}{code(device['kind'])}{on}"] = None
    packages = pd.DataFrame([record["packages"] for record in study.all_records])
    versions = [
        code(f"{name} {' or '.join(packages[name].dropna().unique())}") for name in packages
    ]
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    return {
        "common": ", ".join(common),
        "machines": listing([*machines]),
        "versions": ", ".join(versions),
        "command": f"{fence}bash\n{command}\n{fence}" if command else "",
    }


# Tables.


def _estimate_rows(estimates: pd.DataFrame, name: str) -> pd.DataFrame:
    return pd.DataFrame({
        name: estimates["mean"].map(signed, na_action="ignore"),
        "p": estimates.p.map(words.p_value, na_action="ignore"),
        "95 % interval": _intervals(estimates, signs=True),
    }).fillna("")  # fmt: skip


def _intervals(estimates: pd.DataFrame, signs: bool = False) -> pd.Series:
    return pd.Series([interval(row, signs) for row in estimates.itertuples()], estimates.index)


def _table(first: str, rows: pd.DataFrame) -> str:
    lines = [[first, *rows], ["---"] * (1 + rows.shape[1]), *rows.itertuples()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _details(summary: str, text: str, attributes: str = "") -> str:
    heading = f"<details{attributes}>\n<summary>{html.escape(summary)}</summary>"
    return f"{heading}\n\n{text}\n\n</details>"


# The page.


def to_html(text: str, pictures: Mapping[str, bytes], narrow: Mapping[str, bytes]) -> str:
    """Returns a report in Markdown as an HTML page that needs no other file.

    Args:
      text: What `markdown` returned. Its texts from strangers are escaped.
      pictures: The PNG files that it names. In the page they open large.
      narrow: What takes the place of some of them on a phone.
    """
    text = text.replace("<details", '<details markdown="1"')
    body = Markdown(extensions=["fenced_code", "md_in_html", "tables", "toc"]).convert(text)
    for name, data in pictures.items():
        image = f'class="{Path(name).stem}" src="{_data_url(data)}"'
        body = body.replace(f'src="{name}"', image)
        if name in narrow:
            source = f'<source media="(max-width: 48rem)" srcset="{_data_url(narrow[name])}">'
            image = f"<img [^>]*{re.escape(image)}[^>]*>"
            body = re.sub(image, rf"<picture>{source}\g<0></picture>", body)
    figure = "<p>((?:<picture>.*?)?<img [^>]*>(?:</picture>)?)</p>"
    body = re.sub(figure, r'<details class="figure"><summary>\1</summary></details>', body)
    body = re.sub("<table>.*?</table>", r'<div class="table">\g<0></div>', body, flags=re.DOTALL)
    body = re.sub(
        r" (to|of) (?=[+\N{MINUS SIGN}\d])", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", body
    )
    title = re.sub("<[^>]*>", "", body[: body.index("</h1>")])
    frame = _template("report.html")
    script = frame.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(frame).substitute(title=title, body=body, digest=digest)


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
