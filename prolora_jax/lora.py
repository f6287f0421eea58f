"""Low-rank updates as factors; a dense delta is never formed (except by `delta`, for tests).

`Factors` is a pytree and may carry leading batch axes under `jax.vmap`. Scale is folded in:
the update is exactly `up @ down`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from prolora_jax.linalg import matmul


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
    """Frobenius norm of the update."""
    # Rounding can leave a tiny negative number where the update is zero.
    return jnp.sqrt(jnp.maximum(inner(factors, factors), 0.0))


def concat(a: Factors, b: Factors) -> Factors:
    """Factors of the sum of two updates: ranks add."""
    return Factors(jnp.concatenate([a.down, b.down], axis=0), jnp.concatenate([a.up, b.up], axis=1))


def spectrum(factors: Factors) -> Spectrum:
    """Singular form of an update by QR of both factors and an SVD of the small middle.

    Args:
        factors: `down (rank, in)`, `up (out, rank)`.

    Returns:
        Factors with `min(rank, out, in)` columns in descending order of `sigma`.
    """
    q_up, r_up = jnp.linalg.qr(factors.up)
    q_down, r_down = jnp.linalg.qr(factors.down.T)
    x, sigma, y = jnp.linalg.svd(matmul(r_up, r_down.T), full_matrices=False)
    root = jnp.sqrt(sigma)
    up = matmul(q_up, x) * root
    down = root[:, None] * matmul(y, q_down.T)
    return Spectrum(Factors(down, up), sigma)


def recompress(factors: Factors, rank: int) -> Factors:
    """Best rank-`rank` approximation in the Frobenius norm (truncated singular form).

    The squared error is the sum of the dropped squared singular values.
    """
    kept = spectrum(factors).factors
    return Factors(kept.down[:rank], kept.up[:, :rank])
