"""The method in dense float64 NumPy, for `verify`: slow, plain, and sharing no code with the rest.

Written from method.md alone, by other means than `linalg`, `basis`, `similarity` and `projection`:
LAPACK's SVD of the weight instead of Gram and eigh, dense updates instead of factors, rotations as
plane rotations. Nothing of this package is imported here.

Cost: two thin SVDs of the weights and about a dozen products of a dense update with a basis; 10 s
for 1280 x 5120 on one core (with one BLAS thread: several on busy cores take many times that).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float

Matrix = Float[np.ndarray, "out in"]
Energies = tuple[float, float, float, float]
Range = tuple[int, int]

UNDETERMINED_GAP = 1e-9
"""Below this even two float64 decompositions give different spans: nothing can be compared.

Such a cut must carry the flag `clustered-cut` (docs/method.md 2)."""

NUMERICAL_TOLERANCE = 1e-6
"""Rank rule `numerical`: sigma_i > 1e-6 sigma_1 (docs/method.md 2)."""

WINDOW = (0.5, 0.99)
"""Rank rule `gap`: the shares of the energy that its candidates keep at least and at most."""

EQUAL_GAPS = 1e-6
"""Relative gaps of this difference are equal, and the first of them counts."""

MIDPOINTS = 100_000
"""Of the integral that gives the median of the Marchenko-Pastur law: seven digits and more."""

HALF_STEP = 2.0**-10 / math.sqrt(12.0)
"""Standard deviation of float16's rounding error over the size of the number (docs/method.md 2)."""

GAP_SLACK = 1e-7
"""The package's singular values may be off by 3e-8 of the largest (docs/method.md 2)."""

COSINE_SLACK = 1e-6
"""Cosines of spans that are stored in float32."""


@dataclass(frozen=True)
class Outside:
    """Takes columns of a matrix to what of them no cut decides; worker processes hand it over.

    Attributes:
        columns: orthonormal; None where every cut is the same.
        kept: whether what lies in their span stays, or what lies outside of it.
    """

    columns: np.ndarray | None = None
    kept: bool = False

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """What stays of `x`."""
        if self.columns is None:
            return x
        inside = self.columns @ (self.columns.T @ x)
        return inside if self.kept else x - inside


