"""What of docs/evidence.md is made from the results about language models: tables, verdicts."""

from collections.abc import Sequence

from prolora_jax.evaluation.laboratory.lm.arms import ARMS, NONE, STUDENT, TRAINED
from prolora_jax.evaluation.laboratory.lm.verdicts import (
    LM_RELATIVES,
    REFINED,
    counted,
    lm_verdicts,
    means,
    with_refine,
)
from prolora_jax.evaluation.laboratory.summary import Row, number, table

_OTHERS = ("same", "narrow", "stranger")


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
    hours = sum(row["cpu_seconds"] for row in rows) / 3600
    moved = [row for row in known if row["arm"] not in (NONE, TRAINED)]
    order = [t for t in (*LM_RELATIVES, *_OTHERS) if any(t == cell[0] for cell in done)]
    parts = [
        f"### {title}",
        f"{len(done)} cells, seeds {', '.join(map(str, seeds))}, of which {len(judged)} count; "
        f"moving, teaching and judging took {hours:.2f} CPU hours, training not counted. Share of "
        "the gap closed: mean over adapters and seeds.",
        _shares(moved, order),
        "By kind of adapter, over relatives.",
        table([row for row in moved if row["target"] in LM_RELATIVES], columns=("kind",)),
        "What a secret's values are worth: exact match, greedily.",
        _exact(known, order),
        "Own loss of the target, nats a token.",
        table(known, measure="own_loss"),
        "R of the guard: " + _disagreements(rows, order),
        "\n".join(map(str, lm_verdicts(rows))),
    ]
    return "\n\n".join(parts)


def _shares(rows: Sequence[Row], targets: Sequence[str]) -> str:
    lines = ["| arm | " + " | ".join(targets) + " |", "|---" * (len(targets) + 1) + "|"]
    for arm in (*ARMS, REFINED):
        found = [means(rows, [arm], [target]).get(arm) for target in targets]
        if any(share is not None for share in found):
            told = ("" if share is None else f"{share:.3f}" for share in found)
            lines.append(f"| {arm} | " + " | ".join(told) + " |")
    return "\n".join(lines)


def _exact(rows: Sequence[Row], targets: Sequence[str]) -> str:
    asked = [row for row in rows if row["exact"] is not None]
    lines = ["| arm | " + " | ".join(targets) + " |", "|---" * (len(targets) + 1) + "|"]
    for arm in (NONE, TRAINED, *ARMS, REFINED):
        found = [
            [number(r, "exact") or 0.0 for r in asked if r["arm"] == arm and r["target"] == target]
            for target in targets
        ]
        if any(found):
            told = (f"{sum(values) / len(values):.2f}" if values else "" for values in found)
            lines.append(f"| {arm} | " + " | ".join(told) + " |")
    return "\n".join(lines)


def _disagreements(rows: Sequence[Row], targets: Sequence[str]) -> str:
    found = {row["target"]: row["disagreement"] for row in rows if row["arm"] == STUDENT}
    return ", ".join(f"{t} {found[t]:.3f}" for t in targets if t in found) + "."
