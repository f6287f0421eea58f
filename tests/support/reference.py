"""The method once more, naively: dense, explicit, float64, NumPy (and SciPy for one integral).

Written from method.md alone (section numbers below are that page's). Nothing here looks at the
package, so that agreement between the two means something. Complements are explicit bases, every
operator is a dim x dim matrix, and the direct rotation is built from polar factors or, where these
are not unique, from plane rotations with an angle.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq

ARMS = ("copy", "subspace", "null-space", "prolora", "prolora-full", "rotation")
NUMERICAL_RANK_RTOL = 1e-6  # method.md 1: sigma_i > 1e-6 sigma_1
ROTATION_MIN_COS = 0.1  # method.md 3: --rotation-min-cos
SAME_DIRECTION = 1e-14  # sine below which two principal vectors are one and span no plane

# ("energy", 0.9), ("rank", 320), ("fraction", 0.5), ("gap",), ("optimal", short, long), ...
Rule = tuple[str, *tuple[Any, ...]]


# --- bases and ranks (method.md 1) ------------------------------------------------------------


def svd(weight):
    """Full SVD `W = U[:, :n] diag(s) V[:, :n]^T` with square U and V (method.md 1)."""
    u, s, vt = np.linalg.svd(np.asarray(weight, np.float64), full_matrices=True)
    return u, s, vt.T


def rank_of(s, rule: Rule) -> int:
    """Retained rank by one of the rules of docs/method.md 2, from descending singular values."""
    s = np.asarray(s, np.float64)
    name, *value = rule
    if name == "energy":
        wanted = value[0] * np.sum(s**2)
        return next(k for k in range(len(s) + 1) if np.sum(s[:k] ** 2) >= wanted)
    if name == "rank":
        return min(int(value[0]), len(s))
    if name == "fraction":
        return round(value[0] * len(s))
    if name == "numerical":
        return sum(1 for value in s if value > NUMERICAL_RANK_RTOL * s[0])
    if name == "gap":
        half, most = rank_of(s, ("energy", 0.5)), rank_of(s, ("energy", 0.99))
        kept = [k for k in range(half, most + 1) if k < len(s)] or [half]
        ratios = [s[k] / s[k - 1] if k < len(s) else 0.0 for k in kept]
        return next(k for k, r in zip(kept, ratios, strict=True) if r <= min(ratios) + 1e-6)
    if name == "optimal":
        return max(sum(1 for x in s if x > omega(value[0] / value[1]) * np.median(s)), 1)
    raise ValueError(f"unknown rank rule {rule!r}")


def omega(beta: float) -> float:
    """Gavish and Donoho's factor (arXiv 1305.5870, eq. 11 and 5), by quadrature of the density."""
    low, high = (1 - beta**0.5) ** 2, (1 + beta**0.5) ** 2

    def density(t: float) -> float:
        return max((high - t) * (t - low), 0.0) ** 0.5 / (2 * np.pi * beta * t)

    def below(x: float) -> float:
        return quad(density, low, x, limit=200, epsabs=1e-11)[0] - 0.5

    median = float(brentq(below, low + 1e-9, high))  # pyright: ignore[reportArgumentType]
    edge = 2 * (beta + 1) + 8 * beta / (beta + 1 + (beta**2 + 14 * beta + 1) ** 0.5)
    return (edge / median) ** 0.5


def pair_ranks(s_source, s_target, rule: Rule, pair_rank: str = "max") -> tuple[int, int]:
    """`(k_s, k_t)` of a pair: one common maximum, or each its own (method.md 1)."""
    k_s, k_t = rank_of(s_source, rule), rank_of(s_target, rule)
    if pair_rank == "own":
        return k_s, k_t
    return max(k_s, k_t), max(k_s, k_t)


