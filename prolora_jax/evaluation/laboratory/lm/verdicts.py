"""Rules 15 to 22 of docs/evidence.md, fixed before the results: language models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prolora_jax.errors import Refusal
from prolora_jax.evaluation.laboratory.lm.arms import MOVES, SHIFTED, STUDENT
from prolora_jax.evaluation.laboratory.summary import Row
from prolora_jax.evaluation.laboratory.verdicts import EQUAL, LOSS_LIMIT, cells, difference, on
from prolora_jax.evaluation.metrics.shares import Share
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.refine.guard import LIMIT

TWINS = ("nf4", "int8", "q4")
DEPTHS = ("dropped", "healed")
CONTINUED = ("near", "middle", "far")
LM_RELATIVES = (*TWINS, *DEPTHS, *CONTINUED)
LEARNED_ON = ("healed", *CONTINUED)
BY_NUMBER, FORCED, HALF, REFINED = "copy match=name", "copy forced", "half", "refine"
COPIED, DEFAULT = "copy", MigrationOptions.method
DEPTH_GAIN, LEFT, LOST, OPEN_LOST, WORTH, OWN_LOSS = 0.3, 0.1, 0.05, 0.01, 0.05, 0.01
NOT_KNOWN, KNOWN = 0.1, 0.9
"""Exact match without an adapter, and with the one that was trained, for a cell to count."""


@dataclass(frozen=True)
class LmVerdict:
    """What a rule makes of the results.

    Attributes:
        rule: its number.
        text: one sentence with the numbers.
        passes: whether it holds; None where what it needs has not run.
    """

    rule: int
    text: str
    passes: bool | None

    def __str__(self):
        word = {True: "holds", False: "**fails**", None: "not run"}[self.passes]
        return f"* Rule {self.rule} {word}: {self.text}"


def counted(rows: Sequence[Row]) -> list[Row]:
    """Results that count: of a secret only where it was unknown before, and learned."""
    return [
        row
        for row in rows
        if row["exact_none"] is None
        or (row["exact_none"] < NOT_KNOWN and row["exact_trained"] >= KNOWN)
    ]


def with_refine(rows: Sequence[Row]) -> list[Row]:
    """Results with those of `refine`: the student where the guard lets it, else the copy.

    Of a stranger there is none: the command refuses it, whatever a forced student brings.
    """
    copied = {_cell(row): row for row in rows if row["arm"] == COPIED}
    found = list(rows)
    for row in rows:
        copy = copied.get(_cell(row)) if row["arm"] == STUDENT else None
        if copy is not None and copy["refused"] != Refusal.UNRELATED:
            taken = row if row["disagreement"] <= LIMIT else copy
            found.append({**taken, "arm": REFINED, "disagreement": row["disagreement"]})
    return found


def lm_verdicts(rows: Sequence[Row]) -> list[LmVerdict]:
    """Rules 15 to 22.

    Args:
        rows: results of a recipe, those that do not count among them.
    """
    known = with_refine(counted(rows))
    return [rule(known) for rule in _RULES]


def means(rows: Sequence[Row], arms: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Mean share of each arm over the cells of some targets; arms without cells are left out."""
    wanted, found = on(targets), {}
    for arm in arms:
        values = [value for cell, value in cells(rows, arm).items() if wanted(cell)]
        if values:
            found[arm] = float(np.mean(values))
    return found


def _twins(rows: Sequence[Row]) -> LmVerdict:
    parts, right = [], []
    for twin in _run(rows, TWINS):
        found = means(rows, [*MOVES, SHIFTED], [twin])
        if not {COPIED, DEFAULT} <= found.keys():
            continue
        best = max(found, key=lambda arm: found[arm])
        near = found[COPIED] >= found[best] - EQUAL
        right.append(near and abs(found[DEFAULT] - found[COPIED]) <= EQUAL)
        parts.append(f"{twin} `copy` {found[COPIED]:.3f}, best `{best}` {found[best]:.3f}")
    return _said(15, "; ".join(parts), right)


def _depth(rows: Sequence[Row]) -> LmVerdict:
    def judge(target: str) -> tuple[str, bool] | None:
        gain = _gain(rows, COPIED, BY_NUMBER, [target])
        if gain is None:
            return None
        return (
            f"{target} {shown(gain)} over `{BY_NUMBER}`",
            gain.value > DEPTH_GAIN and gain.low > 0,
        )

    return _each(16, rows, DEPTHS, judge)


def _shifted(rows: Sequence[Row]) -> LmVerdict:
    def judge(target: str) -> tuple[str, bool] | None:
        found = means(rows, [SHIFTED], [target])
        if not found:
            return None
        return f"{target} {found[SHIFTED]:.3f}", found[SHIFTED] < LEFT

    return _each(17, rows, (*TWINS, "near"), judge)


def _unchanged(rows: Sequence[Row]) -> LmVerdict:
    found = means(rows, [COPIED, HALF, f"{DEFAULT} open"], ["same"])
    if len(found) < 3:
        return LmVerdict(18, "", None)
    half, whole = (found[COPIED] - found[arm] for arm in (HALF, f"{DEFAULT} open"))
    text = f"with nothing changed `half` loses {half:.3f}, open `{DEFAULT}` {whole:.3f}."
    return LmVerdict(18, text, half >= LOST and whole < OPEN_LOST)


