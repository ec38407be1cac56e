"""The sections of a report, in order: each is a function from a study to blocks.

The claims of the original and the rule that judges them are in `claims`, the title and the first
paragraph in `opening`, what only the HTML page shows in `interactive`.
"""

import functools
from collections.abc import Callable

from jax_mnist.analysis import claims, drawing, interactive, mistakes, run, statistics
from jax_mnist.analysis.blocks import Block, Choices, Picture, Table
from jax_mnist.analysis.comparison import Comparison, machines, versions
from jax_mnist.analysis.markup import (
    code,
    count,
    escape,
    interval,
    listing,
    p_value,
    signed,
)
from jax_mnist.analysis.statistics import Estimate
from jax_mnist.runs.record import has_diverged

FEW_SEEDS = 10
MAX_CONFUSIONS = 12


def warnings(study: Comparison) -> list[Block]:
    """What is to be kept in mind: few seeds, and runs that diverged."""
    total = len(study.all_records)
    blocks: list[Block] = []
    sizes = {name: len(runs) for name, runs in study.variants.items()}
    if single := [code(name) for name, size in sizes.items() if size == 1]:
        which = "" if len(single) == len(sizes) else f": {', '.join(single)}"
        blocks.append(f"**A single seed gives no interval and decides nothing{which}.**")
    few = min((size for size in sizes.values() if size > 1), default=FEW_SEEDS)
    if few < FEW_SEEDS:
        of = " of a variant" if len(set(sizes.values())) > 1 else ""
        blocks.append(f"**With only {few} seeds{of}, intervals are wide.**")
    if study.diverged:
        runs = [
            f"{code(r['name'])} seed {r['seed']} in epoch {len(r['metrics']['train_loss'])}"
            for r in study.all_records
            if has_diverged(r)
        ]
        blocks.append(
            f"**Diverged: {len(runs)} of {count(total, 'run')}.** The loss of {listing(runs)} "
            "became infinite or NaN. Tables and figures leave such runs out."
        )
    return blocks


def results(study: Comparison) -> list[Block]:
    """The accuracy of each variant, and its curves."""
    epochs = max(len(record["metrics"]["seconds"]) for record in study.records)
    columns = ["variant", "accuracy, %", "95 % interval", *["description"] * bool(study.varied)]
    columns += [
        "errors",
        "best seed",
        "worst seed",
        *["spread, pp", "largest drop, pp"] * (epochs > 1),
        "seconds",
    ]
    rows = []
    for name, runs in study.all_variants.items():
        kept = list(study.variants.get(name, {}).values())
        lost = f"{len(runs) - len(kept)} of {len(runs)}"
        cells = [""] * (len(columns) - 1 - bool(study.varied))
        if kept:
            cells = _result_cells(study, name, epochs)
        cells[2:2] = [study.description(name)] * bool(study.varied)
        best = name in study.best
        cells[0] = f"**{cells[0]}**" if best else cells[0]
        first = f"**{code(name)}** (highest)" if best else code(name)
        rows.append([first, *cells, *[lost] * study.diverged])
    marked = [i for i, name in enumerate(study.all_variants) if name in study.best]
    pictures: list[Block] = [
        Picture(
            f"{metric.name}.png",
            f"{metric.name.capitalize()} over the epochs, for each variant",
            functools.partial(interactive.curves, study, metric),
        )
        for metric in (drawing.ACCURACY, drawing.LOSS)
    ]
    return [
        "## Results",
        Table([*columns, *["diverged"] * study.diverged], rows, marked=marked),
        _explanation(study, epochs),
        *pictures,
    ]


def _result_cells(study: Comparison, name: str, epochs: int) -> list[str]:
    mean, accuracy = functools.partial(study.mean, name), study.accuracies[name]
    finals = [run.final_accuracy(record) for record in study.variants[name].values()]
    stability = [f"{mean(run.spread):.3f}", f"{mean(run.largest_drop):.2f}"] * (epochs > 1)
    return [
        *(f"{accuracy.mean:.3f}", interval(accuracy), f"{mean(run.errors):.1f}"),
        *(f"{max(finals):.2f}", f"{min(finals):.2f}", *stability, f"{mean(run.seconds):.0f}"),
    ]


def _explanation(study: Comparison, epochs: int) -> str:
    sentences = [
        f"Accuracy and errors, of {study.counted_images()}, are those after the last epoch, as "
        "means over seeds."
    ]
    if epochs > 1:
        last = min(epochs, run.LAST_EPOCHS)
        sentences.append(
            f"The spread is the standard deviation of the accuracy over the last {last} epochs, "
            "and the largest drop is its largest fall from one epoch to the next; both are means "
            "over seeds, in percentage points (pp)."
        )
    sentences.append(
        "Seconds are the mean duration of a run with its compilation; runs may have shared a "
        "machine. "
        "Intervals are 95 % intervals over seeds (Student's t). They cover the randomness of a "
        "seed, which determines initialisation, data order and augmentation, on these images; "
        "other images would change the accuracies, mostly together, and the differences too."
    )
    return " ".join(sentences)


def differences(study: Comparison) -> list[Block]:
    """The paired differences to a baseline, of which the page lets its reader choose any."""
    blocks: list[Block] = []
    if study.effects:
        others = [name for name in study.variants if name != study.baseline]
        found = {name: study.differences(name) for name in (study.baseline, *others)}
        choices = {name: _differences_to(name, effects) for name, effects in found.items()}
        text = f"Differences to {escape(study.baseline)} with their intervals"
        blocks = [
            "## Differences",
            Choices("Baseline", {name: chosen for name, chosen in choices.items() if chosen}),
            Picture("differences.png", text, interactive.intervals_legend),
        ]
    missing = [code(n) for n in study.variants if n != study.baseline and n not in study.effects]
    if missing:
        blocks.append(f"No seed in common with {code(study.baseline)}: {', '.join(missing)}.")
    return blocks


