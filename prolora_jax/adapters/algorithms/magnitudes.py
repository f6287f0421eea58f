"""Magnitudes of DoRA: which rows or channels they are of, what they multiply, what they become.

With `--dora keep` a module stays DoRA. What moves with it are its gains, `m / norm(W + BA)` against
the weight that it was trained on: on the target the magnitude is the gain times the norm of the
target's own sum (docs/method.md 5). Where weights and BA are the same, so is the magnitude.
"""

import numpy as np

from prolora_jax.adapters.adapter import Gains, LoraModule, StructuredModule
from prolora_jax.adapters.algorithms.algorithm import Parts, Shape

MAGNITUDE, ROW_MAGNITUDE = "magnitude", "row_magnitude"
"""Parts: kohya's and LyCORIS's of either axis, and peft's, which is of rows."""

MAGNITUDES = frozenset({MAGNITUDE, ROW_MAGNITUDE})


def magnitude_of(parts: Parts) -> np.ndarray:
    """The magnitude of a module, as the file has it."""
    return next(parts[name] for name in sorted(MAGNITUDES) if name in parts)


def is_per_row(parts: Parts, shape: Shape) -> bool | None:
    """Whether it has one number per output row; False per input channel; None for neither.

    peft writes `(out,)`, or `(1, out, 1, 1)` for a convolution; LyCORIS and kohya `(out, 1, ...)`
    or `(1, in, ...)`. Of a square convolution the shape `(1, n, 1, 1)` is both of peft's rows and
    of LyCORIS's channels: there the end of the key tells.

    Args:
        parts: of the module.
        shape: of its weight.
    """
    (out, width), magnitude = shape[:2], magnitude_of(parts)
    size = magnitude.size
    if ROW_MAGNITUDE in parts and magnitude.ndim == 4 and magnitude.shape[1] == size == out:
        return True
    if magnitude.ndim < 2:
        return True if size == out else None
    if magnitude.shape[0] == size == out:
        return True
    if magnitude.shape[:2] == (1, width) and size == width:
        return False
    return True if magnitude.shape[:2] == (1, out) and size == out else None


def sizes_of(whole: np.ndarray, shape: Shape, *, per_row: bool) -> np.ndarray:
    """Norms of a matrix's rows, or of its input channels with their windows.

    Args:
        whole: `(out, in * kh * kw)`, float64.
        shape: of the weight.
        per_row: which.
    """
    if per_row:
        return np.linalg.norm(whole, axis=1)
    return np.sqrt(np.square(whole.reshape(*shape[:2], -1)).sum(axis=(0, 2)))


def gains_of(parts: Parts, shape: Shape, whole: np.ndarray) -> Gains:
    """What a magnitude multiplies the sum of weight and update with.

    Args:
        parts: of the module.
        shape: of its weight.
        whole: that sum as a matrix, float64.
    """
    per_row = bool(is_per_row(parts, shape))
    magnitude = magnitude_of(parts).astype(np.float64).reshape(-1)
    sizes = sizes_of(whole, shape, per_row=per_row)
    # A row of zeros is one whatever it is multiplied with: it says nothing of the target's.
    values = np.divide(magnitude, sizes, out=np.ones_like(sizes), where=sizes > 0)
    return Gains(values, per_row)


def with_magnitude(module: LoraModule, gains: Gains, weight: np.ndarray) -> StructuredModule:
    """A DoRA module of another base model.

    The magnitude is float32 whatever the factors are: its rounding is one of the whole weight, and
    in 16 bits it would be as large as many an update.

    Args:
        module: the factors that the file will hold.
        gains: of the module that they were made from.
        weight: of the layer, as a matrix.
    """
    out, *rest = module.up.shape[0], *module.down.shape[1:]
    factors = (module.up.reshape(out, -1), module.down.reshape(module.rank, -1))
    up, down = (factor.astype(np.float64) for factor in factors)
    whole = weight.astype(np.float64) + module.scale * (up @ down)
    magnitude = gains.values * sizes_of(whole, (out, *rest), per_row=gains.per_row)
    ones = (1,) * (len(rest) - 1)
    shape = (out, 1, *ones) if gains.per_row else (1, rest[0], *ones)
    parts = {"down": module.down, "up": module.up}
    parts[MAGNITUDE] = magnitude.reshape(shape).astype(np.float32)
    return StructuredModule(module.path, "dora", parts, module.alpha)


def by_peft(magnitude: np.ndarray) -> np.ndarray:
    """A magnitude of rows in peft's shape: `(out,)`, or `(1, out, 1, 1)` for a convolution."""
    return magnitude.reshape((1, -1, 1, 1) if magnitude.ndim == 4 else (-1,))
