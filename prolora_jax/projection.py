"""Prepared arms applied on the device (method.md 3): rank columns of many adapters at once.

A projection is linear in the rank columns, and every column is on its own. So the columns of a
whole batch of adapters are the rows of one block, `up.T` for the left side and `down` for the
right, and one side of one module costs two or three wide matrix products (see `operators`).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prolora_jax import lora
from prolora_jax.linalg import matmul
from prolora_jax.lora import Factors
from prolora_jax.operators import Form, SideOperator


class SideResult(NamedTuple):
    """One side of a batch.

    Attributes:
        parts: `(adapters, rank, dim)` each: one per summand of the arm.
        grams: Gram matrices `(adapters, rank, rank)` of the parts.
        total: of the block itself.
        inside: of its projection onto the source's span.
    """

    parts: tuple[Array, ...]
    grams: tuple[Array, ...]
    total: Float[Array, "adapters rank rank"]
    inside: Float[Array, "adapters rank rank"]


@partial(jax.jit, static_argnames=("form",))
def apply_side(
    form: Form, operator: SideOperator, rows: Float[Array, "adapters rank dim"]
) -> SideResult:
    """One side of an arm on the rank columns of some adapters.

    Args:
        form: how the operator is applied.
        operator: prepared matrices of this side.
        rows: `up` transposed, or `down`; zero rows pad ranks.

    Returns:
        The parts, and the Gram matrices that norms and block energies are made of.
    """
    block = rows.reshape(-1, rows.shape[-1])
    y = matmul(block, operator.analysis)
    taken = {"first": y[:, : form.first], "rest": y[:, form.first :], "all": y, "block": block}
    parts = []
    for part, synthesis in zip(form.parts, operator.synthesis, strict=True):
        x = matmul(taken[part.on], synthesis)
        parts.append((block + x if part.keep else x).reshape(rows.shape))
    total = _gram(rows)
    inside = _gram(taken["first"].reshape(*rows.shape[:2], form.first))
    inside = total - inside if form.outside else inside
    return SideResult(tuple(parts), tuple(map(_gram, parts)), total, inside)


def _gram(rows: Float[Array, "adapters rank dim"]) -> Float[Array, "adapters rank rank"]:
    return matmul(rows, jnp.swapaxes(rows, 1, 2))


class Measured(NamedTuple):
    """Squared norms of each update of a batch, `(adapters,)` each.

    Attributes:
        energies: of its four blocks under (P_s, Q_s), left side first: along-along, along-across,
            across-along, across-across. They add up to ||update||_F^2.
        before: of the update itself.
        after: of what the arm made of it. Parts are orthogonal, so theirs add up.
    """

    energies: tuple[Array, Array, Array, Array]
    before: Array
    after: Array


@jax.jit
def measure(left: SideResult, right: SideResult) -> Measured:
    """Squared norms before and after, from rank x rank Gram matrices."""

    def squared(a: Array, b: Array) -> Array:
        return jnp.maximum(jnp.sum(a * b, axis=(1, 2)), 0.0)

    up_out, down_out = left.total - left.inside, right.total - right.inside
    energies = (
        squared(left.inside, right.inside),
        squared(left.inside, down_out),
        squared(up_out, right.inside),
        squared(up_out, down_out),
    )
    after = [squared(a, b) for a, b in zip(left.grams, right.grams, strict=True)]
    return Measured(energies, squared(left.total, right.total), sum(after[1:], after[0]))


class Columns(NamedTuple):
    """Factors of a batch as rows, and their singular values where they are in singular form."""

    up: Float[Array, "adapters columns out"]
    down: Float[Array, "adapters columns in"]
    sigma: Float[Array, "adapters columns"] | None = None


@jax.jit
def join(left: SideResult, right: SideResult) -> Columns:
    """The sum of the parts: ranks add."""
    return Columns(jnp.concatenate(left.parts, axis=1), jnp.concatenate(right.parts, axis=1))


@jax.jit
def compress(left: SideResult, right: SideResult) -> Columns:
    """Singular form of the sum of an arm's parts, columns in descending order.

    The two parts of `prolora` have orthogonal ranges on both sides (span of P_t and its
    complement), so the singular triplets of the sum are the union of theirs: two rank-r
    problems instead of one of rank 2r, and exact (method.md 4).
    """
    spectra = [
        jax.vmap(lora.spectrum)(Factors(down, jnp.swapaxes(up, 1, 2)))
        for up, down in zip(left.parts, right.parts, strict=True)
    ]
    sigma = jnp.concatenate([s.sigma for s in spectra], axis=1)
    order = jnp.argsort(-sigma, axis=1)
    up = jnp.concatenate([jnp.swapaxes(s.factors.up, 1, 2) for s in spectra], axis=1)
    down = jnp.concatenate([s.factors.down for s in spectra], axis=1)
    rows = order[:, :, None]
    return Columns(
        jnp.take_along_axis(up, rows, axis=1),
        jnp.take_along_axis(down, rows, axis=1),
        jnp.take_along_axis(sigma, order, axis=1),
    )


class Stored(NamedTuple):
    """Factors of a batch as a file holds them.

    Attributes:
        up: `(adapters, out, columns)` in the file's dtype.
        down: `(adapters, columns, in)`.
        used: `(adapters, columns)`: columns that are not zero on either side.
        finite: `(adapters,)`: whether every number fits the dtype.
    """

    up: Array
    down: Array
    used: Array
    finite: Array


@partial(jax.jit, static_argnames=("keep", "dtype"))
def store(columns: Columns, scale: Float[Array, " adapters"], keep: int, dtype: str) -> Stored:
    """The leading columns, scaled and cast.

    Before a cast to 16 bits each column's norms on both sides are brought within a factor of 2
    of each other, by powers of two, which rounds nothing (method.md 4).

    Args:
        columns: from `join` or `compress`.
        scale: of each adapter, goes into `up`.
        keep: how many columns.
        dtype: name of the file's dtype.

    Returns:
        What the file holds.
    """
    up, down = columns.up[:, :keep] * scale[:, None, None], columns.down[:, :keep]
    up_norm, down_norm = (jnp.sum(jnp.square(rows), axis=2) for rows in (up, down))
    used = (up_norm > 0) & (down_norm > 0)
    if jnp.dtype(dtype).itemsize < 4:
        ratio = jnp.where(used, down_norm, 1.0) / jnp.where(used, up_norm, 1.0)
        # A quarter: squared norms, and half the way for either side.
        power = jnp.rint(jnp.log2(ratio) / 4).astype(jnp.int32)[:, :, None]
        up, down = jnp.ldexp(up, power), jnp.ldexp(down, -power)
    up, down = jnp.swapaxes(up, 1, 2).astype(dtype), down.astype(dtype)
    finite = jnp.isfinite(up).all(axis=(1, 2)) & jnp.isfinite(down).all(axis=(1, 2))
    return Stored(up, down, used, finite)
