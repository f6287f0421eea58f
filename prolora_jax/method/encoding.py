"""From projected factors to what a file holds: rank, scale, dtype (docs/method.md 6)."""

from typing import Literal, NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


RANK_STEP = 8
"""The smallest rank class; the others are its doubles. Zero rows pad a rank to its class."""


def rank_class(rank: int) -> int:
    """The smallest of 8, 16, 32, ... that is not below a rank."""
    size = RANK_STEP
    while size < rank:
        size *= 2
    return size


class HostFactors(NamedTuple):
    """The update `up @ down`, scale folded in: `down (rank, in)`, `up (out, rank)`."""

    down: np.ndarray
    up: np.ndarray

    @property
    def rank(self) -> int:
        """Number of columns."""
        return self.down.shape[0]


class OutputRank(NamedTuple):
    """Which rank an output module gets.

    Attributes:
        kind: `exact`: what the method leaves; `source`: the input's; `rank`: at most `value`;
            `energy`: the fewest columns that hold this share of the squared norm; `budget` and
            `mean`: every column, of which `spreading` takes as many bytes from a whole file, or as
            many columns on average over its modules.
        value: None for `exact` and `source`.
    """

    kind: Literal["exact", "source", "rank", "energy", "budget", "mean"]
    value: float | None = None

    @property
    def spreads(self) -> bool:
        """Whether a module's rank depends on the other modules of its file."""
        return self.kind in ("budget", "mean")

    def is_met_by(self, rank: int, rank_in: int) -> bool:
        """Whether factors of `rank` stay as they are, without looking at their numbers.

        Args:
            rank: of the factors.
            rank_in: of the input module.
        """
        return self.kind == "exact" or (self.kind == "source" and rank == rank_in)

    def at_most(self, rank: int, rank_in: int) -> int:
        """The largest rank that can come of factors of `rank`, whatever their numbers are."""
        if self.kind == "source":
            return min(rank_in, rank)
        return min(int(self.value), rank) if self.kind == "rank" and self.value else rank

    def columns(self, sigma: np.ndarray, rank_in: int) -> int:
        """How many columns of a singular form to keep.

        Args:
            sigma: singular values, descending.
            rank_in: rank of the input module, for `source`.

        Returns:
            At least 1 and at most `len(sigma)`.
        """
        limit = self.at_most(len(sigma), rank_in)
        if self.kind == "energy" and self.value is not None:
            cumulative = np.cumsum(np.square(sigma, dtype=np.float64))
            limit = int(np.argmax(cumulative >= self.value * cumulative[-1])) + 1
        return max(1, limit)


def pad_rank(factors: HostFactors, rank: int) -> HostFactors:
    """Zero columns up to `rank`: the update stays as it is."""
    missing = rank - factors.rank
    return HostFactors(
        np.pad(factors.down, ((0, missing), (0, 0))), np.pad(factors.up, ((0, 0), (0, missing)))
    )


def update_norm(factors: HostFactors) -> float:
    """Frobenius norm of `up @ down` in float64, from the rank x rank Gram matrices."""
    down, up = factors.down.astype(np.float64), factors.up.astype(np.float64)
    return max(float(np.sum((up.T @ up) * (down @ down.T))), 0.0) ** 0.5
