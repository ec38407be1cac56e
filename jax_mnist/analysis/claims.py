"""The claims of the original system, judged by the runs of a study.

The rules, which `report.md` explains to its readers: a claim that a variant has more of something
than its rivals is supported if every difference is in the claimed direction with p below
`table.LEVEL` (paired by seed, Holm), contradicted if one is in the opposite direction with such a
p, and otherwise undecided. That more regularisers help is supported by one variant with a higher
accuracy, contradicted if all have a lower one, and otherwise undecided.

To add a claim about variants, add a `Claim` to `CLAIMS`; one about confused classes, to
`CONFUSED_PAIRS`.

Runs that diverged count in claims about variants: with the accuracy that they reached, and with
`table.COLLAPSE` as spread and drop. Claims about classes leave them out.
"""

import itertools
from typing import NamedTuple

import numpy as np
import pandas as pd

from jax_mnist.analysis import table
from jax_mnist.analysis.study import NO_SETTING, Study, confusion_matrix
from jax_mnist.config import FIELDS

ORIGINAL = ("bn", "l1", "l2", "l1_l2", "gbn", "gbn_l1", "gbn_l2", "gbn_l1_l2")  # its variants


class Claim(NamedTuple):
    """A claim that a variant has more (or less) of a column of the table than others."""

    text: str
    subject: str
    rivals: tuple[str, ...] = ORIGINAL
    column: str = "accuracy_percent"
    more: bool = True


CLAIMS = (
    Claim("L2 has the highest accuracy", "l2"),
    Claim("L2 is the most stable", "l2", column="spread_pp", more=False),
    Claim("GBN alone is better than all but L2", "gbn", tuple(n for n in ORIGINAL if n != "l2")),
    Claim("L1 and L2 together are unstable", "l1_l2", ("bn", "l1", "l2"), "largest_drop_pp"),
    Claim("L2 is better than L1", "l2", ("l1",)),
)
CONFUSED_PAIRS = ((1, 7), (4, 9))  # digits that the original says are confused most
# "More regularization techniques can help in gaining the appropriate features to predict."
MORE_REGULARIZERS = "More regularisation techniques can help"
ADDED_TO = "gbn_l2"  # the original's variant that they are added to
# Fields of the config that turn a regulariser on, and those that say nothing of regularisation.
REGULARIZERS = tuple(f.name for f in FIELDS if f.optional)
_NEUTRAL = {"data_dir", "source_dir", *NO_SETTING}

KINDS = ("supported", "contradicted", "undecided", "not in this study")  # of verdicts


class Verdict(NamedTuple):
    """A claim and how the runs judge it.

    The effect has `mean`, `low`, `high` and `p`. It is the difference to the closest rival, or to
    the one that contradicts the claim most, positive in the claimed direction; NaN if a rival
    shares no seed with the subject. The claim about more regularisers has that of the best variant.
    """

    claim: str
    measure: str
    unit: str
    verdict: str = "not in this study"
    rival: str = ""
    effect: pd.Series = pd.Series(np.nan, ["mean", "low", "high", "p"])


def of_original(study: Study) -> bool:
    """Whether all variants of the original are there, on its data."""
    return study.data == "MNIST" and {*study.all_variants} >= {*ORIGINAL}


def judge(study: Study) -> list[Verdict]:
    """Judges the claims of the original that the study has the variants for."""
    verdicts = []
    if of_original(study):
        for claim in CLAIMS:
            wide = table.by_seed(study.all_runs, claim.column, diverged=True)
            wide = wide[[*dict.fromkeys((claim.subject, *claim.rivals))]]
            measure = claim.column.rpartition("_")[0].replace("_", " ")
            sign = 1 if claim.more else -1
            verdicts.append(_judge(claim.text, measure, "pp", sign * wide, claim.subject))
        pairs = ["{} and {}".format(*pair) for pair in CONFUSED_PAIRS]
        for pair in pairs:
            errors = _errors_between_classes(study).drop(columns={*pairs} - {pair})
            text = f"{pair} are confused more than any pair not named"
            verdicts.append(_judge(text, "errors between them", "images", errors, pair))
    if study.data == "MNIST" and ADDED_TO in study.all_variants:
        verdicts += _judge_more_regularizers(study)
    return verdicts


def decide(effects: pd.DataFrame) -> str:
    """Applies the rule to differences in the claimed direction, with corrected p-values."""
    sure = effects.p < table.LEVEL
    if (sure & (effects["mean"] < 0)).any():
        return "contradicted"
    return "supported" if (sure & (effects["mean"] > 0)).all() else "undecided"


def _judge(text: str, measure: str, unit: str, wide: pd.DataFrame, subject: str) -> Verdict:
    """Judges whether one column of `wide` is above all others."""
    effects = table.differences(-wide, subject)  # the subject is what is subtracted
    if len(effects) < wide.shape[1] - 1:
        return Verdict(text, measure, unit)
    decision = decide(effects)
    decisive = effects[effects.p < table.LEVEL] if decision == "contradicted" else effects
    rival = decisive["mean"].idxmin()
    return Verdict(text, measure, unit, decision, rival, effects.loc[rival])


def _errors_between_classes(study: Study) -> pd.DataFrame:
    """For each seed (rows) and two classes (columns), the mean number of errors between them."""
    matrices = [confusion_matrix(record) for record in study.records]
    pairs = [*itertools.combinations(range(len(matrices[0])), 2)]
    errors = [{f"{a} and {b}": both[a, b] + both[b, a] for a, b in pairs} for both in matrices]
    return pd.DataFrame(errors).groupby(study.runs.seed.to_numpy()).mean()


def _judge_more_regularizers(study: Study) -> list[Verdict]:
    """Judges whether one of the variants helps that add `REGULARIZERS`, if there are any."""
    wide = table.by_seed(study.all_runs, diverged=True)
    names = [name for name in wide if _adds_regularizers(study, name)]
    effects = table.differences(wide[[ADDED_TO, *names]], ADDED_TO)
    if effects.empty:
        return []
    sure = effects.p < table.LEVEL
    helping, harmful = sure & (effects["mean"] > 0), sure & (effects["mean"] < 0)
    best = effects[helping | (not helping.any())]["mean"].idxmax()
    decision = "supported" if helping.any() else "contradicted" if harmful.all() else "undecided"
    measure = f"accuracy of {best}"
    return [Verdict(MORE_REGULARIZERS, measure, "pp", decision, ADDED_TO, effects.loc[best])]


def _adds_regularizers(study: Study, name: str) -> bool:
    """Whether a variant uses `REGULARIZERS` that `ADDED_TO` does not, and no more differs."""
    own, theirs = study.configs[name], study.configs[ADDED_TO]
    changed = {f for f in (own.keys() | theirs) - _NEUTRAL if own.get(f) != theirs.get(f)}
    return bool(changed) and all(f in REGULARIZERS and theirs[f] == 0 for f in changed)
