"""The one place where axes are permuted.

Three layouts of the same numbers:

| layout | linear | convolution | who uses it |
|---|---|---|---|
| weight (torch) | `(out, in)` | `(out, in, kh, kw)` | adapter files, torch checkpoints |
| kernel (Flax) | `(in, out)` | `(kh, kw, in, out)` | Flax parameter trees |
| matrix (ours) | `(out, in)` | `(out, in * kh * kw)` | everything numeric |

A matrix flattens the input axes of a convolution in the order `in, kh, kw`, row-major, so a
weight becomes a matrix by a reshape and without moving a number. LoRA factors follow: `down` is
`(rank, in * kh * kw)` and carries the kernel window, `up` is `(out, rank)`.
"""

import numpy as np
from jaxtyping import Shaped


def weight_to_matrix(weight: Shaped[np.ndarray, "out ..."]) -> Shaped[np.ndarray, "out width"]:
    """The weight `(out, in)` or `(out, in, kh, kw)` as a matrix `(out, in * kh * kw)`."""
    return weight.reshape(weight.shape[0], -1)


def down_to_matrix(down: Shaped[np.ndarray, "rank ..."]) -> Shaped[np.ndarray, "rank width"]:
    """The down factor `(rank, in)` or `(rank, in, kh, kw)` as `(rank, in * kh * kw)`."""
    return down.reshape(down.shape[0], -1)


def up_to_matrix(up: Shaped[np.ndarray, "out rank ..."]) -> Shaped[np.ndarray, "out rank"]:
    """The up factor `(out, rank)` or `(out, rank, 1, 1)` as `(out, rank)`."""
    return up.reshape(up.shape[:2])


def matrix_to_down(
    matrix: Shaped[np.ndarray, "rank width"], weight_shape: tuple[int, ...]
) -> Shaped[np.ndarray, "rank ..."]:
    """The down factor for a weight of shape `weight_shape`: `(rank, in[, kh, kw])`."""
    return matrix.reshape(matrix.shape[0], *weight_shape[1:])


def matrix_to_up(
    matrix: Shaped[np.ndarray, "out rank"], weight_shape: tuple[int, ...]
) -> Shaped[np.ndarray, "out rank ..."]:
    """The up factor for a weight of shape `weight_shape`: `(out, rank)`, `(out, rank, 1, 1)`."""
    ones = (1,) * (len(weight_shape) - 2)
    return matrix.reshape(*matrix.shape, *ones)


def weight_to_kernel(weight: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Torch weight to Flax kernel: `(out, in) -> (in, out)`, OIHW to HWIO.

    Raises:
        ValueError: the weight has neither two nor four axes.
    """
    if weight.ndim == 2:
        return weight.T
    if weight.ndim == 4:
        return weight.transpose(2, 3, 1, 0)  # out in kh kw -> kh kw in out
    raise ValueError(f"weight of shape {weight.shape}: expected 2 axes (linear) or 4 (convolution)")


def kernel_to_weight(kernel: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Flax kernel to torch weight: `(in, out) -> (out, in)`, HWIO to OIHW.

    Raises:
        ValueError: the kernel has neither two nor four axes.
    """
    if kernel.ndim == 2:
        return kernel.T
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)  # kh kw in out -> out in kh kw
    raise ValueError(f"kernel of shape {kernel.shape}: expected 2 axes (linear) or 4 (convolution)")
