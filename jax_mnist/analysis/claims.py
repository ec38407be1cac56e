"""The claims of the original system, and the rule that judges them by the runs of a study.

To add a claim about variants, add a `Claim` to `CLAIMS`; one about confused classes, to
`CONFUSED_PAIRS`.

Runs that diverged count in claims about variants: with the accuracy that they reached, and with
`run.COLLAPSE` as spread and drop. Claims about classes leave them out.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jax_mnist.analysis import statistics
from jax_mnist.analysis.run import confusion_matrix, final_accuracy, largest_drop, spread
from jax_mnist.analysis.statistics import LEVEL, Estimate, Measure, Variants
from jax_mnist.config import FIELDS, NO_EFFECT, with_defaults
from jax_mnist.runs.record import Record

ORIGINAL = ("bn", "l1", "l2", "l1_l2", "gbn", "gbn_l1", "gbn_l2", "gbn_l1_l2")  # its variants


class Claim(NamedTuple):
    """A claim that a variant has more (or less) of a measure than others, in percentage points."""

    text: str
    subject: str
    rivals: tuple[str, ...] = ORIGINAL
    measure: Measure = final_accuracy
    measured: str = "accuracy"
    more: bool = True
    exempt: tuple[str, ...] = ()  # variants that the claim names, but not as rivals


CLAIMS = (
    Claim("L2 has the highest accuracy", "l2"),
    Claim("L2 is the most stable", "l2", measure=spread, measured="spread", more=False),
    Claim("GBN alone is better than all but L2", "gbn", exempt=("l2",)),
    Claim(
        text="L1 and L2 together are unstable",
        subject="l1_l2",
        rivals=("bn", "l1", "l2"),
        measure=largest_drop,
        measured="largest drop",
    ),
    Claim("L2 is better than L1", "l2", ("l1",)),
)
CONFUSED_PAIRS = ((1, 7), (4, 9))  # digits that the original says are confused most
# "More regularization techniques can help in gaining the appropriate features to predict."
MORE_REGULARIZERS = "More regularisation techniques can help"
ADDED_TO = "gbn_l2"  # the original's variant that they are added to
# Fields of the config that turn a regulariser on, and those that say nothing of regularisation.
REGULARIZERS = tuple(f.name for f in FIELDS if f.optional and f.name != "distillation")
_NEUTRAL = {"name", "seed", "replicas", "data_dir", "source_dir", "dropout_position", *NO_EFFECT}


class Verdict(NamedTuple):
    """A claim and how the runs judge it.

    The effect is the difference to the closest rival, positive in the claimed direction. For a
    contradicted claim it is the difference to the rival that contradicts it most. For the claim of
    `judge_more_regularizers` the rival is the baseline.
    """

    claim: str
    measure: str
    unit: str
    rival: str
    effect: Estimate | None
    verdict: str


def verdict(effects: Sequence[Estimate]) -> str:
    """Applies the rule to differences in the claimed direction, with corrected p-values.

    Returns:
      `'supported'` if all of them are positive with p below 0.05, `'contradicted'` if one is
      negative with p below 0.05, else `'undecided'`.
    """
    if any(effect.mean < 0 and effect.p < LEVEL for effect in effects):
        return "contradicted"
    if effects and all(effect.mean > 0 and effect.p < LEVEL for effect in effects):
        return "supported"
    return "undecided"


def judge(variants: Variants) -> list[Verdict]:
    """Judges every claim of the original system by the rule of `verdict`.

    A variant is compared with its rivals by paired differences. Two classes are compared with every
    pair that is not in `CONFUSED_PAIRS`, by the mean errors per run, paired by seed. The verdict is
    `'not in this study'` if a variant of the claim is missing or shares no seed with the subject.

    Args:
      variants: All runs, including those that diverged.
    """
    verdicts = [judge_claim(claim, variants) for claim in CLAIMS]
    errors = _errors_between(statistics.without_diverged(variants))
    others = sorted(errors.keys() - set(CONFUSED_PAIRS))
    for pair in CONFUSED_PAIRS:
        effects = {
            f"{a} and {b}": statistics.paired_difference(errors[pair], errors[a, b])
            for a, b in others
            if pair in errors
        }
        text = f"{pair[0]} and {pair[1]} are confused more than any pair not named"
        effects = statistics.holm(effects)
        verdicts.append(_judged(text, "errors between them", "images", effects))
    return verdicts


def judge_claim(claim: Claim, variants: Variants) -> Verdict:
    """Judges one claim about variants, as `judge` does."""
    return _judged(claim.text, claim.measured, "pp", _effects(claim, variants))


def judge_more_regularizers(variants: Variants) -> Verdict | None:
    """Judges whether at least one regulariser that the original lacks helps.

    They are the variants that differ from `ADDED_TO` only by `REGULARIZERS` that it does
    not use. The claim is supported if one of them has a higher accuracy with p below 0.05 (paired
    by seed, Holm), contradicted if all of them have a lower one with such a p, and otherwise
    undecided.

    Returns:
      The verdict, with the effect of the best variant or, if the claim is supported, of the best
      that supports it. The measure names this variant. None if there is no such variant.
    """
    baseline = variants.get(ADDED_TO, {})
    names = [name for name, runs in variants.items() if _adds_regularizers(runs, baseline)]
    effects = statistics.differences(variants, final_accuracy, names, ADDED_TO)
    if not effects:
        return None
    helping = [name for name, effect in effects.items() if effect.mean > 0 and effect.p < LEVEL]
    harm = all(effect.mean < 0 and effect.p < LEVEL for effect in effects.values())
    best = max(helping or effects, key=lambda name: effects[name].mean)
    found = "supported" if helping else "contradicted" if harm else "undecided"
    measure = f"accuracy of {best}"
    return Verdict(MORE_REGULARIZERS, measure, "pp", ADDED_TO, effects[best], found)


def _adds_regularizers(runs: Mapping[int, Record], baseline: Mapping[int, Record]) -> bool:
    """Whether a variant uses `REGULARIZERS` that the baseline does not, and no more differs."""
    configs = [next(iter(of.values()))["config"] for of in (runs, baseline) if of]
    if len(configs) < 2:
        return False
    own, theirs = map(with_defaults, configs)
    changed = {field for field in own.keys() | theirs if own.get(field) != theirs.get(field)}
    changed -= _NEUTRAL
    return bool(changed) and all(f in REGULARIZERS and theirs[f] == 0 for f in changed)


def _effects(claim: Claim, variants: Variants) -> dict[str, Estimate]:
    """The differences to each rival in the claimed direction; empty if one is missing."""
    rivals = [name for name in claim.rivals if name not in (claim.subject, *claim.exempt)]
    sign = -1 if claim.more else 1  # because the subject is what is subtracted
    effects = statistics.differences(
        variants, lambda record: sign * claim.measure(record), rivals, claim.subject
    )
    complete = len(effects) == len(rivals) and variants.keys() >= set(claim.exempt)
    return effects if complete else {}


def _errors_between(variants: Variants) -> dict[tuple[int, int], list[float]]:
    """The errors between every two classes: for each seed, the mean over its runs."""
    means = []
    for seed in sorted({seed for runs in variants.values() for seed in runs}):
        runs = [runs[seed] for runs in variants.values() if seed in runs]
        means.append(np.mean([confusion_matrix(run) for run in runs], axis=0))
    pairs = itertools.combinations(range(len(means[0])), 2) if means else ()
    return {(a, b): [float(mean[a, b] + mean[b, a]) for mean in means] for a, b in pairs}


def _judged(claim: str, measure: str, unit: str, effects: Mapping[str, Estimate]) -> Verdict:
    if not effects:
        return Verdict(claim, measure, unit, rival="", effect=None, verdict="not in this study")
    found = verdict(list(effects.values()))
    decisive = [n for n, d in effects.items() if found != "contradicted" or d.p < LEVEL]
    rival = min(decisive, key=lambda name: effects[name].mean)
    return Verdict(claim, measure, unit, rival=rival, effect=effects[rival], verdict=found)