def _differences_to(baseline: str, effects: dict[str, Estimate]) -> list[Block]:
    if not effects:
        return []
    rows = [[code(name), *_effect_cells(effect)] for name, effect in effects.items()]
    columns = ["variant", f"difference to {code(baseline)}, pp", "p", "95 % interval"]
    text = (
        f"Differences in accuracy to {code(baseline)}, in percentage points (pp), paired by seed "
        "and tested by the two-sided paired t-test (`scipy.stats.ttest_rel`)."
    )
    if len(rows) > 1:
        text += f" The p-values are corrected for {len(rows)} comparisons (Holm), the intervals "
        text += "are not."
    return [Table(columns, rows, main=4, pictures=interactive.intervals(effects)), text]


def _effect_cells(effect: Estimate) -> list[str]:
    return [signed(effect.mean), p_value(effect.p), interval(effect, signed)]


def main_effects(study: Comparison) -> list[Block]:
    """What each setting does on average, if the variants are all combinations of settings."""
    if not study.main_effects:
        return []
    rows = [[name, *_effect_cells(effect)] for name, effect in study.main_effects.items()]
    pairs = count(len(study.variants) // 2, "pair")
    return [
        "## Effects",
        Table(["setting", "effect, pp", "p", "95 % interval"], rows, main=2),
        "The variants are all combinations of these settings. The effect of a setting is the mean "
        f"difference in accuracy over the {pairs} of variants that differ in it alone, in "
        "percentage points, by seed. It uses all runs, and so it is more certain than a single "
        "difference, but it averages over combinations in which the setting may do more or less. "
        f"The p-values are corrected for {len(rows)} effects (Holm), the intervals are not.",
    ]


_RULE = (
    "The rule: the subject of a claim is compared with each rival, paired by seed, and the "
    "p-values are corrected for the number of rivals (Holm). A claim is *supported* if every "
    f"difference is in the claimed direction with p below {statistics.LEVEL}, *contradicted* "
    "if one is in the opposite direction with such a p, and otherwise *undecided*; each claim "
    "is judged by itself. The correction makes this rule stricter than it need be for support, "
    "which takes all differences. The effect is the difference to the closest rival or, for a "
    "contradicted claim, to the rival that contradicts it most; it is positive in the claimed "
    "direction. Claims about the highest, the most stable or all refer to the original's eight "
    "variants. A pair not named is any pair of classes that the original does not call often "
    "confused; the errors between two classes are the mean over the runs of a seed."
)
_RULE_OF_MORE = (
    "The claim that more regularisation techniques can help is about the variants that add to "
    f"{code(claims.ADDED_TO)} what the original does not have. It is *supported* if at "
    f"least one of them has a higher accuracy with p below {statistics.LEVEL} (paired by seed, "
    "corrected for their number with Holm's method), *contradicted* if all of them have a lower "
    "one with such a p, and otherwise *undecided*. Only these variants count in the correction, so "
    "that a p-value may differ from that of the same difference above. The effect is that of the "
    "best such variant, or of the best that supports the claim; the measure names it."
)


def original_claims(study: Comparison) -> list[Block]:
    """The claims of the original that the study has the variants for."""
    if not study.verdicts:
        return []
    elsewhere = [{v.claim: v.verdict for v in other.verdicts} for other in study.beside.values()]
    rows = []
    for v in study.verdicts:
        measure = escape(v.measure)  # it may hold the name of a variant
        numbers = [*[""] * 3, measure, ""]
        if v.effect is not None:
            mean, *others = _effect_cells(v.effect)
            numbers = [f"{mean} {v.unit}", *others, measure, escape(v.rival)]
        verdict = f"**{v.verdict}**" if v.effect else v.verdict
        there = [verdicts.get(v.claim, "not in that study") for verdicts in elsewhere]
        rows.append([v.claim, verdict, *there, *numbers])
    columns = ["claim", "verdict", *(f"verdict in {code(name)}" for name in study.beside)]
    columns += ["effect", "p", "95 % interval", "measure", "closest rival"]
    blocks: list[Block] = [
        "## Claims of the original",
        Table(columns, rows, main=2 + len(study.beside)),
        *[_RULE] * study.of_original,
        *[_RULE_OF_MORE] * any(v.claim == claims.MORE_REGULARIZERS for v in study.verdicts),
    ]
    if study.diverged:
        blocks.append(
            "Runs that diverged count in claims about variants, with the accuracy that they "
            f"reached and with a spread and a drop of {run.COLLAPSE:.0f} points."
        )
    return blocks


def errors(study: Comparison) -> list[Block]:
    """The images and the classes that most runs get wrong."""
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
        Picture(
            "hardest.png",
            f"The {count(len(study.hardest), 'image')} that most runs get wrong",
            functools.partial(interactive.hardest, study),
        ),
        Table(["rank", "classes", "errors per run", "one taken for the other"], rows),
        *[f"The original names the pairs in bold: {bold}."] * bool(named),
    ]


def made(study: Comparison) -> list[Block]:
    """The settings of the runs, the machines and the versions."""
    common = [f"{field}={value}" for field, value in study.common.items() if value != ""]
    return [
        "## What was run",
        f"All runs have in common: {', '.join(map(code, common))}.",
        f"They were made on {listing(machines(study.all_records))}, with "
        f"{', '.join(versions(study.all_records))}.",
    ]


Section = Callable[[Comparison], list[Block]]

# What follows the opening, and the words of the contents.
SECTIONS: tuple[Section, ...] = (results, differences, main_effects, original_claims, errors, made)
