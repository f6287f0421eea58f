"""Monotone one-to-one alignment of two lists by dynamic programming (docs/method.md 8).

Pure arithmetic on given tables: what fits (shapes, a hard constraint) and how alike things are
(scores). Who is aligned, and with which scores, is the business of `levels`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

WEAK_MARGIN = 0.05
"""Below this margin an alignment is flagged `weak-match`: the runner-up is almost as good."""

Pairs = tuple[tuple[int, int], ...]
Level = Literal["stages", "slots", "blocks", "layers", "module"]
Value = tuple[int, int, float]
"""What an alignment is worth: number of pairs, modules that fit, summed score; in that order."""

_NOTHING: Value = (0, 0, 0.0)
_FORBIDDEN = -np.inf


@dataclass(frozen=True)
class Alignment:
    """How the members of one place were paired.

    Attributes:
        slot: where, as a path of the target: `unet.up_blocks` (level `stages`),
            `unet.up_blocks.1.resnets` (`slots`), `unet.up_blocks.1.attentions.0` (`blocks`),
            `lm.model.layers` (`layers`), or a module's path (`module`).
        source_blocks: number of members in the source.
        target_blocks: number of members in the target.
        pairs: (source index, target index), ascending in both.
        margin: summed score of the best alignment minus that of the runner-up; None when shapes
            and order leave one alignment only.
        level: what was aligned: stages of a direction, slots of a stage, transformer blocks of a
            slot, layers, or one module with all of its role and shape.
        source_slot: the same place in the source when it has another path, else None.
    """

    slot: str
    source_blocks: int
    target_blocks: int
    pairs: Pairs
    margin: float | None
    level: Level = "blocks"
    source_slot: str | None = None

    @property
    def weak(self) -> bool:
        """Whether another alignment is almost as good."""
        return self.margin is not None and self.margin < WEAK_MARGIN


def align(scores: np.ndarray, fitting: np.ndarray | None = None) -> tuple[Pairs, float | None]:
    """Best monotone one-to-one alignment.

    Args:
        scores: `(source members, target members)`; `-inf` forbids a pair.
        fitting: number of modules of a pair that fit by shape, 0 forbids it; 1 everywhere if
            None. As many pairs as possible come first, then as many fitting modules as possible,
            then the summed score.

    Returns:
        The pairs (source index, target index): `min(scores.shape)` of them unless shapes forbid
        that; and the margin to the runner-up among alignments with as many pairs and fitting
        modules (None when there is no other).
    """
    fitting = np.ones(scores.shape, dtype=np.int64) if fitting is None else fitting
    table = np.where(fitting > 0, scores, _FORBIDDEN)
    best, pairs = _best(table, fitting)
    margins = []
    for i, j in pairs:
        # Every other alignment lacks at least one pair of the best one.
        without = table.copy()
        without[i, j] = _FORBIDDEN
        second, _ = _best(without, fitting)
        if second[:2] == best[:2]:
            margins.append(best[2] - second[2])
    return pairs, (float(min(margins)) if margins else None)


def only_alignment(fitting: np.ndarray) -> Pairs | None:
    """The pairs when shapes and order leave one alignment, whatever the scores; else None."""
    pairs, margin = align(np.zeros(fitting.shape), fitting)
    return pairs if margin is None else None


def fitting_modules(fitting: np.ndarray) -> int:
    """Largest number of fitting modules of an alignment with as many pairs as possible."""
    return _best(np.where(fitting > 0, 0.0, _FORBIDDEN), fitting)[0][1]


def _best(scores: np.ndarray, fitting: np.ndarray) -> tuple[Value, Pairs]:
    rows, columns = scores.shape
    # table[i][j]: the best with the first i of the source and the first j of the target
    table = [[_NOTHING] * (columns + 1) for _ in range(rows + 1)]
    for i in range(rows):
        for j in range(columns):
            value = max(table[i][j + 1], table[i + 1][j])
            if np.isfinite(scores[i, j]):
                value = max(value, _with_pair(table[i][j], float(scores[i, j]), int(fitting[i, j])))
            table[i + 1][j + 1] = value
    pairs, i, j = [], rows, columns
    while i and j:
        if table[i][j] == table[i - 1][j]:
            i -= 1
        elif table[i][j] == table[i][j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return table[rows][columns], tuple(reversed(pairs))


def _with_pair(value: Value, score: float, fitting: int) -> Value:
    return value[0] + 1, value[1] + fitting, value[2] + score