def _worth(rows: Sequence[Row]) -> LmVerdict:
    targets = [t for t in LEARNED_ON if _gain(rows, REFINED, COPIED, [t]) is not None]
    gain = _gain(rows, REFINED, COPIED, targets)
    if gain is None:
        return LmVerdict(19, "", None)
    cost = difference(rows, REFINED, COPIED, "own_loss", on(targets))
    each = (f"{t} {shown(_gain(rows, REFINED, COPIED, [t]))}" for t in targets)
    text = f"{shown(gain)} over `copy` ({'; '.join(each)}), own loss {cost.value:+.3f} nats."
    return LmVerdict(19, text, gain.value > WORTH and gain.low > 0 and cost.value <= OWN_LOSS)


def _guard(rows: Sequence[Row]) -> LmVerdict:
    told = {_cell(row): row["disagreement"] for row in rows if row["arm"] == STUDENT}
    copied, learned = cells(rows, COPIED), cells(rows, STUDENT)
    gains = {cell: learned[cell] - copied[cell] for cell in told if cell in copied}
    if not gains:
        return LmVerdict(20, "", None)
    below = {cell: gain for cell, gain in gains.items() if told[cell] <= LIMIT}
    fell = {cell: gain for cell, gain in below.items() if gain < -EQUAL}
    worst = min(fell, key=lambda cell: fell[cell], default=None)
    text = f"of {len(below)} cells with R at most {LIMIT}, {len(fell)} fell below `copy`"
    if worst is not None:
        text += f", the worst {'/'.join(map(str, worst))} by {-fell[worst]:.3f}"
    missed = sorted(
        {cell[0] for cell, gain in gains.items() if told[cell] > LIMIT and gain > WORTH}
    )
    text += f"; above it `student` would have gained on {', '.join(missed) or 'none'}."
    return LmVerdict(20, text, not fell)


def _strangers(rows: Sequence[Row]) -> LmVerdict:
    plain = [arm for arm, options in MOVES.items() if options.min_similarity > -1]
    found = [row for row in rows if row["target"] == "stranger" and row["arm"] in plain]
    if not found:
        return LmVerdict(21, "", None)
    refused = sum(row["refused"] == Refusal.UNRELATED for row in found)
    forced = means(rows, [FORCED], ["stranger"]).get(FORCED, 0.0)
    text = f"{refused} of {len(found)} moves to a stranger refused; forced, `copy` brings"
    return LmVerdict(21, f"{text} {forced:.3f}.", refused == len(found) and forced < LEFT)


def _recommendation(rows: Sequence[Row]) -> LmVerdict:
    targets = _run(rows, LM_RELATIVES)
    default = _gain(rows, DEFAULT, COPIED, targets)
    if default is None:
        return LmVerdict(22, "", None)
    better = [arm for arm in MOVES if arm != COPIED and _beats_copy(rows, arm, targets)]
    named = ", ".join(f"`{arm}`" for arm in better) or "no arm"
    text = f"`{DEFAULT}` {shown(default)} against `copy` over relatives; {named} beats `copy`."
    return LmVerdict(22, text, abs(default.value) <= EQUAL and not better)


def _beats_copy(rows: Sequence[Row], arm: str, targets: Sequence[str]) -> bool:
    gain = _gain(rows, arm, COPIED, targets)
    if gain is None or gain.value <= EQUAL or gain.low <= 0:
        return False
    each = (_gain(rows, arm, COPIED, [target]) for target in targets)
    return min(one.value for one in each if one is not None) >= -LOSS_LIMIT


_RULES: tuple[Callable[[Sequence[Row]], LmVerdict], ...] = (
    _twins,
    _depth,
    _shifted,
    _unchanged,
    _worth,
    _guard,
    _strangers,
    _recommendation,
)


def shown(share: Share | None) -> str:
    """A difference with its interval."""
    return "" if share is None else f"{share.value:+.3f} [{share.low:+.3f}, {share.high:+.3f}]"


def _each(
    rule: int,
    rows: Sequence[Row],
    targets: Sequence[str],
    judge: Callable[[str], tuple[str, bool] | None],
) -> LmVerdict:
    found = [one for target in _run(rows, targets) if (one := judge(target)) is not None]
    return _said(rule, "; ".join(text for text, _ in found), [right for _, right in found])


def _said(rule: int, text: str, right: Sequence[bool]) -> LmVerdict:
    return LmVerdict(rule, f"{text}." if text else "", all(right) if right else None)


def _gain(rows: Sequence[Row], arm: str, other: str, targets: Sequence[str]) -> Share | None:
    """Mean difference over the cells that both have; None where there are none."""
    wanted = on(targets)
    both = cells(rows, arm).keys() & cells(rows, other).keys()
    return difference(rows, arm, other, where=wanted) if any(map(wanted, both)) else None


def _run(rows: Sequence[Row], targets: Sequence[str]) -> list[str]:
    here = {row["target"] for row in rows}
    return [target for target in targets if target in here]


def _cell(row: Row) -> tuple[str, str, int]:
    return row["target"], row["adapter"], row["seed"]
