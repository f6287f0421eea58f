"""Norms of updates before and after a method, from the Gram matrices of both sides. NumPy only.

On the host, because a reduction on the device gives other bits in a batch of other size, and the
norms decide scales: a file's numbers must not depend on its neighbours.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

Grams = Float[np.ndarray | Any, "adapters rank rank"]
"""NumPy's, or the device's before they are fetched."""


class SideGrams(NamedTuple):
    """One side of a batch.

    Attributes:
        parts: one per summand of the method.
        total: of the rank columns themselves.
        inside: of their projection onto the source's span.
    """

    parts: tuple[Grams, ...]
    total: Grams
    inside: Grams


class Measured(NamedTuple):
    """Squared norms of each update of a batch, `(adapters,)` each, float64.

    Attributes:
        energies: of its four blocks under (P_s, Q_s), left side first: along-along, along-across,
            across-along, across-across. They add up to ||update||_F^2.
        before: of the update itself.
        after: of what the method made of it. Parts are orthogonal, so theirs add up.
    """

    energies: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    before: np.ndarray
    after: np.ndarray


def measure(left: SideGrams, right: SideGrams) -> Measured:
    """Squared norms before and after, from rank x rank Gram matrices.

    Args:
        left: of the `up` side.
        right: of the `down` side.
    """
    left, right = (
        SideGrams(tuple(map(_wide, side.parts)), _wide(side.total), _wide(side.inside))
        for side in (left, right)
    )
    up_out, down_out = left.total - left.inside, right.total - right.inside
    energies = (
        _squared(left.inside, right.inside),
        _squared(left.inside, down_out),
        _squared(up_out, right.inside),
        _squared(up_out, down_out),
    )
    after = [_squared(a, b) for a, b in zip(left.parts, right.parts, strict=True)]
    return Measured(energies, _squared(left.total, right.total), sum(after[1:], after[0]))


def _wide(grams: np.ndarray) -> np.ndarray:
    return np.asarray(grams, np.float64)


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # Rounding can leave a tiny negative number where the update is zero.
    return np.maximum((a * b).sum(axis=(1, 2)), 0.0)
