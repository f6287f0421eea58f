"""Singular form of low-rank updates from rank x rank Gram matrices (docs/method.md 6). NumPy only.

With S = up^T up = E diag(l) E^T, T = down down^T and h = E diag(sqrt(l)), the eigenvectors of
h^T T h = Z diag(sigma^2) Z^T give the singular form

    up (E diag(1/sqrt(l)) Z) diag(sqrt(sigma)),    diag(1/sqrt(sigma)) (h Z)^T down.

That is a change of gauge: the two brackets are inverse to each other, so the update itself keeps
full accuracy whatever the error of l and sigma, as long as `up` has full rank. Directions with l
below `GRAM_CUTOFF * max(l)` or sigma below sqrt(GRAM_CUTOFF) * max(sigma) are taken for zero: with
a rank-deficient `up` that costs what `down` makes of its rounding (measured: 8e-7 of the update
where the gauge has condition 1e2, 1e-4 at 1e4). Columns are scaled to equal norms first, so
columns of different scale lose nothing.

The long axes are only in the Gram matrices and in the products with the gauge, both on the device;
what is left is rank x rank and in float64, which not every device has.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from prolora_jax.method.encoding import HostFactors

GRAM_CUTOFF = 1e-14
"""Eigenvalues of a float64 Gram matrix below this share of the largest are rounding."""


class Gauge(NamedTuple):
    """What makes a singular form of factors held as rows: `up_rows' = up @ up_rows`, and `down`.

    Attributes:
        up: `(adapters, columns, rank)`, for the rows of up^T.
        down: `(adapters, columns, rank)`, for the rows of down.
        sigma: `(adapters, columns)`, descending; both new factors carry its square root.
    """

    up: Float[np.ndarray, "adapters columns rank"]
    down: Float[np.ndarray, "adapters columns rank"]
    sigma: Float[np.ndarray, "adapters columns"]


def gauge(
    up_gram: Float[np.ndarray, "adapters rank rank"],
    down_gram: Float[np.ndarray, "adapters rank rank"],
) -> Gauge:
    """Gauge of the singular form of each update of a batch.

    Args:
        up_gram: up^T up, float64.
        down_gram: down down^T, float64.

    Returns:
        As many columns as rank columns; those without an update are zero.
    """
    lengths = [np.sqrt(np.einsum("nii->ni", gram)) for gram in (up_gram, down_gram)]
    used = (lengths[0] > 0) & (lengths[1] > 0)
    balance = np.sqrt(np.where(used, lengths[1], 1.0) / np.where(used, lengths[0], 1.0))
    to_up, to_down = np.where(used, balance, 0.0), np.where(used, 1.0 / balance, 0.0)
    s = up_gram * to_up[:, :, None] * to_up[:, None, :]
    t = down_gram * to_down[:, :, None] * to_down[:, None, :]
    values, e = np.linalg.eigh(s)
    root, inverse = _roots(values, GRAM_CUTOFF)
    h = e * root[:, None, :]
    squares, z = np.linalg.eigh(_transposed(h) @ t @ h)
    squares, z = squares[:, ::-1], z[:, :, ::-1]
    sigma = np.sqrt(np.maximum(squares, 0.0))
    root, inverse_root = _roots(sigma, GRAM_CUTOFF**0.5)
    up = _transposed((e * inverse[:, None, :]) @ z * root[:, None, :])
    down = _transposed(h @ z * inverse_root[:, None, :])
    return Gauge(up * to_up[:, None, :], down * to_down[:, None, :], sigma)


def union(gauges: Sequence[Gauge]) -> Gauge:
    """Gauge of the sum of updates whose ranges are orthogonal to each other on both sides.

    Its singular triplets are all of theirs (docs/method.md 6): `prolora`'s two parts are two
    problems of the input's rank instead of one of twice the rank, and exact.

    Args:
        gauges: one per summand, for the same adapters.

    Returns:
        For the rows of all summands, one after the other.
    """
    sigma = np.concatenate([g.sigma for g in gauges], axis=1)
    order = np.argsort(-sigma, axis=1, kind="stable")
    up, down = (
        np.take_along_axis(_diagonal(blocks), order[:, :, None], axis=1)
        for blocks in ([g.up for g in gauges], [g.down for g in gauges])
    )
    return Gauge(up, down, np.take_along_axis(sigma, order, axis=1))


def singular_form(factors: HostFactors) -> tuple[HostFactors, Float[np.ndarray, " rank"]]:
    """Singular form of one update on the host.

    Args:
        factors: `down (rank, in)`, `up (out, rank)`.

    Returns:
        Factors in float32 with their columns in descending order, and the singular values.
    """
    up, down = (a.astype(np.float64) for a in (factors.up, factors.down))
    form = gauge((up.T @ up)[None], (down @ down.T)[None])
    new = HostFactors(form.down[0] @ down, (form.up[0] @ up.T).T)
    return HostFactors(*(a.astype(np.float32) for a in new)), form.sigma[0]


def _transposed(stack: np.ndarray) -> np.ndarray:
    return np.swapaxes(stack, 1, 2)


def _diagonal(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Stacks of matrices as blocks on the diagonal of a larger one."""
    if len(blocks) == 1:
        return blocks[0]
    count, rows, width = blocks[0].shape
    whole = np.zeros((count, rows * len(blocks), width * len(blocks)), blocks[0].dtype)
    for i, block in enumerate(blocks):
        whole[:, i * rows : (i + 1) * rows, i * width : (i + 1) * width] = block
    return whole


def _roots(values: np.ndarray, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Square roots and their inverses; both 0 where a value is 0 to rounding."""
    kept = values > cutoff * values.max(axis=1, keepdims=True)
    root = np.sqrt(np.where(kept, values, 1.0))
    return np.where(kept, root, 0.0), np.where(kept, 1.0 / root, 0.0)