@dataclass(frozen=True)
class Certain:
    """What does not depend on how a cluster of equal singular values is cut.

    Attributes:
        left: takes what the target's left cluster reaches off the columns of a matrix.
        right: the same for the right cluster.
        blur: how far two cuts of the source's cluster can lie apart, as a norm.
    """

    left: Outside
    right: Outside
    blur: float

    def part(self, update: Matrix) -> Matrix:
        """What of an update lies outside of the target's clusters on both sides."""
        return self.right(self.left(update).T).T


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
        own_ranks: what the rule says for the source's and the target's weight alone.
        energies: shares of the update's squared norm in its four blocks (docs/method.md 7).
        still_left: directions that `rotation` leaves still, at least and at most; None otherwise.
        still_right: the same on the in side.
        angle: by which float16's rounding turns the spans at their cuts, at least and at most.
        certain: where a cut falls between equal singular values; None where none does.
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
    own_ranks: tuple[int, int]
    energies: Energies
    still_left: Range | None
    still_right: Range | None
    angle: tuple[float, float]
    certain: Certain | None = None

    @property
    def undetermined(self) -> bool:
        """Whether a span depends on rounding even in float64."""
        return min(self.gap_source, self.gap_target) < UNDETERMINED_GAP

    @property
    def source_undetermined(self) -> bool:
        """Whether the source's does."""
        return self.gap_source < UNDETERMINED_GAP


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
    """One arm of docs/method.md 5 from the weights, dense and in float64.

    Args:
        method: `copy`, `subspace`, `null-space`, `prolora`, `prolora-full` or `rotation`.
        source_weight: weight that the update was trained on.
        target_weight: weight that it goes to.
        delta: the update, scale included.
        rule: `("energy", e)`, `("rank", k)`, `("fraction", f)`, or with None for a value
            `"numerical"`, `"gap"`, `"optimal"`.
        pair_rank: both bases retain the larger rank (`max`), or each its `own`.
        rotation_min_cos: pairs of principal vectors below this cosine are left still.

    Returns:
        The result, with similarities and the gaps at the cuts.
    """
    left_s, s_s, right_s = decompose(source_weight)
    left_t, s_t, right_t = decompose(target_weight)
    out, width = delta.shape
    own = retained(s_s, rule, (out, width)), retained(s_t, rule, (out, width))
    k_s, k_t = (max(own), max(own)) if pair_rank == "max" else own
    delta = delta.astype(np.float64)
    gaps = _gap(s_s, k_s, out == width), _gap(s_t, k_t, out == width)
    angles = [_angle(s, k, delta.shape) for s, k in ((s_s, k_s), (s_t, k_t))]
    u_s, v_s, u_t, v_t = left_s[:, :k_s], right_s[:, :k_s], left_t[:, :k_t], right_t[:, :k_t]
    still_left = still_right = None
    if method == "rotation":
        still_left, still_right = (
            _still(*pair, rotation_min_cos) for pair in ((u_s, u_t), (v_s, v_t))
        )
    certain = None
    if min(gaps) < UNDETERMINED_GAP:
        sides = _certain(left_s, s_s, k_s), _certain(right_s, s_s, k_s)
        moved = delta - sides[0](delta), delta.T - sides[1](delta.T)
        blur = 4.0 * sum(float(np.linalg.norm(part)) for part in moved)
        certain = Certain(_certain(left_t, s_t, k_t), _certain(right_t, s_t, k_t), blur)
    return DenseResult(
        _arm(method, (u_s, u_t), (v_s, v_t), delta, rotation_min_cos),
        k_s,
        k_t,
        similarity(u_s, u_t),
        similarity(v_s, v_t),
        max(k_s, k_t) / out,
        max(k_s, k_t) / width,
        *gaps,
        own,
        _energies(u_s, v_s, delta),
        still_left,
        still_right,
        (max(low for low, _ in angles), max(high for _, high in angles)),
        certain,
    )


