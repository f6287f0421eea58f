"""FD-DINO: Fréchet's distance of two sets of pictures, each taken as a normal distribution."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Num

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.evaluation.metrics.embeddings import finite


class Frechet(NamedTuple):
    """A distance, and how many pictures it is from: with few it is too large.

    Attributes:
        value: squared distance of the two normal distributions.
        n: pictures in the first set.
        m: pictures in the second.
        width: of the features.
    """

    value: float
    n: int
    m: int
    width: int


def fd_dino(one: Num[np.ndarray, "n width"], other: Num[np.ndarray, "m wide"]) -> Frechet:
    """`|μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁C₂)^½)` of DINOv2's features, in float64.

    Heusel et al. 2017 (arXiv 1706.08500), eq. 6, with DINOv2 in the place of Inception, as Stein et
    al. 2023 (arXiv 2306.04675) advise: not comparable to FID. Covariances divide by n − 1.

    With centred features `A` and `B`, so that `C₁ = AᵀA`, the last trace is the sum of the singular
    values of `ABᵀ`. No root of a matrix is taken, which few pictures would make singular.

    Args:
        one: features, taken as they are.
        other: of the same encoder.

    Returns:
        The distance; zero for equal sets. The mean of the estimate shrinks as n and m grow, so
        compare only sets of equal sizes.

    Raises:
        UsageError: widths differ, a number is not finite, or there are fewer than two pictures.
    """
    x, y = (finite(rows, "FD-DINO", 2) for rows in (one, other))
    if x.shape[1] != y.shape[1]:
        raise UsageError(
            f"FD-DINO: found widths {x.shape[1]} and {y.shape[1]}; expected one; embed both sets "
            f"with the same encoder",
            code=Refusal.BAD_OPTION,
        )
    a, b = (_root(rows) for rows in (x, y))
    means = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
    common = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    value = means + np.square(a).sum() + np.square(b).sum() - 2 * common
    return Frechet(float(max(value, 0.0)), len(x), len(y), x.shape[1])


def _root(rows: np.ndarray) -> np.ndarray:
    """A matrix `R` of at most as many rows as columns with `RᵀR` the covariance."""
    centred = (rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1)
    return centred if len(rows) <= rows.shape[1] else np.asarray(np.linalg.qr(centred, mode="r"))