def rounding_angle(weight, k: int) -> float:
    """By what angle float16's rounding turns the span cut at k (docs/method.md 2)."""
    out, into = np.shape(weight)
    s = np.append(svd(weight)[1], 0.0)  # a side wider than the matrix is cut against zero
    if k == 0 or k == out == into:
        return 0.0
    noise = 2**-10 / np.sqrt(12) * np.sqrt(np.mean(np.square(weight, dtype=np.float64)))
    return float(np.arctan(noise / (s[k - 1] - s[k]))) if s[k - 1] > s[k] else np.pi / 2


class Split(NamedTuple):
    """A space in two: orthonormal columns of a span, and of its complement (method.md 1)."""

    span: np.ndarray
    perp: np.ndarray

    @property
    def on(self):
        """Projector `P = U U^T`."""
        return self.span @ self.span.T

    @property
    def off(self):
        """Projector on the complement in the *full* space, from its own explicit basis."""
        return self.perp @ self.perp.T


def split_vectors(vectors, k: int) -> Split:
    """The first k columns of a square orthogonal matrix, and the others."""
    return Split(vectors[:, :k], vectors[:, k:])


def split_basis(basis) -> Split:
    """Span of given columns (float32 is re-orthonormalised in float64), and its complement."""
    vectors, _, _ = svd(basis)
    return split_vectors(vectors, np.shape(basis)[1])


# --- operators of one side (method.md 3) ------------------------------------------------------


def parallel(source: Split, target: Split):
    """`P_t P_s` (method.md 3)."""
    return target.on @ source.on


def perpendicular(source: Split, target: Split):
    """`(I - P_t)(I - P_s)` (method.md 3)."""
    return target.off @ source.off


def polar(matrix):
    """Orthogonal polar factor by a dense SVD (method.md 3)."""
    x, _, yt = np.linalg.svd(matrix)
    return x @ yt


def principal_vectors(source: Split, target: Split):
    """`(F, c, G)`: paired directions of the spans and their cosines, descending (method.md 3)."""
    x, c, yt = np.linalg.svd(target.span.T @ source.span, full_matrices=False)
    return source.span @ yt.T, c, target.span @ x


def plane_rotation(f, g):
    """Rotation carrying the unit vector f to g in their plane, everything else still.

    The plane's frame is f and g made orthonormal to it; the angle comes from atan2, so neither
    small nor right angles lose digits.
    """
    identity = np.eye(len(f))
    cosine = f @ g
    e = g - cosine * f
    sine = np.linalg.norm(e)
    if sine < SAME_DIRECTION:
        return identity
    e = e / sine
    e = e - f * (f @ e)  # once more: the first pass loses digits when the sine is small
    frame = np.stack([f, e / np.linalg.norm(e)], axis=1)
    theta = np.arctan2(sine, cosine)
    turn = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    return identity + frame @ (turn - np.eye(2)) @ frame.T


def rotation_by_planes(source: Split, target: Split, min_cos: float = ROTATION_MIN_COS):
    """Product of the plane rotations of all pairs with cosine at least min_cos (method.md 3).

    Pairs below it, and the |k_s - k_t| unpaired directions, stay still.
    """
    f, c, g = principal_vectors(source, target)
    rotation = np.eye(f.shape[0])
    for i in range(len(c)):
        if c[i] >= min_cos:
            rotation = plane_rotation(f[:, i], g[:, i]) @ rotation
    return rotation


def rotation_by_polar(source: Split, target: Split):
    """Polar factor of `P_t P_s + (I-P_t)(I-P_s)`; unique for k_s = k_t and cosines above zero."""
    return polar(parallel(source, target) + perpendicular(source, target))


def direct_rotation(source: Split, target: Split, min_cos: float = ROTATION_MIN_COS):
    """Direct rotation (method.md 3): the polar factor where it is unique, else by planes."""
    _, c, _ = principal_vectors(source, target)
    equal = source.span.shape[1] == target.span.shape[1]
    if equal and np.all(c >= max(min_cos, ROTATION_MIN_COS)):
        return rotation_by_polar(source, target)
    return rotation_by_planes(source, target, min_cos)


