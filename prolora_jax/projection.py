"""The arms of the method on factors (method.md 3).

One side of a module (left: the `out` axis with U_s, U_t; right: the `in` axis with V_s, V_t) is
three arrays. With the SVD of the overlap, C = U_t^T U_s = X diag(c) Y^T, put

    F = U_s Y   (principal vectors of the source span)      P_s = F F^T
    G = U_t X   (principal vectors of the target span)      P_t = G G^T
    c           (cosines of the principal angles)           F_i . G_j = c_i if i = j, else 0

and, for a block of columns B with p = F^T B and q = G^T B (c * p is row-wise),

    along   M_par  B = P_t P_s B                 = G (c * p)
    across  M_perp B = (I - P_t)(I - P_s) B      = B - F p - G (q - c * p)
    rotate  R B      (direct rotation)           = B + G (2 p - w) - F w,   w = (p + q) / (1 + c)

The right side is the same function with V_s, V_t, applied to `down.T`. Cost: O(dim * k * rank).
F and G have `K = max(k_s, k_t)` columns; missing ones are zero columns with c = 0, which add
nothing to any formula, so layers with different k can be padded to one shape and vmapped.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from prolora_jax import lora
from prolora_jax.linalg import matmul
from prolora_jax.lora import Factors

Method = Literal["copy", "subspace", "null-space", "prolora", "prolora-full", "rotation"]
METHODS: tuple[Method, ...] = (
    "copy",
    "subspace",
    "null-space",
    "prolora",
    "prolora-full",
    "rotation",
)

ROTATION_MIN_COS = 0.1
"""Principal pairs with a smaller cosine are left still: near 90 degrees R is ill-conditioned."""


class SideOperator(NamedTuple):
    """Principal vectors of a source and a target span of one axis, and their cosines."""

    f: Float[Array | np.ndarray, "dim k"]
    g: Float[Array | np.ndarray, "dim k"]
    c: Float[Array | np.ndarray, " k"]


class BlockEnergies(NamedTuple):
    """||block||_F^2 of an update under (P_s, Q_s); the four add up to ||update||_F^2.

    First word: left (out) side, second word: right (in) side.
    """

    along_along: Float[Array, ""]
    along_across: Float[Array, ""]
    across_along: Float[Array, ""]
    across_across: Float[Array, ""]


def prepare_side(
    source: Float[np.ndarray, "dim k_s"],
    target: Float[np.ndarray, "dim k_t"],
    width: int | None = None,
) -> SideOperator:
    """Principal vectors of two spans: SVD of their overlap in float64 on the host.

    Args:
        source: orthonormal columns of the source span.
        target: orthonormal columns of the target span.
        width: number of columns to pad F, G and c to; default `max(k_s, k_t)`.

    Returns:
        float32 `f (dim, width)`, `g (dim, width)`, `c (width,)`.
    """
    u_s, u_t = np.asarray(source, np.float64), np.asarray(target, np.float64)
    x, cosines, y_t = np.linalg.svd(u_t.T @ u_s, full_matrices=True)
    k_s, k_t = u_s.shape[1], u_t.shape[1]
    width = max(k_s, k_t) if width is None else width
    f = np.zeros((u_s.shape[0], width), np.float32)
    g = np.zeros_like(f)
    c = np.zeros(width, np.float32)
    f[:, :k_s] = u_s @ y_t.T
    g[:, :k_t] = u_t @ x
    c[: len(cosines)] = np.clip(cosines, 0.0, 1.0)
    return SideOperator(f, g, c)


def along(side: SideOperator, block: Float[Array, "dim cols"]) -> Float[Array, "dim cols"]:
    """P_t P_s B: the part inside the source span, carried into the target span."""
    return matmul(side.g, side.c[:, None] * matmul(side.f.T, block))


def across(side: SideOperator, block: Float[Array, "dim cols"]) -> Float[Array, "dim cols"]:
    """(I - P_t)(I - P_s) B: the part outside the source span, cut to outside the target span."""
    p, q = matmul(side.f.T, block), matmul(side.g.T, block)
    return block - matmul(side.f, p) - matmul(side.g, q - side.c[:, None] * p)


def rotate(
    side: SideOperator,
    block: Float[Array, "dim cols"],
    min_cos: float | Float[Array, ""] = ROTATION_MIN_COS,
) -> Float[Array, "dim cols"]:
    """R B, R the direct rotation (Davis & Kahan 1970) of the source span onto the target span.

    R is the orthogonal polar factor of P_t P_s + (I - P_t)(I - P_s). Pairs of principal vectors
    with c < min_cos, and the |k_s - k_t| unpaired ones, are left still; R is orthogonal anyway.
    """
    p, q = matmul(side.f.T, block), matmul(side.g.T, block)
    moves = (side.c >= min_cos)[:, None]
    w = (p + q) / (1.0 + side.c)[:, None]
    zero = jnp.zeros_like(w)
    turned = matmul(side.g, jnp.where(moves, 2.0 * p - w, zero))
    return block + turned - matmul(side.f, jnp.where(moves, w, zero))


def still_pairs(side: SideOperator, k_source: int, k_target: int, min_cos: float) -> int:
    """How many directions `rotate` leaves still: pairs below `min_cos` and unpaired ones."""
    paired = np.asarray(side.c)[: min(k_source, k_target)]
    return int(np.count_nonzero(paired < min_cos)) + abs(k_source - k_target)


def project(
    method: Method,
    left: SideOperator,
    right: SideOperator,
    factors: Factors,
    min_cos: float | Float[Array, ""] = ROTATION_MIN_COS,
) -> tuple[Factors, ...]:
    """One arm applied to one update; the sum of the returned parts is the result.

    Only `prolora` has two parts: they are orthogonal to each other on both sides, so that they
    can be recompressed one by one. `concat_parts` makes one pair of factors of them.

    Args:
        method: the arm.
        left: operators of the out axis.
        right: operators of the in axis.
        factors: `down (rank, in)`, `up (out, rank)`.
        min_cos: for `rotation`, see `rotate`.

    Returns:
        One or two `Factors` of the source rank.
    """
    up, down_t = factors.up, factors.down.T
    if method == "copy":
        return (factors,)
    if method == "rotation":
        return (Factors(rotate(right, down_t, min_cos).T, rotate(left, up, min_cos)),)
    inside = Factors(along(right, down_t).T, along(left, up))
    if method == "subspace":
        return (inside,)
    outside = Factors(across(right, down_t).T, across(left, up))
    if method == "null-space":
        return (outside,)
    if method == "prolora":
        return inside, outside
    return (Factors(inside.down + outside.down, inside.up + outside.up),)


def concat_parts(parts: tuple[Factors, ...]) -> Factors:
    """One pair of factors for the sum of one or two parts."""
    return parts[0] if len(parts) == 1 else lora.concat(*parts)


def block_energies(left: SideOperator, right: SideOperator, factors: Factors) -> BlockEnergies:
    """Squared norms of the four blocks of an update under the source's (P_s, Q_s)."""
    up_in, down_in = matmul(left.f.T, factors.up), matmul(right.f.T, factors.down.T)
    up_out = factors.up - matmul(left.f, up_in)
    down_out = factors.down.T - matmul(right.f, down_in)

    def energy(a: Array, b: Array) -> Array:
        return jnp.maximum(jnp.sum(matmul(a.T, a) * matmul(b.T, b)), 0.0)

    return BlockEnergies(
        energy(up_in, down_in),
        energy(up_in, down_out),
        energy(up_out, down_in),
        energy(up_out, down_out),
    )
