"""Low-rank updates as factors; a dense delta is never formed (except by `delta`, for tests).

`Factors` is a pytree and may carry leading batch axes under `jax.vmap`. Scale is folded in:
the update is exactly `up @ down`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from prolora_jax.linalg import matmul

GRAM_CUTOFF = 1e-14
"""Eigenvalues of a float64 Gram matrix below this share of the largest are rounding."""


class Factors(NamedTuple):
    """The update `up @ down` of an `(out, in)` weight."""

    down: Float[Array, "rank in"]
    up: Float[Array, "out rank"]


class Spectrum(NamedTuple):
    """Factors in singular form: columns sorted, `up` and `down` share sqrt(sigma) evenly."""

    factors: Factors
    sigma: Float[Array, " rank"]


def delta(factors: Factors) -> Float[Array, "out in"]:
    """The dense update; `O(out * in)` memory, meant for tests and small matrices."""
    return matmul(factors.up, factors.down)


def inner(a: Factors, b: Factors) -> Float[Array, ""]:
    """Frobenius inner product of two updates of one shape, in `O((out + in) rank^2)`."""
    return jnp.sum(matmul(a.up.T, b.up) * matmul(a.down, b.down.T))


def norm(factors: Factors) -> Float[Array, ""]:
    """Frobenius norm of the update, to about sqrt(eps) of the norm of its largest columns.

    It goes through squares: of columns that nearly cancel, only so much is left.
    """
    # Rounding can leave a tiny negative number where the update is zero.
    return jnp.sqrt(jnp.maximum(inner(factors, factors), 0.0))


def concat(a: Factors, b: Factors) -> Factors:
    """Factors of the sum of two updates: ranks add."""
    return Factors(jnp.concatenate([a.down, b.down], axis=0), jnp.concatenate([a.up, b.up], axis=1))


def spectrum(factors: Factors) -> Spectrum:
    """Singular form of an update: columns sorted by singular value.

    In float64 from rank x rank Gram matrices where 64-bit types are enabled
    (`with jax.enable_x64(True)`, as `execute` does), else in float32 by QR of both factors and an
    SVD of the small middle (error about 1e-6 of the update). The dtype is that of the input.

    Args:
        factors: `down (rank, in)`, `up (out, rank)`.

    Returns:
        Factors with `min(rank, out, in)` columns in descending order of `sigma`.
    """
    wide = jnp.zeros(()).dtype == jnp.float64  # whether 64-bit types are enabled here
    return _spectrum_by_gram(factors) if wide else _spectrum_by_qr(factors)


def _spectrum_by_qr(factors: Factors) -> Spectrum:
    q_up, r_up = jnp.linalg.qr(factors.up)
    q_down, r_down = jnp.linalg.qr(factors.down.T)
    x, sigma, y = jnp.linalg.svd(matmul(r_up, r_down.T), full_matrices=False)
    root = jnp.sqrt(sigma)
    up, down = matmul(q_up, x) * root[None], root[:, None] * matmul(y, q_down.T)
    return Spectrum(Factors(down, up), sigma)


def _spectrum_by_gram(factors: Factors) -> Spectrum:
    """Singular form from two rank x rank Gram matrices in float64.

    With S = up^T up = E diag(l) E^T, T = down down^T and h = E diag(sqrt(l)), the eigenvectors of
    h^T T h = Z diag(sigma^2) Z^T give the singular form

        up (E diag(1/sqrt(l)) Z) diag(sqrt(sigma)),    diag(1/sqrt(sigma)) (h Z)^T down.

    That is a change of gauge: the two brackets are inverse to each other, so the update itself
    keeps full accuracy whatever the error of l and sigma, as long as `up` has full rank.
    Directions with l below `GRAM_CUTOFF * max(l)` or sigma below sqrt(GRAM_CUTOFF) * max(sigma)
    are taken for zero: with a rank-deficient `up` that costs what `down` makes of its rounding
    (measured: 8e-7 of the update where the gauge has condition 1e2, 1e-4 at 1e4). Columns are
    scaled to equal norms first, so columns of different scale lose nothing. Only matmuls and
    small symmetric eigenproblems: both are batched on every backend, a QR is not.
    """
    dtype = factors.up.dtype
    columns = min(factors.up.shape[0], *factors.down.shape)
    up, down = factors.up.astype(jnp.float64), factors.down.astype(jnp.float64)
    up_norm, down_norm = jnp.linalg.norm(up, axis=0), jnp.linalg.norm(down, axis=1)
    used = (up_norm > 0) & (down_norm > 0)
    ratio = jnp.where(used, down_norm, 1.0) / jnp.where(used, up_norm, 1.0)
    up = up * jnp.where(used, jnp.sqrt(ratio), 0.0)[None]
    down = down * jnp.where(used, 1.0 / jnp.sqrt(ratio), 0.0)[:, None]
    lengths, e = jnp.linalg.eigh(matmul(up.T, up))
    root, inverse = _roots(lengths)
    h = e * root[None]
    squares, z = jnp.linalg.eigh(matmul(h.T, matmul(matmul(down, down.T), h)))
    sigma, z = jnp.sqrt(jnp.maximum(squares[::-1], 0.0)), z[:, ::-1]
    root, inverse_root = _roots(sigma, cutoff=GRAM_CUTOFF**0.5)
    new_up = matmul(up, matmul(e * inverse[None], z) * root[None])[:, :columns].astype(dtype)
    new_down = matmul((matmul(h, z) * inverse_root[None]).T, down)[:columns].astype(dtype)
    return Spectrum(Factors(new_down, new_up), sigma[:columns].astype(dtype))


def _roots(
    values: Float[Array, " n"], cutoff: float = GRAM_CUTOFF
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Square roots and their inverses; both 0 where a value is 0 to rounding."""
    kept = values > cutoff * jnp.max(values)
    safe = jnp.where(kept, values, 1.0)
    root = jnp.sqrt(safe)
    return jnp.where(kept, root, 0.0), jnp.where(kept, 1.0 / root, 0.0)


def recompress(factors: Factors, rank: int) -> Factors:
    """Best rank-`rank` approximation in the Frobenius norm (truncated singular form).

    The squared error is the sum of the dropped squared singular values.
    """
    kept = spectrum(factors).factors
    return Factors(kept.down[:rank], kept.up[:, :rank])
