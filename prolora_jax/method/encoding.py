"""From projected factors to what a file holds: rank, scale, dtype (method.md 4). NumPy only."""

from typing import NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class HostFactors(NamedTuple):
    """The update `up @ down`, scale folded in: `down (rank, in)`, `up (out, rank)`."""

    down: np.ndarray
    up: np.ndarray

    @property
    def rank(self) -> int:
        """Number of columns."""
        return self.down.shape[0]


def drop_zero_columns(factors: HostFactors) -> HostFactors:
    """Without the rank columns that are exactly zero on either side; at least one stays."""
    used = np.flatnonzero(factors.up.any(axis=0) & factors.down.any(axis=1))
    used = used if len(used) else np.array([0])
    return HostFactors(factors.down[used], factors.up[:, used])


def columns_for(sigma: np.ndarray, wanted: tuple[str, float | None], rank_in: int) -> int:
    """How many columns of a singular form to keep.

    Args:
        sigma: singular values, descending.
        wanted: from `options.output_rank`.
        rank_in: rank of the input module, for `source`.

    Returns:
        At least 1 and at most `len(sigma)`.
    """
    kind, value = wanted
    limit = len(sigma)
    if kind == "energy" and value is not None:
        cumulative = np.cumsum(np.square(sigma, dtype=np.float64))
        limit = int(np.argmax(cumulative >= value * cumulative[-1])) + 1
    elif kind == "source":
        limit = rank_in
    elif kind == "rank" and value is not None:
        limit = int(value)
    return max(1, min(limit, len(sigma)))


def pad_rank(factors: HostFactors, rank: int) -> HostFactors:
    """Zero columns up to `rank`: the update stays as it is."""
    missing = rank - factors.rank
    return HostFactors(
        np.pad(factors.down, ((0, missing), (0, 0))), np.pad(factors.up, ((0, 0), (0, missing)))
    )


def balance(factors: HostFactors) -> HostFactors:
    """Give each column's `up` and `down` norms within a factor of 2 of each other.

    By powers of two, so no float32 number is rounded. Without it a 16-bit cast loses up to
    1e-2 of the update where a folded scale left one side tiny (method.md 4).
    """
    up_norm = np.linalg.norm(factors.up.astype(np.float64), axis=0)
    down_norm = np.linalg.norm(factors.down.astype(np.float64), axis=1)
    both = (up_norm > 0) & (down_norm > 0)
    ratio = np.divide(down_norm, up_norm, out=np.ones_like(up_norm), where=both)
    power = np.rint(np.log2(ratio) / 2).astype(int)
    return HostFactors(np.ldexp(factors.down, -power[:, None]), np.ldexp(factors.up, power))


def cast(factors: HostFactors, dtype: np.dtype) -> HostFactors:
    """Cast for storage; columns are balanced first when the dtype has 16 bits or fewer.

    Raises:
        OverflowError: when a number is too large for the dtype.
    """
    if dtype.itemsize < 4:
        factors = balance(factors)
    with np.errstate(over="ignore"):  # reported below, with the number
        stored = HostFactors(factors.down.astype(dtype), factors.up.astype(dtype))
    for before, after in zip(factors, stored, strict=True):
        if not np.isfinite(after.astype(np.float32)).all():
            raise OverflowError(f"{np.abs(before).max():.3g} does not fit {dtype.name}")
    return stored


def update_norm(factors: HostFactors) -> float:
    """Frobenius norm of `up @ down` in float64, from the rank x rank Gram matrices."""
    down, up = factors.down.astype(np.float64), factors.up.astype(np.float64)
    return max(float(np.sum((up.T @ up) * (down @ down.T))), 0.0) ** 0.5
