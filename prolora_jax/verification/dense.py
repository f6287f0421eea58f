"""The method in dense float64 NumPy, for `verify`: slow, plain, and sharing no code with the rest.

Written from method.md alone, by other means than `linalg`, `basis`, `similarity` and `projection`:
LAPACK's SVD of the weight instead of Gram and eigh, dense updates instead of factors, rotations as
plane rotations. Nothing of this package is imported here.

Cost: two thin SVDs of the weights and about a dozen products of a dense update with a basis; 10 s
for 1280 x 5120 on one core (with one BLAS thread: several on busy cores take many times that).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Matrix = Float[np.ndarray, "out in"]
Span = Float[np.ndarray, "dim k"]

UNDETERMINED_GAP = 1e-9
"""Below this even two float64 decompositions give different spans: nothing can be compared.

Such a cut must carry the flag `clustered-cut` (docs/method.md 2)."""

NUMERICAL_TOLERANCE = 1e-6
"""Rank rule `numerical`: sigma_i > 1e-6 sigma_1 (method.md 1)."""


@dataclass(frozen=True)
class DenseResult:
    """One arm applied to one dense update.

    Attributes:
        delta_t: the update for the target, float64 `(out, in)`.
        k_source: retained rank of the source weight.
        k_target: retained rank of the target weight.
        phi_left: similarity of the out-side spans.
        phi_right: similarity of the in-side spans.
        chance_left: similarity of unrelated spans of these ranks on the out side.
        chance_right: the same on the in side.
        gap_source: (s_k - s_{k+1}) / s_1 of the source weight at its cut; 1 when nothing is cut.
        gap_target: the same of the target weight.
    """

    delta_t: Matrix
    k_source: int
    k_target: int
    phi_left: float
    phi_right: float
    chance_left: float
    chance_right: float
    gap_source: float
    gap_target: float

    @property
    def undetermined(self) -> bool:
        """Whether a span depends on rounding even in float64."""
        return min(self.gap_source, self.gap_target) < UNDETERMINED_GAP


def recompute(
    method: str,
    source_weight: Matrix,
    target_weight: Matrix,
    delta: Matrix,
    rule: tuple[str, float | None],
    pair_rank: str = "max",
    *,
    rotation_min_cos: float = 0.1,
) -> DenseResult:
    """One arm of method.md 3 from the weights, dense and in float64.

    Args:
        method: `copy`, `subspace`, `null-space`, `prolora`, `prolora-full` or `rotation`.
        source_weight: weight that the update was trained on.
        target_weight: weight that it goes to.
        delta: the update, scale included.
        rule: `("energy", e)`, `("rank", k)`, `("fraction", f)` or `("numerical", None)`.
        pair_rank: both bases retain the larger rank (`max`), or each its `own`.
        rotation_min_cos: pairs of principal vectors below this cosine are left still.

    Returns:
        The result, with similarities and the gaps at the cuts.
    """
    u_s, s_s, v_s = _svd(source_weight)
    u_t, s_t, v_t = _svd(target_weight)
    k_s, k_t = _retained(s_s, rule), _retained(s_t, rule)
    if pair_rank == "max":
        k_s = k_t = max(k_s, k_t)
    out, width = delta.shape
    square = out == width
    gaps = _gap(s_s, k_s, square), _gap(s_t, k_t, square)
    u_s, v_s, u_t, v_t = u_s[:, :k_s], v_s[:, :k_s], u_t[:, :k_t], v_t[:, :k_t]
    moved = _arm(method, (u_s, u_t), (v_s, v_t), delta.astype(np.float64), rotation_min_cos)
    larger = max(k_s, k_t)
    phis = _phi(u_s, u_t), _phi(v_s, v_t)
    return DenseResult(moved, k_s, k_t, *phis, larger / out, larger / width, *gaps)


def _svd(weight: Matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thin SVD `(u, s, v)` in float64, of the tall orientation: LAPACK is faster on it."""
    tall = weight.shape[0] >= weight.shape[1]
    a, s, bt = np.linalg.svd((weight if tall else weight.T).astype(np.float64), full_matrices=False)
    return (a, s, bt.T) if tall else (bt.T, s, a)


def _retained(s: np.ndarray, rule: tuple[str, float | None]) -> int:
    kind, value = rule
    if not s.any() and kind in ("energy", "numerical"):
        return 0
    if kind == "energy" and value is not None:
        cumulative = np.cumsum(s**2)
        return int(np.argmax(cumulative >= value * cumulative[-1])) + 1
    if kind == "rank" and value is not None:
        return min(int(value), len(s))
    if kind == "fraction" and value is not None:
        return min(max(round(value * len(s)), 1), len(s))
    return int(np.sum(s > NUMERICAL_TOLERANCE * s[0]))


def _gap(s: np.ndarray, k: int, square: bool) -> float:
    # All of a square weight retained: nothing is cut. Of another, the long side is cut at zero.
    if k == 0 or (square and k == len(s)):
        return 1.0
    below = s[k] if k < len(s) else 0.0
    return float((s[k - 1] - below) / s[0]) if s[0] > 0 else 0.0


def _phi(source: np.ndarray, target: np.ndarray) -> float:
    smaller = min(source.shape[1], target.shape[1])
    return float(np.sum((source.T @ target) ** 2) / smaller) if smaller else 0.0


def _arm(
    method: str,
    left: tuple[np.ndarray, np.ndarray],
    right: tuple[np.ndarray, np.ndarray],
    delta: np.ndarray,
    min_cos: float,
) -> np.ndarray:
    def on_both_sides(
        operator: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    ) -> np.ndarray:
        # The right operators of method.md 3 are the transposes of the left ones with V for U.
        return operator(*right, operator(*left, delta).T).T

    if method == "copy":
        return delta
    if method == "rotation":
        return on_both_sides(lambda s, t, x: _rotated(s, t, x, min_cos))
    if method == "prolora-full":
        return on_both_sides(lambda s, t, x: _inside(s, t, x) + _outside(s, t, x))
    parts = {"subspace": (_inside,), "null-space": (_outside,), "prolora": (_inside, _outside)}
    return sum((on_both_sides(part) for part in parts[method]), np.zeros_like(delta))


def _inside(source: np.ndarray, target: np.ndarray, x: np.ndarray) -> np.ndarray:
    """P_t P_s x."""
    return target @ (target.T @ (source @ (source.T @ x)))


def _outside(source: np.ndarray, target: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(I - P_t)(I - P_s) x, the complements in the full space."""
    x = x - source @ (source.T @ x)
    return x - target @ (target.T @ x)


def _rotated(source: np.ndarray, target: np.ndarray, x: np.ndarray, min_cos: float) -> np.ndarray:
    """The product of the plane rotations that carry each principal vector f to its partner g.

    Planes of different pairs are orthogonal, so the product is the identity plus a sum over
    planes. In the frame (f, h), h = d / |d| with d = g - c f and |d|^2 = 1 - c^2, a plane adds

        (c - 1) f f^T - |d| f h^T + |d| h f^T + (c - 1) h h^T
        = (c - 1) f f^T - f d^T + d f^T - d d^T / (1 + c):

    no division by the sine, so equal directions (always present when k > dim / 2) are harmless.
    """
    b, c, at = np.linalg.svd(target.T @ source, full_matrices=False)
    moving = c >= min_cos
    c = np.minimum(c[moving], 1.0)
    f, g = (source @ at.T)[:, moving], (target @ b)[:, moving]
    d = g - c * f
    p, q = f.T @ x, d.T @ x
    return x + f @ ((c - 1)[:, None] * p - q) + d @ (p - q / (1 + c)[:, None])
