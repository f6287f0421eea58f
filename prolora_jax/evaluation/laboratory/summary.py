"""Tables of a sweep."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
Column = Callable[[Row], str]


def table(
    rows: Iterable[Row], *, measure: str = "arrived", columns: Sequence[str] = ("target", "kind")
) -> str:
    """Means of a measure by arm and by what the columns say, as a Markdown table.

    Args:
        rows: results of a sweep.
        measure: `arrived`, `arrived_at_best`, `arrived_at_norm`, or any other number of a result;
            `own_change` for how much the loss on the target's own data grew, as a share of the
            loss without adapter.
        columns: fields that make a column.

    Returns:
        One line an arm; `0.91 ±0.03 (9)`: mean, standard deviation and number of contests.
    """
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        value = number(row, measure)
        if value is not None:
            cells[row["arm"], " ".join(str(row[name]) for name in columns)].append(value)
    arms = list(dict.fromkeys(arm for arm, _ in cells))
    heads = list(dict.fromkeys(head for _, head in cells))
    lines = [f"| {measure} | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for arm in arms:
        shown = (_cell(cells.get((arm, head), [])) for head in heads)
        lines.append(f"| {arm} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def number(row: Row, measure: str) -> float | None:
    """A measure of one result; None where it was not measured."""
    if measure == "own_change":
        if row["own_loss"] is None:
            return None
        return row["own_loss"] / row["none"]["own_loss"] - 1
    value = row[measure]
    return value[0] if isinstance(value, list) else value


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ±{np.std(values):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread} ({len(values)})"
