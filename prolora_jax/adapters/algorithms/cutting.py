"""The best factors of a rank for an update (Eckart-Young), and the share of it that they hold."""

from typing import NamedTuple

import numpy as np

from prolora_jax.adapters.algorithms.algorithm import LowRank, Update


class FactorRank(NamedTuple):
    """Which rank the factors of another algorithm's update get.

    Attributes:
        energy: share of the squared norm that they are to hold, as long as `most` allows; no say
            in an update whose own rank is not above `most`.
        most: columns; None for as many as there are.
    """

    energy: float = 0.999
    most: int | None = 64


class Cut(NamedTuple):
    """Factors, and the share of the update's squared norm that they hold."""

    up: np.ndarray
    down: np.ndarray
    kept: float


def cut_to_rank(update: Update, rank: FactorRank) -> Cut:
    """The best factors of the rank asked for.

    Args:
        update: factors, or a dense matrix.
        rank: asked for.

    Returns:
        Factors in float64, of norms that are even, and the share of the squared norm they hold.
    """
    if isinstance(update, LowRank):
        columns = update.down.shape[0]
        if update.total is None and (rank.most is None or columns <= rank.most):
            return Cut(*even(update), 1.0)
        form = update if update.singular else _singular(update)
    else:
        form = _dense_singular(update)
    squares = np.square(np.linalg.norm(form.up, axis=0) * np.linalg.norm(form.down, axis=1))
    total = max(squares.sum(), getattr(form, "total", None) or 0.0)
    if total == 0.0:
        return Cut(form.up[:, :1], form.down[:1], 1.0)
    columns, held = enough(squares, total, rank)
    cut = form._replace(up=form.up[:, :columns], down=form.down[:columns])
    return Cut(*even(cut), min(float(held / total), 1.0))


def even(update: LowRank) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of even norms: nothing leaves the range of float32 on one side alone.

    Args:
        update: in factors.

    Returns:
        Up and down.
    """
    up, down = update.up, update.down
    if update.even:
        return up, down
    sizes = np.linalg.norm(up, axis=0), np.linalg.norm(down, axis=1)
    both = (sizes[0] > 0) & (sizes[1] > 0)
    ratio = np.sqrt(np.divide(sizes[1], sizes[0], out=np.ones_like(sizes[0]), where=both))
    return up * ratio, down / ratio[:, None]


def _singular(update: LowRank) -> LowRank:
    """Singular form of factors, from their QR decompositions."""
    left, right = np.linalg.qr(update.up), np.linalg.qr(update.down.T)
    u, sigma, v = np.linalg.svd(left.R @ right.R.T)
    columns = len(sigma)
    up = left.Q @ u[:, :columns] * sigma
    return LowRank(up, v[:columns] @ right.Q.T, singular=True)


def _dense_singular(update: np.ndarray) -> LowRank:
    """Singular form of a dense matrix from the Gram matrix of its short side.

    The factors are a projection of the update: what they miss is the tail, whatever rounding does
    to the smallest singular values.
    """
    wide = update if update.shape[0] <= update.shape[1] else update.T
    _, vectors = np.linalg.eigh(wide @ wide.T)
    vectors = vectors[:, ::-1]
    rows = vectors.T @ wide
    if wide is update:
        return LowRank(vectors, rows, singular=True)
    return LowRank(rows.T, vectors.T, singular=True)


def enough(squares: np.ndarray, total: float, rank: FactorRank) -> tuple[int, float]:
    """How many of the squares of singular values are asked for, and what they come to.

    Args:
        squares: descending.
        total: of all there are.
        rank: asked for.
    """
    held = np.cumsum(squares)
    reached = held >= rank.energy * total
    enough = int(np.argmax(reached)) + 1 if reached.any() else len(held)
    used = int(np.count_nonzero(squares > 0))
    columns = max(min(used, enough, rank.most or used), 1)
    return columns, float(held[columns - 1])
