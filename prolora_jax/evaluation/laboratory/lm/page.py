"""What of docs/evidence.md is made from the results about language models: tables, verdicts."""

from collections.abc import Sequence
from statistics import fmean

from prolora_jax.evaluation.laboratory.lm.arms import ARMS, NONE, STUDENT, TRAINED
from prolora_jax.evaluation.laboratory.lm.verdicts import (
    LM_RELATIVES,
    REFINED,
    counted,
    lm_verdicts,
    with_refine,
)
from prolora_jax.evaluation.laboratory.summary import Row, number

_OTHERS = ("same", "narrow", "stranger")
_MOVED = (*ARMS, REFINED)
_ALL = (NONE, TRAINED, *_MOVED)


def lm_page(title: str, rows: Sequence[Row]) -> str:
    """Tables of one laboratory, and what the rules make of them.

    Args:
        title: of the models.
        rows: results.
    """
    known = with_refine(counted(rows))
    done = {(row["target"], row["adapter"], row["seed"]) for row in rows}
    judged = {(row["target"], row["adapter"], row["seed"]) for row in known}
    seeds = sorted({seed for _, _, seed in done})
    order = [t for t in (*LM_RELATIVES, *_OTHERS) if any(t == cell[0] for cell in done)]
    relatives = [row for row in known if row["target"] in LM_RELATIVES]
    kinds = sorted({row["kind"] for row in relatives})
    parts = [
        f"### {title}",
        f"{len(done)} cells, seeds {', '.join(map(str, seeds))}, of which {len(judged)} count; "
        f"{_hours(rows)}. Share of the gap closed: mean over the cells that each arm has.",
        _table(known, "arrived", order),
        "The same by kind of adapter, relatives alone.",
        _table(relatives, "arrived", kinds, "kind"),
        "Exact match of a secret's values, greedily.",
        _table(known, "exact", order, digits=2, arms=_ALL),
        "Own loss of the target, nats a token.",
        _table(known, "own_loss", order, arms=_ALL),
        "R of the guard: " + _disagreements(rows, order),
        "\n".join(map(str, lm_verdicts(rows))),
    ]
    return "\n\n".join(parts)


def _table(
    rows: Sequence[Row],
    measure: str,
    heads: Sequence[str],
    field: str = "target",
    *,
    digits: int = 3,
    arms: Sequence[str] = _MOVED,
) -> str:
    """Means of a measure by arm and by what `field` says; arms that have none are left out."""
    lines = ["| arm | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for arm in arms:
        own = [row for row in rows if row["arm"] == arm]
        values = [
            [v for row in own if row[field] == head and (v := number(row, measure)) is not None]
            for head in heads
        ]
        if any(values):
            told = (f"{fmean(one):.{digits}f}" if one else "" for one in values)
            lines.append(f"| {arm} | " + " | ".join(told) + " |")
    return "\n".join(lines)


def _hours(rows: Sequence[Row]) -> str:
    moving = sum(row["cpu_seconds"] for row in rows) / 3600
    bases = {row["target"]: row["training_seconds"] for row in rows if row["arm"] == NONE}
    adapters = sum(row["training_seconds"] for row in rows if row["arm"] == TRAINED)
    training = (sum(bases.values()) + adapters) / 3600
    return (
        f"CPU hours: {training:.2f} for base models and adapters of the targets, {moving:.2f} for "
        "moving, teaching and judging"
    )


def _disagreements(rows: Sequence[Row], targets: Sequence[str]) -> str:
    found = {row["target"]: row["disagreement"] for row in rows if row["arm"] == STUDENT}
    return ", ".join(f"{t} {found[t]:.3f}" for t in targets if t in found) + "."
