"""The rules of docs/evidence.md that turn results into defaults, fixed before the results.

A cell is one target x adapter x seed. Arms are compared by cell, and intervals are bootstraps over
cells: another adapter, not another picture, is what a user will bring.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prolora_jax.evaluation.laboratory.summary import Row, number
from prolora_jax.evaluation.metrics.shares import Share, paired_difference

RELATIVES = ("light", "pruned", "quick", "far")
EQUAL, LOSS_LIMIT, GATE_COST, STRICT_GATE_COST = 0.01, 0.02, 0.01, 0.05

Cell = tuple[str, str, int]


def cells(rows: Iterable[Row], arm: str, measure: str = "arrived") -> dict[Cell, float]:
    """A measure of an arm by cell; cells where it was not measured are left out."""
    found = {}
    for row in rows:
        value = number(row, measure) if row["arm"] == arm else None
        if value is not None:
            found[row["target"], row["adapter"], row["seed"]] = value
    return found


def difference(
    rows: Sequence[Row],
    arm: str,
    other: str,
    measure: str = "arrived",
    where: Callable[[Cell], bool] = lambda cell: True,
) -> Share:
    """Mean of `arm - other` over the cells that both have, with an interval over cells.

    Args:
        rows: results.
        arm: name of an arm.
        other: name of the arm it is compared with.
        measure: see `summary.number`.
        where: which cells count.

    Returns:
        Mean, and 95 % bootstrap interval.

    Raises:
        ValueError: the arms have no cell in common.
    """
    first, second = cells(rows, arm, measure), cells(rows, other, measure)
    common = sorted(cell for cell in first.keys() & second.keys() if where(cell))
    if not common:
        raise ValueError(f"{arm} and {other}: no cell has {measure} of both")
    arrays = (np.array([side[cell] for cell in common]) for side in (first, second))
    return paired_difference(*arrays)


def on(targets: Iterable[str]) -> Callable[[Cell], bool]:
    """Cells of some targets."""
    wanted = set(targets)
    return lambda cell: cell[0] in wanted


@dataclass(frozen=True)
class Trial:
    """Rule 1 applied to one arm.

    Attributes:
        arm: its name.
        overall: difference to `copy` over all cells of relatives.
        at_norm: the same at `copy`'s norm.
        by_target: mean difference on each relative.
    """

    arm: str
    overall: Share
    at_norm: Share
    by_target: Mapping[str, float]

    @property
    def passes(self) -> bool:
        """Whether it is recommended before `copy`."""
        better = self.overall.value > EQUAL and self.overall.low > 0
        return better and self.at_norm.value > 0 and min(self.by_target.values()) >= -LOSS_LIMIT


def try_arm(
    rows: Sequence[Row], arm: str, relatives: Sequence[str] = RELATIVES, copy: str = "copy"
) -> Trial:
    """Rule 1 for one arm."""
    return Trial(
        arm,
        difference(rows, arm, copy, where=on(relatives)),
        difference(rows, arm, copy, "arrived_at_norm", on(relatives)),
        {t: difference(rows, arm, copy, where=on([t])).value for t in relatives},
    )


def recommendation(trials: Iterable[Trial], copy: str = "copy") -> str:
    """The arm with the largest gain among those that pass rule 1; else `copy`."""
    passed = [trial for trial in trials if trial.passes]
    return max(passed, key=lambda t: t.overall.value).arm if passed else copy


def default_method(
    rows: Sequence[Row],
    gated: Sequence[str],
    relatives: Sequence[str] = RELATIVES,
    stranger: str = "stranger",
) -> tuple[str, dict[str, tuple[float, float]]]:
    """Rule 2 where `copy` is the recommendation: the gated arm equal to it that harms least.

    Args:
        rows: results.
        gated: names of the arms, each with its gate at the default.
        relatives: targets where something has to arrive.
        stranger: the target whose own data must not suffer.

    Returns:
        The arm, and of each arm the difference to `copy` on relatives and the mean absolute change
        of the loss on the stranger's own data.
    """
    facts = {}
    for arm in ("copy", *gated):
        change = np.abs(list(_on_target(cells(rows, arm, "own_change"), stranger).values()))
        gap = 0.0 if arm == "copy" else difference(rows, arm, "copy", where=on(relatives)).value
        facts[arm] = gap, float(change.mean())
    equal = [arm for arm, (gap, _) in facts.items() if gap >= -EQUAL]
    return min(equal, key=lambda arm: facts[arm][1]), facts


def best_setting(
    rows: Sequence[Row],
    settings: Mapping[str, str],
    present: str,
    relatives: Sequence[str] = RELATIVES,
) -> tuple[str, dict[str, float]]:
    """Rule 3: the setting with the highest mean on relatives; the present one if equal to it.

    Args:
        rows: results.
        settings: arm by setting, the smallest rank first.
        present: the setting that is the default now.
        relatives: targets that count.

    Returns:
        The setting, and the mean of each.
    """
    means = {
        name: float(np.mean([v for c, v in cells(rows, arm).items() if c[0] in relatives]))
        for name, arm in settings.items()
    }
    equal = [name for name, mean in means.items() if mean >= max(means.values()) - EQUAL]
    return (present if present in equal else equal[0]), means


@dataclass(frozen=True)
class Gate:
    """What one setting of the gate costs and does.

    Attributes:
        cost: mean share lost on relatives against no gate.
        skipped: share of the stranger's modules that it leaves without adapter.
    """

    cost: float
    skipped: float


def gates(
    rows: Sequence[Row],
    settings: Mapping[str, str],
    open_arm: str,
    relatives: Sequence[str] = RELATIVES,
    stranger: str = "stranger",
) -> dict[str, Gate]:
    """Rule 4's facts, by setting.

    Args:
        rows: results.
        settings: arm by setting, the loosest first.
        open_arm: the same arm without gate.
        relatives: targets where something has to arrive.
        stranger: target where nothing can.

    Returns:
        Cost and effect of each setting.
    """
    found = {}
    for name, arm in settings.items():
        strange = [r for r in rows if r["arm"] == arm and r["target"] == stranger]
        share = float(np.mean([number(r, "skipped_share") or 0.0 for r in strange]))
        cost = 0.0 - difference(rows, arm, open_arm, where=on(relatives)).value
        found[name] = Gate(cost, share)
    return found


def strictest(found: Mapping[str, Gate], present: str, cost: float = GATE_COST) -> str | None:
    """Rule 4: the setting within a cost that skips most of the stranger; None when all cost more.

    Of settings that skip as much it is the present one, as in rule 3, else the first.
    """
    fits = [name for name, gate in found.items() if gate.cost <= cost]
    if not fits:
        return None
    most = max(found[name].skipped for name in fits)
    best = [name for name in fits if found[name].skipped == most]
    return present if present in best else best[0]


@dataclass(frozen=True)
class AutoTrial:
    """Rule 7 applied: a choice that was made on some targets, judged on others.

    Attributes:
        arm: the best one on the targets that chose.
        limit: `auto` uses it for pairs whose mean Phi at k = half is below this, else `copy`.
        used_on: held-out targets on which it is used.
        gains: difference to `copy` at its norm on each held-out target.
    """

    arm: str
    limit: float
    used_on: tuple[str, ...]
    gains: Mapping[str, Share]

    @property
    def ships(self) -> bool:
        """Whether it beats `copy` on a held-out target and is worse than it on none."""
        beats = any(gain.low > 0 for gain in self.gains.values())
        return beats and not any(gain.high < 0 for gain in self.gains.values())


def try_auto(
    rows: Sequence[Row],
    arms: Sequence[str],
    near: str = "light",
    far: str = "far",
    held_out: Sequence[str] = ("pruned", "quick", "striped"),
    copy: str = "copy",
) -> AutoTrial:
    """Rule 7: the arm with the largest gain on `far`, for pairs nearer to it than to `near`.

    Args:
        rows: results.
        arms: candidates.
        near: a target that helps to choose.
        far: the other one.
        held_out: targets that judge.
        copy: name of the baseline.

    Returns:
        The choice and what came of it.
    """
    distance = {row["target"]: row["phi_half"] for row in rows}
    limit = (distance[near] + distance[far]) / 2
    arm = max(arms, key=lambda a: difference(rows, a, copy, "arrived_at_norm", on([far])).value)
    used = tuple(target for target in held_out if distance[target] < limit)
    gains = {t: difference(rows, arm, copy, "arrived_at_norm", on([t])) for t in used}
    return AutoTrial(arm, limit, used, gains)


def _on_target(values: Mapping[Cell, Any], target: str) -> dict[Cell, Any]:
    return {cell: value for cell, value in values.items() if cell[0] == target}
