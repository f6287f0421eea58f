"""One budget of rank spread over many updates: the columns that hold most for what they cost."""

from collections.abc import Sequence

import numpy as np


def spread(sigmas: Sequence[np.ndarray], costs: Sequence[float], budget: float) -> list[int]:
    """How many singular columns each update keeps.

    Each keeps its first. Then columns are taken by their squared singular value over their cost,
    largest first, until one does not fit: no other choice of that cost holds more. Of equal ones
    the update that comes first has the first. Columns that are zero are left out.

    Args:
        sigmas: singular values of each update, descending.
        costs: of one column of each.
        budget: for all columns; the first ones may exceed it.

    Returns:
        Ranks, at least 1.
    """
    ranks, spent = [1] * len(sigmas), float(sum(costs))
    worth = [np.square(s, dtype=np.float64) / cost for s, cost in zip(sigmas, costs, strict=True)]
    places = [(-value, i, j) for i, own in enumerate(worth) for j, value in enumerate(own) if j]
    for value, i, _ in sorted(places):
        if value == 0.0 or spent + costs[i] > budget:
            break
        ranks[i] += 1
        spent += costs[i]
    return ranks
