"""Rule 14 of docs/evidence.md: what pictures are like that targets make with refined adapters."""

from collections.abc import Mapping, Sequence

from prolora_jax.evaluation.laboratory.refine_verdicts import COPY, REFINE, RETEACH
from prolora_jax.evaluation.laboratory.summary import Row

ARMS = ("none", COPY, "delta", REFINE, RETEACH, "trained")
CELLS_PLANNED = 11 * 3
"""Of `refine_samples.yaml`: targets and adapters, one seed."""
FIDELITY_KEPT = 0.1

Cell = tuple[str, str, int]


def pictures(rows: Sequence[Row]) -> str:
    """A table of all cells, and what the rule says of them.

    Args:
        rows: results of `refine_samples.yaml`.

    Returns:
        Markdown.
    """
    cells = by_cell(rows)
    lines = [f"| target and adapter | {' | '.join(f'`{arm}`' for arm in ARMS)} |"]
    lines.append("|---" * (len(ARMS) + 1) + "|")
    for (target, adapter, _), arms in cells.items():
        shown = " | ".join(_shown(arms.get(arm)) for arm in ARMS)
        lines.append(f"| {target}, {adapter} | {shown} |")
    blurred = {place: arms for place, arms in cells.items() if loses_classes(arms)}
    gained = sum(gains(arms) for arms in cells.values())
    return "\n\n".join(
        (
            f"{len(cells)} of {CELLS_PLANNED} planned cells have run. Share of the gap in loss "
            "that is closed; squared MMD to held-out pictures with the effect (less is better); "
            "share of pictures whose class is the word they were made with.",
            "\n".join(lines),
            _verdict(blurred, gained),
        )
    )


def by_cell(rows: Sequence[Row]) -> dict[Cell, dict[str, Row]]:
    """Rows by cell and by arm; cells that lack what the rule compares are left out."""
    found: dict[Cell, dict[str, Row]] = {}
    for row in rows:
        place = (row["target"], row["adapter"], row["seed"])
        found.setdefault(place, {})[row["arm"]] = row
    needed = {COPY, REFINE, "trained"}
    return {place: arms for place, arms in found.items() if needed <= arms.keys()}


def gains(arms: Mapping[str, Row]) -> bool:
    """Whether `refine` brings more of the effect than `copy`, by the loss, in one cell's rows."""
    return _arrived(arms[REFINE]) > _arrived(arms[COPY])


def loses_classes(arms: Mapping[str, Row]) -> bool:
    """Whether `refine` gains in loss while its classes blur, in one cell's rows."""
    lost = _fidelity(arms["trained"]) - _fidelity(arms[REFINE])
    return gains(arms) and lost > FIDELITY_KEPT


def _verdict(blurred: Mapping[Cell, Mapping[str, Row]], gained: int) -> str:
    said = f"`refine` gains in loss on {gained} cells."
    if not blurred:
        return f"{said} On none of them its classes blur."
    named = ", ".join(
        f"{target}/{adapter} ({_fidelity(arms[REFINE]):.2f} of {_fidelity(arms['trained']):.2f})"
        for (target, adapter, _), arms in blurred.items()
    )
    return f"{said} **The classes blur on {named}: no success on pictures there.**"


def _shown(row: Row | None) -> str:
    if row is None:
        return ""
    if row["arm"] == RETEACH and row["kind"] == "style":
        return "as `copy`"
    like = row["samples"]
    return f"{_arrived(row):.3f}; {like['effect_mmd']:.3f}; {like['fidelity']:.2f}"


def _arrived(row: Row) -> float:
    return row["arrived"][0]


def _fidelity(row: Row) -> float:
    return row["samples"]["fidelity"]
