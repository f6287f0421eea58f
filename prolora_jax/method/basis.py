"""The basis of a weight: its leading singular vectors, and how many of them to retain.

The retained rank `k` of the method comes from a `BasisRule`; `numerical_rank` is one of the rules.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from prolora_jax.method.decomposition import decompose

NUMERICAL_TOLERANCE = 1e-6
"""sigma_i counts when sigma_i > tolerance * sigma_1 (docs/method.md 2)."""

HALF_ROUNDING = 2.0**-10 / math.sqrt(12.0)
"""Standard deviation of float16's rounding error over the size of the number, at most."""


class BasisRule(NamedTuple):
    """How many singular vectors of a weight are retained (docs/method.md 2).

    Attributes:
        kind: `energy`: the smallest k with sum_{i<=k} s_i^2 >= value * sum s_i^2; `rank`: `value`
            of them; `fraction`: this share of `min(out, in)`, rounded, at least 1; `numerical`:
            as many as `numerical_rank` counts.
        value: None for `numerical`.
    """

    kind: Literal["energy", "rank", "fraction", "numerical"]
    value: float | None = None

    def retained(self, s: Float[np.ndarray, " n"]) -> int:
        """The retained rank k for singular values `s`.

        Args:
            s: singular values, descending, all `min(out, in)` of them.

        Returns:
            k in `0..min(out, in)`; 0 for a zero matrix under `energy` and `numerical`.

        Raises:
            ValueError: when the kind is unknown.
        """
        n = len(s)
        if self.kind == "numerical" or self.value is None:
            return numerical_rank(s)
        if self.kind == "energy":
            cumulative = np.cumsum(np.square(s, dtype=np.float64))
            if n == 0 or cumulative[-1] == 0.0:
                return 0
            return int(np.argmax(cumulative >= self.value * cumulative[-1])) + 1
        if self.kind == "rank":
            return min(int(self.value), n)
        if self.kind == "fraction":
            return min(max(round(self.value * n), 1), n)
        raise ValueError(f"rank rule {self.kind!r}: expected energy, rank, fraction or numerical")


STORED = BasisRule("energy", 0.95)
"""What the stored columns of the long side hold by default."""


class Extent(NamedTuple):
    """What a stored basis can serve: all singular values, and the columns of both sides."""

    s: Float[np.ndarray, " n"]
    columns: int


class Basis(NamedTuple):
    """Singular vectors of one weight, float32 (docs/method.md 2).

    The short side holds the full orthogonal matrix, the long side the leading columns; `s` holds
    all `min(out, in)` singular values. So every rank rule is served from one decomposition.
    """

    u: Float[np.ndarray, "out left"]
    s: Float[np.ndarray, " n"]
    v: Float[np.ndarray, "in right"]

    @property
    def extent(self) -> Extent:
        """Its singular values, and the largest k that both sides can serve."""
        return Extent(self.s, min(self.u.shape[1], self.v.shape[1]))


def compute_basis(weight: Float[np.ndarray, "out in"], rule: BasisRule = STORED) -> Basis:
    """Decompose a weight in float64 and keep enough columns for `rule` (float32).

    Args:
        weight: the matrix `(out, in)`.
        rule: how many columns of the long side to keep at least.

    Returns:
        The basis. `s` stays float64: rank rules are decided on it.
    """
    u, s, v = decompose(weight, rule.retained)
    return Basis(u.astype(np.float32, order="C"), s, v.astype(np.float32, order="C"))


def common_rank(source: int, target: int, pair_rank: str) -> tuple[int, int]:
    """(k_source, k_target) of a pair: both the larger one (`max`), or each its `own`."""
    larger = max(source, target)
    return (source, target) if pair_rank == "own" else (larger, larger)


def numerical_rank(s: Float[np.ndarray, " n"]) -> int:
    """Number of singular values above `NUMERICAL_TOLERANCE * s[0]`; 0 for a zero matrix."""
    return int(np.count_nonzero(s > NUMERICAL_TOLERANCE * s[0])) if len(s) else 0


def cut_angle(s: Float[np.ndarray, " n"], k: int, shape: tuple[int, int]) -> float:
    """Angle by which rounding the weight to float16 turns the span at its cut (docs/method.md 2).

    The typical one, in radians: arctan(noise / gap), where the gap is s_k - s_{k+1} and the noise
    what one rounding error has on average, `HALF_ROUNDING` times the weight's root mean square.

    Args:
        s: all singular values, descending.
        k: retained rank.
        shape: `(out, in)`. With k = min(out, in) nothing is cut on the short side and the long
            side is cut against zero; a square weight is then not cut at all.

    Returns:
        The angle: 0 when nothing is cut, pi / 2 where the singular values are equal.
    """
    n = len(s)
    if k == 0 or (k == n and shape[0] == shape[1]):
        return 0.0
    below = float(s[k]) if k < n else 0.0
    gap = float(s[k - 1]) - below
    if gap <= 0.0:
        return math.pi / 2
    noise = HALF_ROUNDING * float(np.linalg.norm(s)) / math.sqrt(shape[0] * shape[1])
    return math.atan2(noise, gap)
