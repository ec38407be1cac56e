"""The claims of the original system, and the rule that judges them by the runs of a study.

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
from jax_mnist.analysis.study import Study, confusion_matrix
from jax_mnist.config import FIELDS, NO_EFFECT

ORIGINAL = ("bn", "l1", "l2", "l1_l2", "gbn", "gbn_l1", "gbn_l2", "gbn_l1_l2")  # its variants


class Claim(NamedTuple):
    """A claim that a variant has more (or less) of a column of the table than others."""

    text: str
    subject: str
    rivals: tuple[str, ...] = ORIGINAL
    column: str = "accuracy_percent"
    measure: str = "accuracy"
    more: bool = True


CLAIMS = (
    Claim("L2 has the highest accuracy", "l2"),
    Claim("L2 is the most stable", "l2", column="spread_pp", measure="spread", more=False),
    Claim(
        "GBN alone is better than all but L2",
        subject="gbn",
        rivals=tuple(name for name in ORIGINAL if name != "l2"),
    ),
    Claim(
        "L1 and L2 together are unstable",
        subject="l1_l2",
        rivals=("bn", "l1", "l2"),
        column="largest_drop_pp",
        measure="largest drop",
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

KINDS = ("supported", "contradicted", "undecided", "not in this study")  # of verdicts
RULE = (
    "The rule: the subject of a claim is compared with each rival, paired by seed, and the "
    "p-values are corrected for the number of rivals (Holm). A claim is *supported* if every "
    f"difference is in the claimed direction with p below {table.LEVEL}, *contradicted* "
    "if one is in the opposite direction with such a p, and otherwise *undecided*; each claim "
    "is judged by itself. The correction makes this rule stricter than it need be for support, "
    "which takes all differences. The effect is the difference to the closest rival or, for a "
    "contradicted claim, to the rival that contradicts it most; it is positive in the claimed "
    "direction. Claims about the highest, the most stable or all refer to the original's eight "
    "variants. A pair not named is any pair of classes that the original does not call often "
    "confused; the errors between two classes are the mean over the runs of a seed."
)
RULE_OF_MORE = (
    "The claim that more regularisation techniques can help is about the variants that add to "
    f"`{ADDED_TO}` what the original does not have. It is *supported* if at "
    f"least one of them has a higher accuracy with p below {table.LEVEL} (paired by seed, "
    "corrected for their number with Holm's method), *contradicted* if all of them have a lower "
    "one with such a p, and otherwise *undecided*. Only these variants count in the correction, so "
    "that a p-value may differ from that of the same difference above. The effect is that of the "
    "best such variant, or of the best that supports the claim; the measure names it."
)


class Verdict(NamedTuple):
    """A claim and how the runs judge it; `rival` and `effect` are as `RULE` says.

    The effect has `mean`, `low`, `high` and `p`: NaN if a rival shares no seed with the subject.
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
    for claim in CLAIMS if of_original(study) else ():
        wide = table.by_seed(study.all_runs, claim.column, diverged=True)
        wide = wide[[*dict.fromkeys((claim.subject, *claim.rivals))]] * (1 if claim.more else -1)
        verdicts.append(_judge(claim.text, claim.measure, "pp", wide, claim.subject))
    pairs = ["{} and {}".format(*pair) for pair in CONFUSED_PAIRS]
    for pair in pairs if of_original(study) else ():
        errors = _errors_between_classes(study).drop(columns=[p for p in pairs if p != pair])
        text = f"{pair} are confused more than any pair not named"
        verdicts.append(_judge(text, "errors between them", "images", errors, pair))
    if study.data == "MNIST" and ADDED_TO in study.all_variants:
        verdicts += _judge_more_regularizers(study)
    return verdicts


def decide(effects: pd.DataFrame) -> str:
    """Applies `RULE` to differences in the claimed direction, with corrected p-values."""
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
    """Applies `RULE_OF_MORE` to the variants that add `REGULARIZERS`, if there are any."""
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
    changed = {field for field in own.keys() | theirs if own.get(field) != theirs.get(field)}
    changed -= _NEUTRAL
    return bool(changed) and all(f in REGULARIZERS and theirs[f] == 0 for f in changed)
