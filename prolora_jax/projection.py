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
from prolora_jax.lora import Factors, Spectrum
from prolora_jax.operators import Form, SideOperator


class SideResult(NamedTuple):
    """One side of a batch.

    Attributes:
        parts: `(rows, dim)` each: one per summand of the arm.
        total: Gram matrices `(adapters, rank, rank)` of the block itself.
        inside: the same of its projection onto the source's span.
    """

    parts: tuple[Array, ...]
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
        The parts, flattened to `(adapters * rank, dim)`, and what the block energies need.
    """
    block = rows.reshape(-1, rows.shape[-1])
    y = matmul(block, operator.analysis)
    taken = {"first": y[:, : form.first], "rest": y[:, form.first :], "all": y, "block": block}
    parts = []
    for part, synthesis in zip(form.parts, operator.synthesis, strict=True):
        x = matmul(taken[part.on], synthesis)
        parts.append(block + x if part.keep else x)
    measured = taken["first"].reshape(*rows.shape[:2], form.first)
    total, inside = _gram(rows), _gram(measured)
    return SideResult(tuple(parts), total, total - inside if form.outside else inside)


def _gram(rows: Float[Array, "adapters rank dim"]) -> Float[Array, "adapters rank rank"]:
    return matmul(rows, jnp.swapaxes(rows, 1, 2))


class BlockEnergies(NamedTuple):
    """||block||_F^2 of an update under (P_s, Q_s); the four add up to ||update||_F^2.

    First word: left (out) side, second word: right (in) side.
    """

    along_along: Float[Array, "..."]
    along_across: Float[Array, "..."]
    across_along: Float[Array, "..."]
    across_across: Float[Array, "..."]


@jax.jit
def block_energies(left: SideResult, right: SideResult) -> BlockEnergies:
    """Squared norms of the four blocks of each update, `(adapters,)`."""

    def energy(a: Array, b: Array) -> Array:
        return jnp.maximum(jnp.sum(a * b, axis=(1, 2)), 0.0)

    up_out, down_out = left.total - left.inside, right.total - right.inside
    return BlockEnergies(
        energy(left.inside, right.inside),
        energy(left.inside, down_out),
        energy(up_out, right.inside),
        energy(up_out, down_out),
    )


@jax.jit
@jax.vmap
def compress(
    left: tuple[Float[Array, "rank out"], ...], right: tuple[Float[Array, "rank in"], ...]
) -> Spectrum:
    """Singular form of the sum of an arm's parts, columns in descending order.

    The two parts of `prolora` have orthogonal ranges on both sides (span of P_t and its
    complement), so the singular triplets of the sum are the union of theirs: two rank-r
    problems instead of one of rank 2r, and exact (method.md 4).

    Args:
        left: `(adapters, rank, out)` per part.
        right: `(adapters, rank, in)` per part.

    Returns:
        `down (adapters, columns, in)`, `up (adapters, out, columns)`, `sigma (adapters, columns)`.
    """
    spectra = [lora.spectrum(Factors(b, a.T)) for a, b in zip(left, right, strict=True)]
    sigma = jnp.concatenate([s.sigma for s in spectra])
    order = jnp.argsort(-sigma)
    down = jnp.concatenate([s.factors.down for s in spectra], axis=0)[order]
    up = jnp.concatenate([s.factors.up for s in spectra], axis=1)[:, order]
    return Spectrum(Factors(down, up), sigma[order])
