"""Tables of a sweep."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
RESAMPLES = 1000


def table(
    rows: Iterable[Row],
    *,
    measure: str = "arrived",
    columns: Sequence[str] = ("target",),
    name: Callable[[Row], str] = lambda row: row["arm"],
    digits: int = 3,
) -> str:
    """Means of a measure by arm and by what the columns say, as a Markdown table.

    Args:
        rows: results of a sweep.
        measure: see `number`.
        columns: fields that make a column.
        name: first cell of a row's line.
        digits: after the point.

    Returns:
        One line an arm; `0.91 [0.88, 0.93]` is the mean over cells and its 95 % bootstrap interval.
    """
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        value = number(row, measure)
        if value is not None:
            cells[name(row), " ".join(str(row[column]) for column in columns)].append(value)
    arms = list(dict.fromkeys(arm for arm, _ in cells))
    heads = list(dict.fromkeys(head for _, head in cells))
    lines = [f"| {measure} | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for arm in arms:
        shown = (_cell(cells.get((arm, head), []), digits) for head in heads)
        lines.append(f"| {arm} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def number(row: Row, measure: str) -> float | None:
    """A measure of one result; None where it was not measured.

    Args:
        row: the result.
        measure: `arrived`, `arrived_at_best`, `arrived_at_norm` or any other number of a result;
            `own_change`: growth of the loss on the target's own data over that without adapter;
            `skipped_share`: of modules left without adapter; `samples.NAME`: of pictures.

    Returns:
        The number; of an interval its middle.
    """
    if measure == "own_change":
        if row["own_loss"] is None:
            return None
        return row["own_loss"] / row["none"]["own_loss"] - 1
    if measure == "skipped_share":
        return row["skipped"] / (row["skipped"] + row["moved"])
    head, _, tail = measure.partition(".")
    value = row[head]
    if tail:
        value = None if value is None else value[tail]
    return value[0] if isinstance(value, list) else value


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of a mean."""
    array = np.asarray(values)
    rows = np.random.default_rng(seed).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.quantile(array[rows].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return ""
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    low, high = interval(values)
    return f"{mean} [{low:.{digits}f}, {high:.{digits}f}]"
