"""The title of a report and its answer in words, composed by rule from the numbers."""

import math
from collections.abc import Mapping

from jax_mnist.analysis.comparison import Comparison, Quote, field_name
from jax_mnist.analysis.markup import code, count, escape, interval, listing, signed
from jax_mnist.analysis.statistics import LEVEL, Estimate

MAX_NAMES = 3  # in a title
MAX_FIELDS = 4
MAX_INTERVALS = 2


def title(study: Comparison) -> str:
    """Returns what is compared and on which data; Markdown."""
    names = list(study.all_variants)
    data = escape(study.data)
    if len(names) == 1:
        return f"{code(names[0])} on {data}"
    if len(names) <= MAX_NAMES:
        return f"{listing([code(name) for name in names])} compared on {data}"
    of = ""
    if 0 < len(study.varied) <= MAX_FIELDS:
        of = f" of {listing([field_name(field) for field in study.varied])}"
    return f"{len(names)} variants{of} compared on {data}"


def answer(study: Comparison, quote: Quote = code) -> str:
    """Returns what is shown to differ, by how much and at which confidence, and what is not.

    Args:
      study: The study.
      quote: Writes the name of a variant or a split; the rest is plain text.
    """
    sentences = [_highest(study, quote)]
    if any(math.isfinite(effect.low) for effect in study.effects.values()):
        sentences += _differences(study, quote)
    elif study.effects:
        sentences.append(
            "No difference can be tested: that takes two shared seeds with unequal differences."
        )
    if study.verdicts:
        sentences.append(_claims(study))
    return " ".join(sentences)


def _highest(study: Comparison, quote: Quote) -> str:
    names = study.best or list(study.variants)
    accuracy = study.accuracies[names[0]]
    what = "have" if len(names) > 1 else "has"
    what += " the highest mean accuracy" if study.best else " a mean accuracy"
    sure = f" (95 % interval {interval(accuracy)})"
    sure = sure if len(names) == 1 and math.isfinite(accuracy.low) else ""
    verb = "," if study.best else " of"
    where = f"on {study.counted_images(quote)}"
    return f"{listing([quote(n) for n in names])} {what}{verb} {accuracy.mean:.3f} % {where}{sure}."


def _differences(study: Comparison, quote: Quote) -> list[str]:
    effects, baseline = study.effects, quote(study.baseline)
    shown = {name: effect for name, effect in effects.items() if effect.p < LEVEL}
    level = f"{100 - 100 * LEVEL:.0f} % confidence"
    if len(effects) > 1:
        level += f" after Holm's correction for {count(len(effects), 'comparison')}"
    sentences = []
    for what, sign in (("more", 1), ("less", -1)):
        if some := {name: effect for name, effect in shown.items() if sign * effect.mean > 0}:
            are = "are" if len(some) > 1 else "is"
            sentences.append(
                f"{_effects(some, quote)} {are} shown to be {what} accurate than {baseline}, at "
                f"{level}."
            )
    if rest := {name: effect for name, effect in effects.items() if name not in shown}:
        names = listing([quote(name) for name in rest])
        sentence = f"{names} {'are' if len(rest) > 1 else 'is'} not shown to differ from {baseline}"
        if not shown:
            sentence += f" at {level}"
        ends = [e for r in rest.values() for e in (r.low, r.high) if math.isfinite(e)]
        if ends:
            sentence += (
                f": the 95 % {'intervals' if len(rest) > 1 else 'interval'} of the "
                f"{'differences reach' if len(rest) > 1 else 'difference reaches'} from "
                f"{signed(min(ends))} to {signed(max(ends))} percentage points"
            )
        sentences.append(f"{sentence}.")
    return sentences


def _effects(effects: Mapping[str, Estimate], quote: Quote) -> str:
    """Names variants with their differences, largest first; of a few with the intervals too."""
    texts: list[str] = []
    for name, effect in sorted(effects.items(), key=lambda item: -abs(item[1].mean)):
        text = signed(effect.mean) + " percentage points" * (not texts)
        if len(effects) <= MAX_INTERVALS:
            text += f", 95 % interval {interval(effect, signed)}"
        texts.append(f"{quote(name)} ({text})")
    return listing(texts)


def _claims(study: Comparison) -> str:
    found = [verdict.verdict for verdict in study.verdicts]
    if len(found) == 1:
        claim = study.verdicts[0].claim
        return f"The original's claim that {claim[0].lower()}{claim[1:]} is {found[0]}."
    parts = [
        f"{found.count(verdict)} {'are' if found.count(verdict) > 1 else 'is'} {verdict}"
        for verdict in ("supported", "contradicted", "undecided", "not in this study")
        if verdict in found
    ]
    return f"Of the {len(found)} claims of the original, {listing(parts)}."
