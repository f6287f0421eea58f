"""Subspace similarity of two weights, corrected for chance (docs/method.md 3)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class SideSimilarity(NamedTuple):
    """Similarity of two spans in one space.

    Attributes:
        phi: ||A^T B||_F^2 / min(k_a, k_b), in [0, 1]; 1 when one span contains the other.
        chance: its expectation for unrelated spans, max(k_a, k_b) / dim.
    """

    phi: float
    chance: float

    @property
    def corrected(self) -> float | None:
        """(phi - chance) / (1 - chance), not clamped; None when both spans are everything."""
        return None if self.chance >= 1.0 else (self.phi - self.chance) / (1.0 - self.chance)


def side_similarity(
    a: Float[np.ndarray, "dim k_a"], b: Float[np.ndarray, "dim k_b"]
) -> SideSimilarity:
    """Similarity of the spans of two orthonormal column sets.

    Args:
        a: orthonormal columns, `(dim, k_a)`.
        b: orthonormal columns, `(dim, k_b)`.

    Returns:
        phi and its chance level. An empty span is similar to nothing: phi = 0.
    """
    dim, k_a = a.shape
    k_b = b.shape[1]
    smaller, larger = min(k_a, k_b), max(k_a, k_b)
    if smaller == 0:
        return SideSimilarity(0.0, larger / dim)
    overlap = np.asarray(b, np.float64).T @ np.asarray(a, np.float64)
    # Columns are stored in float32, so that equal spans can give 1 + 1e-7.
    phi = min(float(np.sum(np.square(overlap))) / smaller, 1.0)
    return SideSimilarity(phi, larger / dim)
