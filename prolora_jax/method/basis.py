"""Bases of a weight: its leading singular vectors, and how many of them to retain.

Three different ranks have three different functions: `numerical_rank`, `effective_rank` and
`stable_rank`. The retained rank `k` of the method comes from `choose_rank`.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from prolora_jax.method.decomposition import decompose

NUMERICAL_TOLERANCE = 1e-6
"""sigma_i counts when sigma_i > tolerance * sigma_1 (method.md 1)."""

HALF_ROUNDING = 2.0**-10 / math.sqrt(12.0)
"""Standard deviation of float16's rounding error over the size of the number, at most."""

STORED_ENERGY = 0.95
"""Share of the squared norm that the stored columns of the long side hold by default."""

Rule = tuple[str, float | None]
"""("energy", e), ("rank", k), ("fraction", f) or ("numerical", None)."""


class Extent(NamedTuple):
    """What a stored basis can serve: all singular values, and the columns of both sides."""

    s: Float[np.ndarray, " n"]
    columns: int


class Basis(NamedTuple):
    """Singular vectors of one weight, float32 (method.md 1).

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


def compute_basis(
    weight: Float[np.ndarray, "out in"], rule: Rule = ("energy", STORED_ENERGY)
) -> Basis:
    """Decompose a weight in float64 and keep enough columns for `rule` (float32).

    Args:
        weight: the matrix `(out, in)`.
        rule: how many columns of the long side to keep at least.

    Returns:
        The basis. `s` stays float64: rank rules are decided on it.
    """
    u, s, v = decompose(weight, lambda s: choose_rank(s, rule))
    return Basis(u.astype(np.float32, order="C"), s, v.astype(np.float32, order="C"))


def choose_rank(s: Float[np.ndarray, " n"], rule: Rule) -> int:
    """The rule's retained rank for singular values `s` (descending).

    Args:
        s: singular values, all `min(out, in)` of them.
        rule: `energy=e`: smallest k with sum_{i<=k} s_i^2 >= e * sum s_i^2; `rank=k`;
            `fraction=f` of `min(out, in)`, rounded, at least 1; `numerical`.

    Returns:
        k in `0..min(out, in)`; 0 for a zero matrix under `energy` and `numerical`.

    Raises:
        ValueError: when the rule's kind is unknown.
    """
    kind, value = rule
    n = len(s)
    if kind == "numerical" or value is None:
        return numerical_rank(s)
    if kind == "energy":
        cumulative = np.cumsum(np.square(s, dtype=np.float64))
        if n == 0 or cumulative[-1] == 0.0:
            return 0
        return int(np.argmax(cumulative >= value * cumulative[-1])) + 1
    if kind == "rank":
        return min(int(value), n)
    if kind == "fraction":
        return min(max(round(value * n), 1), n)
    raise ValueError(f"rank rule {kind!r}: expected energy, rank, fraction or numerical")


def common_rank(source: int, target: int, pair_rank: str) -> tuple[int, int]:
    """(k_source, k_target) of a pair: both the larger one (`max`), or each its `own`."""
    larger = max(source, target)
    return (source, target) if pair_rank == "own" else (larger, larger)


def numerical_rank(s: Float[np.ndarray, " n"]) -> int:
    """Number of singular values above `NUMERICAL_TOLERANCE * s[0]`; 0 for a zero matrix."""
    return int(np.count_nonzero(s > NUMERICAL_TOLERANCE * s[0])) if len(s) else 0


def effective_rank(s: Float[np.ndarray, " n"]) -> float:
    """Exponential of the entropy of s / sum(s) (Roy & Vetterli 2007); 0 for a zero matrix."""
    total = float(np.sum(s))
    if total == 0.0:
        return 0.0
    share = np.asarray(s, dtype=np.float64)[s > 0] / total
    return float(np.exp(-np.sum(share * np.log(share))))


def stable_rank(s: Float[np.ndarray, " n"]) -> float:
    """Squared Frobenius norm over squared spectral norm; 0 for a zero matrix."""
    if len(s) == 0 or s[0] == 0.0:
        return 0.0
    return float(np.sum(np.square(s, dtype=np.float64)) / float(s[0]) ** 2)


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
