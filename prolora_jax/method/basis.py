"""The basis of a weight: its leading singular vectors, and how many of them to retain.

The retained rank `k` of the method comes from a `BasisRule`; `numerical_rank` is one of the rules.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from prolora_jax.method.decomposition import decompose
from prolora_jax.method.noise import threshold_factor

NUMERICAL_TOLERANCE = 1e-6
"""sigma_i counts when sigma_i > tolerance * sigma_1 (docs/method.md 2)."""

GAP_WINDOW = (0.5, 0.99)
"""Shares of the energy between which `gap` looks for a gap (docs/method.md 2)."""

GAP_TIE = 1e-6
"""Relative gaps that differ by less are equal: of several the smallest rank is taken."""

HALF_ROUNDING = 2.0**-10 / math.sqrt(12.0)
"""Standard deviation of float16's rounding error over the size of the number, at most."""


class BasisRule(NamedTuple):
    """How many singular vectors of a weight are retained (docs/method.md 2).

    Attributes:
        kind: `energy`: the smallest k with sum_{i<=k} s_i^2 >= value * sum s_i^2; `rank`: `value`
            of them; `fraction`: this share of `min(out, in)`, rounded, at least 1; `numerical`:
            as many as `numerical_rank` counts; `gap`: where the largest relative gap is
            (`gap_rank`); `optimal`: all above `value` times the median singular value, at
            least 1.
        value: None for `numerical` and `gap`; for `optimal` it comes from `for_shape`.
    """

    kind: Literal["energy", "rank", "fraction", "numerical", "gap", "optimal"]
    value: float | None = None

    def for_shape(self, shape: tuple[int, int]) -> "BasisRule":
        """The rule for weights of a shape: `optimal` depends on it, the others do not.

        Args:
            shape: `(out, in)`.
        """
        if self.kind != "optimal":
            return self
        return BasisRule("optimal", threshold_factor(min(shape), max(shape)))

    def retained(self, s: Float[np.ndarray, " n"]) -> int:
        """The retained rank k for singular values `s`.

        Args:
            s: singular values, descending, all `min(out, in)` of them.

        Returns:
            k in `0..min(out, in)`; 0 for a zero matrix, but under `rank` and `fraction`.

        Raises:
            ValueError: when the kind is unknown, or lacks its value.
        """
        n = len(s)
        if self.kind == "numerical":
            return numerical_rank(s)
        if self.kind == "gap":
            return gap_rank(s)
        if self.value is None:
            raise ValueError(f"rank rule {self.kind!r}: expected a value (`for_shape` gives one)")
        if self.kind == "energy":
            return _energy_rank(s, self.value)
        if self.kind == "optimal":
            strong = np.count_nonzero(s > self.value * np.median(s)) if n else 0
            return max(int(strong), min(numerical_rank(s), 1))
        if self.kind == "rank":
            return min(int(self.value), n)
        if self.kind == "fraction":
            return min(max(round(self.value * n), 1), n)
        raise ValueError(
            f"rank rule {self.kind!r}: expected energy, rank, fraction, numerical, gap or optimal"
        )


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
    u, s, v = decompose(weight, rule.for_shape(weight.shape).retained)
    return Basis(u.astype(np.float32, order="C"), s, v.astype(np.float32, order="C"))


def common_rank(source: int, target: int, pair_rank: str) -> tuple[int, int]:
    """(k_source, k_target) of a pair: both the larger one (`max`), or each its `own`."""
    larger = max(source, target)
    return (source, target) if pair_rank == "own" else (larger, larger)


def numerical_rank(s: Float[np.ndarray, " n"]) -> int:
    """Number of singular values above `NUMERICAL_TOLERANCE * s[0]`; 0 for a zero matrix."""
    return int(np.count_nonzero(s > NUMERICAL_TOLERANCE * s[0])) if len(s) else 0


def gap_rank(s: Float[np.ndarray, " n"]) -> int:
    """Where the largest relative gap is: the k with the largest (s_k - s_{k+1}) / s_k.

    Among the k from that of half of the energy to that of 99 % of it (`GAP_WINDOW`). All of them,
    k = n, is no cut and no candidate where there is another one.

    Args:
        s: singular values, descending.

    Returns:
        k; 0 for a zero matrix.
    """
    first, last = (_energy_rank(s, share) for share in GAP_WINDOW)
    last = min(last, len(s) - 1)
    if first == 0 or last <= first:
        return first
    kept, cut = s[first - 1 : last], s[first : last + 1]
    gaps = (kept - cut) / kept
    return first + int(np.argmax(gaps >= gaps.max() - GAP_TIE))


def _energy_rank(s: Float[np.ndarray, " n"], share: float) -> int:
    cumulative = np.cumsum(np.square(s, dtype=np.float64))
    if len(s) == 0 or cumulative[-1] == 0.0:
        return 0
    return int(np.argmax(cumulative >= share * cumulative[-1])) + 1


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
