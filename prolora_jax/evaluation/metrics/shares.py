"""How much of an adapter arrived: share of the loss gap, distances between sets of pictures."""

from typing import NamedTuple

import numpy as np

from prolora_jax.evaluation.metrics.mmd import mmd

RESAMPLES = 1000


class Share(NamedTuple):
    """Share of the loss gap that was closed.

    Attributes:
        value: 1 for as good as the adapter trained on the target, 0 for no adapter.
        low: lower end of the 95 % interval.
        high: its upper end.
    """

    value: float
    low: float
    high: float


def gap_share(none: np.ndarray, arm: np.ndarray, trained: np.ndarray, *, seed: int = 0) -> Share:
    """`(L_none - L_arm) / (L_none - L_trained)` of mean losses, with a paired bootstrap.

    Pictures are drawn with replacement, each with its three losses: what is easy for one model is
    easy for all, and the differences vary far less than the losses.

    Args:
        none: losses of the target without adapter, `(n,)`.
        arm: losses with the adapter that was moved.
        trained: losses with the adapter that was trained on the target.
        seed: of the resamples.

    Returns:
        The share, and the 2.5 % and 97.5 % quantiles over `RESAMPLES` resamples.
    """
    rows = np.random.default_rng(seed).integers(len(none), size=(RESAMPLES, len(none)))
    means = [losses[rows].mean(axis=1) for losses in (none, arm, trained)]
    shares = (means[0] - means[1]) / (means[0] - means[2])
    low, high = np.quantile(shares, (0.025, 0.975))
    value = (none.mean() - arm.mean()) / (none.mean() - trained.mean())
    return Share(float(value), float(low), float(high))


def paired_difference(first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> Share:
    """Mean of `first - second` over the same pictures, with a paired bootstrap interval."""
    differences = first - second
    rows = np.random.default_rng(seed).integers(len(differences), size=(RESAMPLES, len(first)))
    low, high = np.quantile(differences[rows].mean(axis=1), (0.025, 0.975))
    return Share(float(differences.mean()), float(low), float(high))


def squared_mmd(x: np.ndarray, y: np.ndarray, scale: float | None = None) -> float:
    """Squared maximum mean discrepancy, unbiased, Gaussian kernel `exp(-d^2 / (2 scale^2))`.

    Gretton et al., A Kernel Two-Sample Test, JMLR 13 (2012), eq. 3.

    Args:
        x: features `(n, width)`.
        y: features `(m, width)`.
        scale: of the kernel; the median distance between the rows of `y` (the reference) if None.

    Returns:
        About 0 for equal distributions; may be a little below.
    """
    if scale is None:
        distances = np.sqrt(_squared_distances(y, y))
        scale = float(np.median(distances[np.triu_indices(len(y), 1)]))
    return mmd(x, y, sigma=scale, scale=1).value


def diversity(x: np.ndarray) -> float:
    """Mean distance between two different rows of features `(n, width)`."""
    distances = np.sqrt(_squared_distances(x, x))
    return float(distances[np.triu_indices(len(x), 1)].mean())


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x.astype(np.float64), y.astype(np.float64)
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.maximum(squares, 0.0)
