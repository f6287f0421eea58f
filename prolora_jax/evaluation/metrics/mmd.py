"""MMD: how far apart two sets of pictures are as distributions."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Num

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.evaluation.metrics.embeddings import finite

Estimator = Literal["unbiased", "biased"]

SIGMA, SCALE = 10.0, 1000.0
"""What CMMD has (Jayasumana et al. 2024, Rethinking FID, arXiv 2401.09603)."""

_BLOCK = 1024  # rows at once: memory grows with the number of pictures, not with its square


class Mmd(NamedTuple):
    """A distance, and all that it depends on beside the pictures.

    Attributes:
        value: `scale * MMD²`.
        sigma: width of the kernel.
        scale: factor.
        n: pictures in the first set.
        m: pictures in the second.
        estimator: of the expectation within a set.
    """

    value: float
    sigma: float
    scale: float
    n: int
    m: int
    estimator: Estimator


def mmd(
    one: Num[np.ndarray, "n width"],
    other: Num[np.ndarray, "m wide"],
    *,
    sigma: float = SIGMA,
    scale: float = SCALE,
    estimator: Estimator = "unbiased",
) -> Mmd:
    """Squared maximum mean discrepancy with the kernel `exp(-|x - y|² / (2 sigma²))`, in float64.

    Gretton et al. 2012, A Kernel Two-Sample Test (JMLR 13), eq. 3 (unbiased: no row is compared
    with itself) and eq. 5 (biased: never below zero). CMMD's paper has the unbiased one, its
    program the biased one; both take CLIP's embeddings at length one, as CSD-MMD does CSD's.

    Args:
        one: embeddings, taken as they are; make them of length one first (`embeddings.unit`).
        other: of the same encoder.
        sigma: width of the kernel.
        scale: factor of the result.
        estimator: whether a row counts as a partner of its own.

    Returns:
        The distance, with sigma, scale and numbers of pictures, without which it says nothing.

    Raises:
        UsageError: widths differ, sigma is not positive, a number is not finite, or there are
            fewer pictures than the estimator needs: two of each set, or one.
    """
    least = 2 if estimator == "unbiased" else 1
    x, y = (finite(rows, "MMD", least) for rows in (one, other))
    if x.shape[1] != y.shape[1] or sigma <= 0:
        raise UsageError(
            f"MMD: found widths {x.shape[1]} and {y.shape[1]}, sigma {sigma}; expected one width "
            f"and a positive sigma; embed both sets with the same encoder",
            code=Refusal.BAD_OPTION,
        )
    n, m = len(x), len(y)
    within = sum(_within(rows, sigma, estimator) for rows in (x, y))
    value = within - 2 * _sum(x, y, sigma) / (n * m)
    return Mmd(scale * value, sigma, scale, n, m, estimator)


def _within(rows: np.ndarray, sigma: float, estimator: Estimator) -> float:
    n, total = len(rows), _sum(rows, rows, sigma)
    # The kernel of a row and itself is exactly one, which rounding does not always give.
    return (total - n) / (n * (n - 1)) if estimator == "unbiased" else total / n**2


def _sum(x: np.ndarray, y: np.ndarray, sigma: float) -> float:
    """Of the kernel over all pairs."""
    same, total = x is y, 0.0
    for first in range(0, len(x), _BLOCK):
        rows = x[first : first + _BLOCK]
        squares = (rows**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * rows @ y.T
        kernel = np.exp(-np.maximum(squares, 0.0) / (2 * sigma**2))
        if same:
            np.fill_diagonal(kernel[:, first:], 1.0)
        total += float(kernel.sum())
    return total
