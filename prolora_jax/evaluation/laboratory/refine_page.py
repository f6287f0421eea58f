"""What of docs/evidence.md is made from the sweep of `refine`: tables, and rules 8 to 13."""

from collections.abc import Sequence

from prolora_jax.evaluation.laboratory.refine_verdicts import (
    CHOOSING,
    COPY,
    REFINE,
    RETEACH,
    TESTING,
    WORTH_ON,
    guard_failures,
    guard_limit,
    missed_gains,
    try_refine_auto,
    try_teacher,
    try_worth,
)
from prolora_jax.evaluation.laboratory.summary import Row, table
from prolora_jax.evaluation.laboratory.verdicts import difference, on
from prolora_jax.evaluation.metrics.shares import Share

BY_BLOCK, BY_NAME = "copy match=block", "copy match=name"
PLANNED = 11 * 6 * 3
"""Cells of `refine_sweep.yaml`: targets, adapters, seeds."""


def refine(rows: Sequence[Row]) -> str:
    """Tables, and what the rules make of them.

    Args:
        rows: results of `refine_sweep.yaml`.
    """
    moved = [row for row in rows if row["control"] not in ("none", "trained")]
    concepts = [row for row in rows if row["kind"] == "concept"]
    done = {(row["target"], row["adapter"], row["seed"]) for row in rows if row["arm"] == REFINE}
    adapters = sorted({adapter for _, adapter, _ in done})
    seeds = sorted({seed for _, _, seed in done})
    parts = [
        f"### Refine\n\n{len(done)} of {PLANNED} planned cells have run: adapters "
        f"{', '.join(adapters)}, seeds {', '.join(map(str, seeds))}. Intervals are over these, and "
        "wide. Share of the gap closed.",
        _disagreement(rows),
        table(moved),
        "By kind of adapter, over all targets.",
        table(moved, columns=("kind",)),
        "Growth of the target's own loss, concepts only.",
        table(concepts, measure="own_change"),
        "### Rules 8 and 9: worth their steps?",
        _worth(rows),
        "### Rules 10 and 11: the guard, and `auto`",
        _guard(rows),
        "### Rule 12: the teacher",
        _teacher(rows),
        "### Rule 13: `copy` by name or by alignment",
        _alignment(rows),
    ]
    return "\n\n".join(parts)


def _disagreement(rows: Sequence[Row]) -> str:
    found = {row["target"]: (row["disagreement"], row["phi_half"]) for row in rows}
    order = sorted(found, key=lambda target: found[target][0])
    lines = ["| pair | R | Φ |", "|---|---|---|"]
    for target in order:
        r, phi = found[target]
        lines.append(f"| {target} | {r:.3f} | {'' if phi is None else f'{phi:.3f}'} |")
    return "\n".join(lines)


def _worth(rows: Sequence[Row]) -> str:
    known = {row["target"] for row in rows if row["arm"] == REFINE}
    lines = ["| arm | cells of | gain over copy | own loss | passes |", "|---" * 5 + "|"]
    here = [target for target in WORTH_ON if target in known]
    cases = [(REFINE, "", [target]) for target in here]
    cases += [(REFINE, "", here)]
    cases += [(RETEACH, "concept", sorted(known - {"narrow"}))]
    for arm, kind, targets in cases:
        if not _common(rows, arm, targets, kind):
            continue
        trial = try_worth(rows, arm, targets, kind)
        cost = "" if trial.own_cost is None else f"{trial.own_cost:+.4f}"
        named = ", ".join(targets) if len(targets) <= len(WORTH_ON) else "all targets"
        verdict = "yes" if trial.passes else "no"
        lines.append(f"| {arm} | {named} | {_share(trial.gain)} | {cost} | {verdict} |")
    missing = [target for target in WORTH_ON if target not in known]
    if missing:
        lines.append(f"\nNot run yet: {', '.join(missing)}.")
    return "\n".join(lines)


def _common(
    rows: Sequence[Row], arm: str, targets: Sequence[str], kind: str, other: str = COPY
) -> bool:
    """Whether there is anything to compare."""
    wanted = [r for r in rows if r["target"] in targets and kind in ("", r["kind"])]
    both = [
        {(r["target"], r["adapter"], r["seed"]) for r in wanted if r["arm"] == name}
        for name in (arm, other)
    ]
    return bool(both[0] & both[1])


def _guard(rows: Sequence[Row]) -> str:
    known = {row["target"] for row in rows if row["arm"] == REFINE}
    limit = guard_limit(rows)
    missing = [pair for pair in (*CHOOSING, *TESTING) if pair not in known]
    open_ = f" Not run yet: {', '.join(missing)}." if missing else ""
    if limit is None:
        return f"No limit: the nearest pair failed already, so no `refine` of styles.{open_}"
    failures = guard_failures(rows, limit)
    said = f"The limit of R, from {', '.join(p for p in CHOOSING if p in known)}: {limit:.3f}."
    fell = ", ".join(f"{'/'.join(map(str, cell))} {loss:.3f}" for cell, loss in failures.items())
    held = f"It failed on {fell}." if failures else "It held on the pairs that test it."
    gained = ", ".join(f"{name} {gain:.3f}" for name, gain in missed_gains(rows, limit).items())
    above = f"Pairs not below it on which `refine` would have gained: {gained or 'none'}."
    text = f"{said} {held} {above}{open_}"
    trial = try_refine_auto(rows, limit)
    if not trial.gains:
        return text
    worst = min(trial.gains, key=lambda cell: trial.gains[cell])
    counts = {way: list(trial.ways.values()).count(way) for way in (REFINE, RETEACH, COPY)}
    taken = ", ".join(f"{way} {count}" for way, count in counts.items())
    return (
        f"{text}\n\n`auto` on {', '.join(p for p in TESTING if p in known)} took {taken}: "
        f"{_share(trial.gain)} over `copy`, worst cell {'/'.join(map(str, worst))} "
        f"{trial.gains[worst]:+.3f}. It {'ships' if trial.ships and not missing else 'waits'}."
    )


def _teacher(rows: Sequence[Row]) -> str:
    limit = guard_limit(rows)
    if limit is None:
        return "There is no limit below which teachers could be compared."
    trial = try_teacher(rows, limit)
    cost = "" if trial.own_cost is None else f", own loss {_share(trial.own_cost, digits=4)}"
    verdict = "is better by losses" if trial.is_better else "is not better by the rule"
    return f"`absolute` minus `effect` below the limit: {_share(trial.gain)}{cost}: it {verdict}."


def _alignment(rows: Sequence[Row]) -> str:
    # Not the plain copy: its blocks are found along the alignment where names mislead.
    if not _common(rows, BY_BLOCK, ["shifted"], "", BY_NAME):
        return "Not run yet."
    found = difference(rows, BY_BLOCK, BY_NAME, where=on(["shifted"]))
    return f"On `shifted`, blocks minus names: {_share(found)}."


def _share(share: Share, digits: int = 3) -> str:
    low, high = (f"{end:+.{digits}f}" for end in (share.low, share.high))
    return f"{share.value:+.{digits}f} [{low}, {high}]"
