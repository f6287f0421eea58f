"""Prepared methods applied on the device (docs/method.md 5): rank columns of many adapters at once.

A projection is linear in the rank columns, and every column is on its own. So the columns of a
whole batch of adapters are the rows of one block, `up.T` for the left side and `down` for the
right, and one side of one module costs two or three wide matrix products (see `operators`).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from prolora_jax.method.energies import SideGrams
from prolora_jax.method.linalg import HIGHEST, matmul, projected
from prolora_jax.method.operators import Form, SideOperator


class SideResult(NamedTuple):
    """One side of a batch.

    Attributes:
        parts: `(adapters, rank, dim)` each: one per summand of the method.
        grams: Gram matrices that norms, block energies and the singular form are made of.
    """

    parts: tuple[Array, ...]
    grams: SideGrams


@jax.jit
def rows_of(
    up: Float[Array | np.ndarray, "adapters out rank"],
    down: Float[Array | np.ndarray, "adapters rank width"],
    scale: Float[Array | np.ndarray, " adapters"],
) -> tuple[Array, Array]:
    """The rank columns of some adapters as rows, float32, for `apply_side`.

    Args:
        up: as files have them, in any dtype.
        down: the same.
        scale: of each adapter, goes into the rows of `up`.

    Returns:
        `(adapters, rank, out)` and `(adapters, rank, width)`.
    """
    left = jnp.swapaxes(up, 1, 2).astype(jnp.float32) * scale[:, None, None]
    return left, jnp.asarray(down, jnp.float32)


@partial(jax.jit, static_argnames=("form", "wide"))
def apply_side(
    form: Form,
    operator: SideOperator,
    rows: Float[Array, "adapters rank dim"],
    wide: bool = False,
) -> SideResult:
    """One side of a method on the rank columns of some adapters.

    Args:
        form: how the operator is applied.
        operator: prepared matrices of this side.
        rows: `up` transposed, or `down`; zero rows pad ranks.
        wide: whether the parts' Gram matrices are summed in float64, as `singular.gauge` needs
            them; call it under `jax.enable_x64(True)` then.

    Returns:
        The parts and the Gram matrices.
    """
    block = rows.reshape(-1, rows.shape[-1])
    y = projected(block, operator.analysis)
    taken = {"first": y[:, : form.first], "rest": y[:, form.first :], "all": y, "block": block}
    parts = []
    for part, synthesis in zip(form.parts, operator.synthesis, strict=True):
        x = projected(taken[part.on], synthesis)
        parts.append((block + x if part.keep else x).reshape(rows.shape))
    total = gram(rows)
    inside = gram(taken["first"].reshape(*rows.shape[:2], form.first))
    inside = total - inside if form.outside else inside
    grams = tuple(gram(part, jnp.float64 if wide else jnp.float32) for part in parts)
    return SideResult(tuple(parts), SideGrams(grams, total, inside))


class FileFactors(NamedTuple):
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


@partial(jax.jit, static_argnames=("dtype",))
def to_file_factors(
    left: tuple[Array, ...],
    right: tuple[Array, ...],
    gauge: tuple[Array, Array] | None,
    scale: Float[Array, " adapters"],
    dtype: str,
) -> FileFactors:
    """The sum of a method's parts as a file's factors: singular form, scale, cast.

    Before a cast to 16 bits each column's norms on both sides are brought within a factor of 2
    of each other, by powers of two, which rounds nothing (docs/method.md 6).

    Args:
        left: parts of the `up` side, `(adapters, rank, out)` each.
        right: of the `down` side.
        gauge: `up` and `down` of a `singular.Gauge` in float32, for the columns to keep; None
            keeps the parts as they are, and their ranks add.
        scale: of each adapter, goes into `up`.
        dtype: name of the file's dtype.

    Returns:
        What the file holds.
    """
    if gauge is not None:
        left, right = ((_mixed(mix, rows),) for mix, rows in zip(gauge, (left, right), strict=True))
    stored = [_one_part(*part, scale, dtype) for part in zip(left, right, strict=True)]
    ups, downs, used, finite = zip(*stored, strict=True)
    return FileFactors(
        jnp.concatenate(ups, axis=2),
        jnp.concatenate(downs, axis=1),
        jnp.concatenate(used, axis=1),
        jnp.stack(finite).all(axis=0),
    )


def _one_part(up: Array, down: Array, scale: Array, dtype: str) -> FileFactors:
    """Rows of both sides, each row on its own. Whole parts are put together when they are small."""
    up = up * scale[:, None, None]
    up_norm, down_norm = (jnp.sum(jnp.square(rows), axis=2) for rows in (up, down))
    used = (up_norm > 0) & (down_norm > 0)
    if jnp.dtype(dtype).itemsize < 4:
        ratio = jnp.where(used, down_norm, 1.0) / jnp.where(used, up_norm, 1.0)
        # A quarter: squared norms, and half the way for either side.
        power = jnp.rint(jnp.log2(ratio) / 4).astype(jnp.int32)[:, :, None]
        # One factor a row: `ldexp` of every number costs ten times the product, and is the same.
        one = jnp.float32(1.0)
        up, down = up * jnp.ldexp(one, power), down * jnp.ldexp(one, -power)
    up, down = up.astype(dtype), down.astype(dtype)
    finite = jnp.isfinite(up).all(axis=(1, 2)) & jnp.isfinite(down).all(axis=(1, 2))
    return FileFactors(jnp.swapaxes(up, 1, 2), down, used, finite)


def _mixed(gauge: Array, parts: tuple[Array, ...]) -> Float[Array, "adapters columns dim"]:
    """New columns, each a sum of all parts' columns. The parts are not copied side by side."""
    rank, total = parts[0].shape[1], None
    for i, part in enumerate(parts):
        term = matmul(gauge[:, :, i * rank : (i + 1) * rank], part)
        total = term if total is None else total + term
    assert total is not None  # a method has a part
    return total


def gram(rows: Float[Array, "adapters rank dim"], dtype=jnp.float32) -> Array:
    """Gram matrices `(adapters, rank, rank)` of the rows, products and sums in `dtype`."""
    return jnp.einsum("nid,njd->nij", rows, rows, precision=HIGHEST, preferred_element_type=dtype)