def decompose(weight: Matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thin SVD `(u, s, v)` in float64, of the tall orientation: LAPACK is faster on it."""
    tall = weight.shape[0] >= weight.shape[1]
    a, s, bt = np.linalg.svd((weight if tall else weight.T).astype(np.float64), full_matrices=False)
    return (a, s, bt.T) if tall else (bt.T, s, a)


def retained(s: np.ndarray, rule: tuple[str, float | None], shape: tuple[int, int]) -> int:
    """The rank that a rule of docs/method.md 2 retains, from descending singular values."""
    kind, value = rule
    if not s.any() and kind not in ("rank", "fraction"):
        return 0
    if kind == "gap":
        return _at_the_gap(s)
    if kind == "optimal":
        short, long = sorted(shape)
        return max(int(np.sum(s > _noise_ends(short / long) * np.median(s))), 1)
    if kind == "energy" and value is not None:
        cumulative = np.cumsum(s**2)
        return int(np.argmax(cumulative >= value * cumulative[-1])) + 1
    if kind == "rank" and value is not None:
        return min(int(value), len(s))
    if kind == "fraction" and value is not None:
        return min(max(round(value * len(s)), 1), len(s))
    return int(np.sum(s > NUMERICAL_TOLERANCE * s[0]))


def _at_the_gap(s: np.ndarray) -> int:
    """The rank with the largest drop to the next singular value, relative to its own."""
    held = np.cumsum(s**2)
    fewest, most = (1 + int(np.sum(held < share * held[-1])) for share in WINDOW)
    drops = {k: 1.0 - s[k] / s[k - 1] for k in range(fewest, min(most, len(s) - 1) + 1)}
    if not drops:
        return fewest
    return min(k for k, drop in drops.items() if drop >= max(drops.values()) - EQUAL_GAPS)


@cache
def _noise_ends(beta: float) -> float:
    """Gavish and Donoho's omega(beta), from the density of the Marchenko-Pastur law in x = s.

    With t = x^2 the density of t becomes sqrt((b - x^2) (x^2 - a)) / (pi beta x): its integral is
    summed up, and where it reaches one half of itself is the median.
    """
    ends = (1.0 - math.sqrt(beta)) ** 2, (1.0 + math.sqrt(beta)) ** 2
    edges = np.linspace(math.sqrt(ends[0]), math.sqrt(ends[1]), MIDPOINTS + 1)
    x = (edges[:-1] + edges[1:]) / 2
    inside = np.sqrt(np.maximum((ends[1] - x**2) * (x**2 - ends[0]), 0.0)) / (np.pi * beta * x)
    shares = np.append(0.0, np.cumsum(inside)) / np.sum(inside)
    median = float(np.interp(0.5, shares, edges)) ** 2
    root = math.sqrt(beta**2 + 14 * beta + 1)
    return math.sqrt((2 * (beta + 1) + 8 * beta / (beta + 1 + root)) / median)


def similarity(source: np.ndarray, target: np.ndarray) -> float:
    """`||U_s^T U_t||_F^2 / min(k_s, k_t)` (docs/method.md 3)."""
    smaller = min(source.shape[1], target.shape[1])
    return float(np.sum((source.T @ target) ** 2) / smaller) if smaller else 0.0


def _gap(s: np.ndarray, k: int, square: bool) -> float:
    # All of a square weight retained: nothing is cut. Of another, the long side is cut at zero.
    if k == 0 or (square and k == len(s)):
        return 1.0
    below = s[k] if k < len(s) else 0.0
    return float((s[k - 1] - below) / s[0]) if s[0] > 0 else 0.0


def _angle(s: np.ndarray, k: int, shape: tuple[int, int]) -> tuple[float, float]:
    """Angle by which rounding to float16 turns the span cut at k: between two limits."""
    if k == 0 or k == shape[0] == shape[1]:
        return 0.0, 0.0
    gap = s[k - 1] - (s[k] if k < len(s) else 0.0)
    noise = HALF_STEP * np.sqrt(np.sum(s**2) / (shape[0] * shape[1]))
    gaps = gap + GAP_SLACK * s[0], max(gap - GAP_SLACK * s[0], 0.0)
    low, high = (math.atan2(noise, g) if g > 0.0 else math.pi / 2 for g in gaps)
    return low, high


def _energies(u: np.ndarray, v: np.ndarray, delta: np.ndarray) -> Energies:
    """Shares of along-along, along-across, across-along, across-across; left side first."""
    whole, inner = float(np.sum(delta**2)), u.T @ delta
    if whole == 0.0:
        return 0.0, 0.0, 0.0, 0.0
    both = float(np.sum((inner @ v) ** 2)) / whole
    along_left, along_right = (float(np.sum(x**2)) / whole for x in (inner, delta @ v))
    return both, along_left - both, along_right - both, 1.0 - along_left - along_right + both


def _still(source: np.ndarray, target: np.ndarray, min_cos: float) -> Range:
    cosines = np.linalg.svd(target.T @ source, compute_uv=False)
    unpaired = abs(source.shape[1] - target.shape[1])
    low, high = (int(np.sum(cosines < min_cos + slack)) for slack in (-COSINE_SLACK, COSINE_SLACK))
    return low + unpaired, high + unpaired


def _certain(vectors: np.ndarray, s: np.ndarray, k: int) -> Outside:
    """Takes off what lies in the cluster of equal singular values that the cut at k falls into."""
    dim, n = vectors.shape
    if k == 0 or k >= dim:
        return Outside()  # the span is nothing, or everything
    near = UNDETERMINED_GAP * s[0]
    steps = s - np.append(s[1:], 0.0)  # the last one: down to what has no singular value at all
    if s[0] > 0.0 and steps[k - 1] >= near:
        return Outside()
    first, last = k - 1, k
    while first > 0 and steps[first - 1] <= near:
        first -= 1
    while last < n and steps[last - 1] <= near:
        last += 1
    if last == n and steps[n - 1] <= near:
        # It reaches zero: all that the columns before it do not span belongs to it.
        return Outside(vectors[:, :first], kept=True)
    return Outside(vectors[:, first:last])


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
        # The right operators of docs/method.md 5 are the transposes of the left ones with V for U.
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