# --- the arms (method.md 3) -------------------------------------------------------------------


class Pair(NamedTuple):
    """Both sides of a source and a target weight, split."""

    u_s: Split
    v_s: Split
    u_t: Split
    v_t: Split


def pair_of_weights(source, target, k_s: int, k_t: int) -> Pair:
    """Splits from two weights, complements out of their full SVDs (method.md 1)."""
    u_s, _, v_s = svd(source)
    u_t, _, v_t = svd(target)
    return Pair(
        split_vectors(u_s, k_s),
        split_vectors(v_s, k_s),
        split_vectors(u_t, k_t),
        split_vectors(v_t, k_t),
    )


def pair_of_bases(u_s, v_s, u_t, v_t) -> Pair:
    """Splits from the bases that the package was given."""
    return Pair(split_basis(u_s), split_basis(v_s), split_basis(u_t), split_basis(v_t))


def project(method: str, pair: Pair, delta, min_cos: float = ROTATION_MIN_COS):
    """Dense `ΔW_t` of one arm, the table of method.md 3 line by line."""
    delta = np.asarray(delta, np.float64)
    m_par, m_perp = parallel(pair.u_s, pair.u_t), perpendicular(pair.u_s, pair.u_t)
    n_par, n_perp = pair.v_s.on @ pair.v_t.on, pair.v_s.off @ pair.v_t.off
    if method == "copy":
        return delta
    if method == "subspace":
        return m_par @ delta @ n_par
    if method == "null-space":
        return m_perp @ delta @ n_perp
    if method == "prolora":
        return m_par @ delta @ n_par + m_perp @ delta @ n_perp
    if method == "prolora-full":
        return (m_par + m_perp) @ delta @ (n_par + n_perp)
    if method == "rotation":
        left = direct_rotation(pair.u_s, pair.u_t, min_cos)
        right = direct_rotation(pair.v_s, pair.v_t, min_cos)
        return left @ delta @ right.T
    raise ValueError(f"unknown method {method!r}")


# --- similarity (method.md 2) -----------------------------------------------------------------


def phi(source: Split, target: Split) -> float:
    """`‖U_s^T U_t‖_F^2 / min(k_s, k_t)` (method.md 2)."""
    n = min(source.span.shape[1], target.span.shape[1])
    return float(np.sum((source.span.T @ target.span) ** 2) / n)


def chance(k_s: int, k_t: int, dim: int) -> float:
    """Expected Φ of unrelated spans, `max(k_s, k_t) / dim` (method.md 2)."""
    return max(k_s, k_t) / dim


def corrected(value: float, level: float) -> float | None:
    """`(Φ - c) / (1 - c)`, not clamped; None when c = 1 (method.md 2)."""
    return None if level == 1 else (value - level) / (1 - level)


# --- energies and ranks out (method.md 4, 6) --------------------------------------------------


def block_energies(pair: Pair, delta) -> np.ndarray:
    """`‖.‖_F^2` of the blocks ∥∥, ∥⊥, ⊥∥, ⊥⊥ of ΔW under the source's (P_s, Q_s) (law 6)."""
    lefts, rights = (pair.u_s.on, pair.u_s.off), (pair.v_s.on, pair.v_s.off)
    return np.array([np.sum((p @ delta @ q) ** 2) for p in lefts for q in rights])


def truncate(delta, rank: int):
    """Best approximation of a rank by dense SVD (method.md 4)."""
    u, s, vt = np.linalg.svd(np.asarray(delta, np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def tail(delta, rank: int) -> float:
    """Frobenius norm of the singular values that `truncate` cuts off (law 6)."""
    s = np.linalg.svd(np.asarray(delta, np.float64), compute_uv=False)
    return float(np.sqrt(np.sum(s[rank:] ** 2)))


def projector_distance(a: Split, b: Split) -> float:
    """Spectral norm of the difference of two projectors: 0 for equal spans."""
    return float(np.linalg.norm(a.on - b.on, 2))
