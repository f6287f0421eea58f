"""Singular value decomposition of one weight on the host: LAPACK, float64, no JAX.

Kept apart from the device code so that a process that only computes subspaces does not load JAX.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.linalg import get_blas_funcs, get_lapack_funcs

GRAM_SAFE_RATIO = 1e-4
"""Smallest wanted sigma_k / sigma_1 for which the Gram route is used (see `gram_is_safe`)."""

(_syrk,) = get_blas_funcs(("syrk",), dtype=np.float64)
(_syevd,) = get_lapack_funcs(("syevd",), dtype=np.float64)


class Decomposition(NamedTuple):
    """Singular triplets of one matrix `W = u @ diag(s) @ v.T`, float64.

    The factor of the short side is square (a full orthogonal matrix), the one of the long side
    holds the leading columns that were asked for. `s` holds all `min(out, in)` singular values.
    """

    u: np.ndarray
    s: np.ndarray
    v: np.ndarray


def gram_eigh(
    tall: Float[np.ndarray, "long short"],
) -> tuple[Float[np.ndarray, " short"], Float[np.ndarray, "short short"]]:
    """Singular values (descending) and right singular vectors of a tall matrix, by Gram-eigh.

    Squaring costs accuracy near sigma = 0: a singular value s_i carries an absolute error of
    about eps * s_1^2 / (2 s_i), at most about 3e-8 * s_1, and a span cut at k an angle of about
    eps * s_1^2 / (s_k^2 - s_{k+1}^2), eps being 2.2e-16.

    Raises:
        LinAlgError: the eigensolver did not converge.
    """
    # BLAS and LAPACK by name: one triangle of the Gram matrix, turned into its eigenvectors in
    # place. NumPy's own functions mirror and copy it and take 8 to 13 % longer. `tall.T` of a
    # C-ordered matrix is what Fortran calls a matrix: nothing is copied on the way in either.
    eigenvalues, vectors, failed = _syevd(_syrk(1.0, tall.T, lower=1), lower=1, overwrite_a=1)
    if failed:
        raise np.linalg.LinAlgError(f"syevd did not converge (info {failed})")
    return np.sqrt(np.clip(eigenvalues[::-1], 0.0, None)), np.asfortranarray(vectors[:, ::-1])


def gram_is_safe(s: Float[np.ndarray, " n"], k: int, ratio: float = GRAM_SAFE_RATIO) -> bool:
    """Whether the leading k columns of the long side may come from the Gram route.

    Safe means s_k / s_1 >= ratio: then the long-side columns W v_i / s_i are orthonormal to
    eps * (s_1 / s_k)^2, which is 2.2e-8 for float64 and its ratio, below the float32 rounding
    (6e-8) in which they are stored.

    Args:
        s: all singular values, descending.
        k: how many columns are wanted; none is always safe.
        ratio: the smallest safe s_k / s_1 of the arithmetic that was used.

    Returns:
        False also for columns of a zero matrix, of which only an SVD returns orthonormal ones.
    """
    return k == 0 or bool(s[k - 1] >= ratio * max(s[0], np.finfo(np.float64).tiny))


def decompose(
    weight: Float[np.ndarray, "out in"], columns: Callable[[np.ndarray], int] = len
) -> Decomposition:
    """Singular value decomposition in float64: the full short side, leading columns of the long.

    Gram matrix and symmetric eigensolver on the short side where that is safe (`gram_is_safe`),
    LAPACK's SVD where it is not.

    Args:
        weight: the matrix, any float dtype.
        columns: how many leading columns of the long side to return, given all singular values;
            default all.

    Returns:
        u `(out, .)`, s `(n,)`, v `(in, .)` with `n = min(out, in)`: the short side has n columns,
        the long side as many as `columns` said.
    """
    matrix = np.asarray(weight, dtype=np.float64)
    transposed = matrix.shape[0] < matrix.shape[1]
    tall = np.ascontiguousarray(matrix.T if transposed else matrix)
    s, short = gram_eigh(tall)
    k = min(columns(s), len(s))
    if not gram_is_safe(s, k):
        long, s, short_t = np.linalg.svd(tall, full_matrices=False)
        short, k = short_t.T, min(columns(s), len(s))
        long = long[:, :k]
    else:
        long = tall @ short[:, :k]
        long /= s[:k]
    return Decomposition(short, s, long) if transposed else Decomposition(long, s, short)
