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

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from prolora_jax import lora
from prolora_jax.linalg import matmul
from prolora_jax.lora import Factors, Spectrum

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
    columns = max(k_s, k_t) if width is None else width
    f = np.zeros((u_s.shape[0], columns), np.float32)
    g = np.zeros_like(f)
    c = np.zeros(columns, np.float32)
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
    with c < min_cos, and the |k_s - k_t| unpaired ones, are left still; R is orthogonal for any
    min_cos > 0 (at 0 the unpaired ones, padded with c = 0, would count as pairs).
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


def effective_method(
    method: Method, k_source: int, k_target: int, shape: tuple[int, int]
) -> Method | None:
    """The arm with the parts left out that are exactly zero for these ranks; None: all of it.

    A span that is empty has no part along it; one that fills its space leaves none across. So
    on a wide module with k = out, `prolora` is `subspace` (method.md 6, law 2), and rank r is
    enough where 2r columns would carry rounding errors only.
    """
    along_empty = min(k_source, k_target) == 0
    across_empty = max(k_source, k_target) >= min(shape)
    if method == "subspace":
        return None if along_empty else method
    if method == "null-space":
        return None if across_empty else method
    if method == "prolora" and along_empty and across_empty:
        return None
    if method == "prolora" and (along_empty or across_empty):
        return "null-space" if along_empty else "subspace"
    return method


def project(
    method: Method,
    left: SideOperator,
    right: SideOperator,
    factors: Factors,
    min_cos: float | Float[Array, ""] = ROTATION_MIN_COS,
) -> tuple[Factors, ...]:
    """One arm applied to one update; the sum of the returned parts is the result.

    Only `prolora` has two parts: they are orthogonal to each other on both sides, so that they
    can be recompressed one by one (`compress`).

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


def compress(parts: tuple[Factors, ...]) -> Spectrum:
    """Singular form of the sum of the parts of `project`, columns in descending order.

    The two parts of `prolora` have orthogonal ranges on both sides (span of P_t and its
    complement), so the singular triplets of the sum are the union of theirs: two rank-r
    problems instead of one of rank 2r, and exact (method.md 4).
    """
    spectra = [lora.spectrum(part) for part in parts]
    sigma = jnp.concatenate([s.sigma for s in spectra])
    order = jnp.argsort(-sigma)
    down = jnp.concatenate([s.factors.down for s in spectra], axis=0)[order]
    up = jnp.concatenate([s.factors.up for s in spectra], axis=1)[:, order]
    return Spectrum(Factors(down, up), sigma[order])


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


class Projected(NamedTuple):
    """A batch of projected updates.

    Attributes:
        factors: `down (batch, rank_out, in)`, `up (batch, out, rank_out)`.
        sigma: singular values `(batch, rank_out)` when the factors are in singular form.
        energies: of the input updates, each `(batch,)`.
    """

    factors: Factors
    sigma: Array | None
    energies: BlockEnergies


@partial(jax.jit, static_argnames=("method", "compressed"))
def project_batch(
    method: Method,
    left: SideOperator,
    right: SideOperator,
    factors: Factors,
    min_cos: float | Array = ROTATION_MIN_COS,
    *,
    compressed: bool = False,
) -> Projected:
    """`project` over a leading batch axis: many layers of one shape in one call.

    Args:
        method: the arm.
        left: `f, g (batch, out, k)`, `c (batch, k)`.
        right: `f, g (batch, in, k)`, `c (batch, k)`.
        factors: `down (batch, rank, in)`, `up (batch, out, rank)`; zero columns pad ranks.
        min_cos: for `rotation`.
        compressed: return the singular form, so that the caller can cut the rank.

    Returns:
        Factors of rank `rank`, or `2 rank` for `prolora`.
    """

    def one(left: SideOperator, right: SideOperator, factors: Factors) -> Projected:
        parts = project(method, left, right, factors, min_cos)
        energies = block_energies(left, right, factors)
        if compressed:
            whole = compress(parts)
            return Projected(whole.factors, whole.sigma, energies)
        joined = parts[0] if len(parts) == 1 else lora.concat(*parts)
        return Projected(joined, None, energies)

    return jax.vmap(one)(left, right, factors)
