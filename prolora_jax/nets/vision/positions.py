"""Embeddings of positions for pictures of another size than the encoder was trained on.

Both forms are linear: a matrix for the rows and one for the columns, made on the host in float64.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_KEYS = -0.75
"""The free number of the cubic kernel as torch has it; with antialiasing it is -0.5, as PIL has it
(Keys, Cubic convolution interpolation for digital image processing, 1981, eq. 8)."""
_KEYS_ANTIALIASED = -0.5


def resized_positions(
    table: Float[Array, "positions width"], grid: int, shape: tuple[int, int], *, antialias: bool
) -> Float[Array, "new_positions width"]:
    """Embeddings of a square grid of patches, for a grid of another shape, bicubically.

    As torch's `interpolate(mode="bicubic", align_corners=False)`, which transformers uses. The
    same function of its Flax classes is another: JAX has another kernel.

    Args:
        table: embeddings of the patches row by row, `grid * grid` of them.
        grid: patches in a row and in a column.
        shape: new rows and columns.
        antialias: whether a smaller grid is an average, as DINOv2 with registers has it.

    Returns:
        `rows * columns` embeddings, row by row.
    """
    rows, columns = (
        jnp.asarray(cubic_matrix(grid, new, antialias=antialias), table.dtype) for new in shape
    )
    square = table.reshape(grid, grid, -1)
    found = jnp.einsum("ry,cx,yxw->rcw", rows, columns, square, precision="highest")
    return found.reshape(shape[0] * shape[1], -1)


def cubic_matrix(old: int, new: int, *, antialias: bool) -> Float[np.ndarray, "new old"]:
    """Weights with which `old` numbers in a line make `new` ones.

    Args:
        old: how many there are.
        new: how many are made.
        antialias: whether the kernel widens when there are fewer. Outside the line there is
            nothing then, and weights are made to sum to one; without it the outermost numbers are
            repeated.

    Returns:
        One row for each new number; rows sum to one.
    """
    step = old / new
    centres = (np.arange(new) + 0.5) * step
    if antialias:
        scale = max(step, 1.0)
        places = np.arange(old)[None] + 0.5
        weights = _cubic((places - centres[:, None]) / scale, _KEYS_ANTIALIASED)
        # What PIL and torch leave out: places whose whole pixel is not under the kernel.
        first = np.maximum((centres - 2 * scale + 0.5).astype(int), 0)
        last = np.minimum((centres + 2 * scale + 0.5).astype(int), old)
        inside = (np.arange(old) >= first[:, None]) & (np.arange(old) < last[:, None])
        weights = np.where(inside, weights, 0.0)
        return weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((new, old))
    left = np.floor(centres - 0.5).astype(int)
    for offset in range(-1, 3):
        places = left + offset
        weights = _cubic(places + 0.5 - centres, _KEYS)
        np.add.at(matrix, (np.arange(new), np.clip(places, 0, old - 1)), weights)
    return matrix


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
