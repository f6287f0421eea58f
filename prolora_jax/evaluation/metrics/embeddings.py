"""Embeddings side by side: checked, made of length one, and their cosines."""

import numpy as np
from jaxtyping import Float, Num

from prolora_jax.errors import Refusal, UsageError


def unit(rows: Num[np.ndarray, "n width"], what: str) -> Float[np.ndarray, "n width"]:
    """Rows of length one, in float64.

    Args:
        rows: embeddings.
        what: what they are of, for messages.

    Raises:
        UsageError: there is no row, or one is zero or holds what is no number.
    """
    checked = finite(rows, what)
    lengths = np.linalg.norm(checked, axis=1, keepdims=True)
    if not lengths.all():
        raise UsageError(
            f"{what}: found an embedding of length zero (row {int(lengths.argmin())}); expected "
            f"ones with a direction; look at the encoder's weights",
            code=Refusal.NON_FINITE,
        )
    return checked / lengths


def finite(rows: Num[np.ndarray, "n width"], what: str, least: int = 1) -> np.ndarray:
    """The rows in float64, once there are enough and all their numbers are finite.

    Args:
        rows: embeddings.
        what: what they are of, for messages.
        least: how many there must be.

    Raises:
        UsageError: there are fewer, or a number is not finite.
    """
    if len(rows) < least:
        raise UsageError(
            f"{what}: found {len(rows)} pictures; expected at least {least}; draw more",
            code=Refusal.BAD_OPTION,
        )
    wrong = ~np.isfinite(np.asarray(rows, np.float64)).all(axis=1)
    if wrong.any():
        raise UsageError(
            f"{what}: found {int(wrong.sum())} rows with numbers that are not finite, the first "
            f"{int(wrong.argmax())}; expected embeddings; leave these pictures out",
            code=Refusal.NON_FINITE,
        )
    return np.asarray(rows, np.float64)


def paired_cosines(
    one: Num[np.ndarray, "n width"], other: Num[np.ndarray, "m wide"], what: str
) -> Float[np.ndarray, " n"]:
    """The cosine of each row with the row of the same number.

    Args:
        one: embeddings.
        other: as many.
        what: what is compared, for messages.

    Raises:
        UsageError: the two are not of one shape, or as `unit`.
    """
    if one.shape != other.shape:
        raise UsageError(
            f"{what}: found {one.shape} beside {other.shape}; expected as many of one width, pair "
            f"by pair; give each its partner, by the same encoder",
            code=Refusal.BAD_OPTION,
        )
    return (unit(one, what) * unit(other, what)).sum(axis=1)


def mean_cosines(
    rows: Num[np.ndarray, "n width"], others: Num[np.ndarray, "m wide"], what: str
) -> Float[np.ndarray, " n"]:
    """The mean cosine of each row with all of the others; symmetric in its mean.

    Args:
        rows: embeddings.
        others: any number of them.
        what: what is compared, for messages.

    Raises:
        UsageError: the two are of different widths, or as `unit`.
    """
    if rows.shape[1] != others.shape[1]:
        raise UsageError(
            f"{what}: found embeddings of width {rows.shape[1]} beside {others.shape[1]}; expected "
            f"one width; embed both with the same encoder",
            code=Refusal.BAD_OPTION,
        )
    # Means first: the mean of cosines with many rows is the product with their mean.
    return unit(rows, what) @ unit(others, what).mean(axis=0)
