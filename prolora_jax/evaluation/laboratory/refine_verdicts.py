"""Rules 8 to 11 of docs/evidence.md, fixed before the results: what `refine` is worth, where."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prolora_jax.evaluation.laboratory.summary import Row, interval
from prolora_jax.evaluation.laboratory.verdicts import EQUAL, Cell, cells, difference, on
from prolora_jax.evaluation.metrics.shares import Share
from prolora_jax.refine.guard import LIMIT, way

GAIN, OWN_COST = 0.05, 0.01
WORTH_ON = ("pruned", "pruned-s1", "pruned-s2", "quick")
CHOOSING = ("pruned", "stranger", "light", "far", "shifted")
TESTING = ("quick", "striped", "blurred", "narrow", "pruned-s1", "pruned-s2")
REFINE, RETEACH, COPY = "refine", "reteach", "copy"


@dataclass(frozen=True)
class WorthTrial:
    """Rules 8 and 9 applied to one arm.

    Attributes:
        gain: mean share above `copy`'s.
        own_cost: how much larger the target's own loss is than under `copy`, over concepts, as a
            loss and not as a share; None where no cell is one.
    """

    gain: Share
    own_cost: float | None

    @property
    def passes(self) -> bool:
        """Whether the arm is worth its steps."""
        cheap = self.own_cost is None or self.own_cost <= OWN_COST
        return self.gain.value > GAIN and self.gain.low > 0 and cheap


def try_worth(rows: Sequence[Row], arm: str, targets: Iterable[str], kind: str = "") -> WorthTrial:
    """Rule 8, and rule 9 with `kind` `concept`.

    Args:
        rows: results of `refine_sweep.yaml`.
        arm: name of an arm.
        targets: whose cells count.
        kind: of the adapters that count; all if empty.

    Returns:
        Gain and cost.
    """
    wanted = on(list(targets))
    counted = [row for row in rows if kind in ("", row["kind"])]
    concepts = [row for row in counted if row["kind"] == "concept"]
    common = cells(concepts, arm, "own_loss").keys() & cells(concepts, COPY, "own_loss").keys()
    cost = None
    if any(wanted(cell) for cell in common):
        cost = difference(concepts, arm, COPY, "own_loss", wanted).value
    return WorthTrial(difference(counted, arm, COPY, where=wanted), cost)


def guard_limit(rows: Sequence[Row], pairs: Iterable[str] = CHOOSING) -> float | None:
    """Rule 10: R up to which no style fell below `copy` on the pairs that choose.

    Args:
        rows: results.
        pairs: targets that choose.

    Returns:
        The geometric mean of the first R that failed and the one before it; the present limit if
        none failed; None if the first one did, or where an R before it is not above zero.
    """
    found = _disagreements(rows)
    losses = _style_losses(rows)
    before = None
    for pair in sorted((p for p in pairs if p in found), key=lambda p: found[p]):
        if any(loss > EQUAL for cell, loss in losses.items() if cell[0] == pair):
            return None if before is None or before <= 0 else float(np.sqrt(before * found[pair]))
        before = found[pair]
    return LIMIT


def guard_failures(
    rows: Sequence[Row], limit: float, pairs: Iterable[str] = TESTING
) -> dict[Cell, float]:
    """Rule 10's test: cells of styles below the limit that fell more than .01 below `copy`.

    Args:
        rows: results.
        limit: from `guard_limit`.
        pairs: targets that test it.

    Returns:
        How far each fell; empty when the limit held.
    """
    found, tested = _disagreements(rows), set(pairs)
    return {
        cell: loss
        for cell, loss in _style_losses(rows).items()
        if cell[0] in tested and found[cell[0]] < limit and loss > EQUAL
    }


def missed_gains(rows: Sequence[Row], limit: float) -> dict[str, float]:
    """Rule 10's last sentence: pairs not below the limit on which `refine` would have gained.

    Args:
        rows: results.
        limit: from `guard_limit`.

    Returns:
        Mean gain over `copy` by target, where it is more than .01.
    """
    found = {}
    for target, r in _disagreements(rows).items():
        shares = [cells(rows, arm) for arm in (REFINE, COPY)]
        here = [cell for cell in shares[0].keys() & shares[1].keys() if cell[0] == target]
        if r >= limit and here:
            found[target] = float(np.mean([shares[0][cell] - shares[1][cell] for cell in here]))
    return {target: gain for target, gain in found.items() if gain > EQUAL}


@dataclass(frozen=True)
class RefineAutoTrial:
    """Rule 11 applied.

    Attributes:
        ways: what was taken in each cell.
        gains: difference to `copy`.
    """

    ways: Mapping[Cell, str]
    gains: Mapping[Cell, float]

    @property
    def gain(self) -> Share:
        """Mean of the gains, with an interval over cells."""
        values = list(self.gains.values())
        return Share(float(np.mean(values)), *interval(values))

    @property
    def ships(self) -> bool:
        """Whether no cell is more than .01 below `copy`, and something is gained."""
        return min(self.gains.values()) >= -EQUAL and self.gain.low > 0


def try_refine_auto(
    rows: Sequence[Row], limit: float, pairs: Iterable[str] = TESTING
) -> RefineAutoTrial:
    """Rule 11: the guard, then the adapter's kind by its triggers, then `copy`.

    Args:
        rows: results.
        limit: of R.
        pairs: targets that judge.

    Returns:
        What was taken in each cell, and what came of it.
    """
    found, judged = _disagreements(rows), set(pairs)
    shares = {arm: cells(rows, arm) for arm in (COPY, REFINE, RETEACH)}
    ways = {
        cell: way(found[cell[0]], style=style, limit=limit)
        for cell, style in _by_triggers(rows).items()
        if cell[0] in judged
    }
    gains = {cell: shares[arm][cell] - shares[COPY][cell] for cell, arm in ways.items()}
    return RefineAutoTrial(ways, gains)


def _disagreements(rows: Sequence[Row]) -> dict[str, float]:
    """R by target."""
    return {row["target"]: row["disagreement"] for row in rows}


def _by_triggers(rows: Sequence[Row]) -> dict[Cell, bool]:
    """Whether an adapter is a style by its triggers, not by its recipe: a user has no recipe."""
    return {_cell(row): row["student"]["style"] for row in rows if row["arm"] == RETEACH}


def _style_losses(rows: Sequence[Row]) -> dict[Cell, float]:
    """How far `refine` is below `copy`, by cell of a style."""
    refined, copied, styles = cells(rows, REFINE), cells(rows, COPY), _by_triggers(rows)
    return {
        cell: copied[cell] - share
        for cell, share in refined.items()
        if cell in copied and styles.get(cell, False)
    }


def _cell(row: Mapping[str, Any]) -> Cell:
    return row["target"], row["adapter"], row["seed"]


@dataclass(frozen=True)
class TeacherTrial:
    """Rule 12, as far as losses say it.

    Attributes:
        gain: share of `absolute` above that of `effect`, over cells with R below the limit.
        own_cost: how much larger the target's own loss is, over concepts; None without any.
    """

    gain: Share
    own_cost: Share | None

    @property
    def is_better(self) -> bool:
        """Whether the absolute teacher gains enough, and costs nothing beyond the interval."""
        cheap = self.own_cost is None or self.own_cost.low <= 0
        return self.gain.value > EQUAL and self.gain.low > 0 and cheap


ABSOLUTE = "refine teacher=absolute"


def try_teacher(rows: Sequence[Row], limit: float) -> TeacherTrial:
    """Rule 12: the absolute teacher against the effect's, within a domain.

    Args:
        rows: results.
        limit: of R.
    """
    found = _disagreements(rows)
    near = on([target for target, r in found.items() if r < limit])
    concepts = [row for row in rows if row["kind"] == "concept"]
    some = cells(concepts, ABSOLUTE, "own_loss").keys() & cells(concepts, REFINE, "own_loss").keys()
    cost = None
    if any(near(cell) for cell in some):
        cost = difference(concepts, ABSOLUTE, REFINE, "own_loss", near)
    return TeacherTrial(difference(rows, ABSOLUTE, REFINE, where=near), cost)
