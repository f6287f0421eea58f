"""Saved layers of an output, recomputed in float64 from the input's and both base models'."""

import ml_dtypes
import numpy as np

from prolora_jax.adapters.adapter import Companion
from prolora_jax.verification.weights import Weights

_ROWS = 4096
"""Rows that are looked at together: of a large vocabulary's a float64 matrix takes 10 GB."""


def saved_layer_holds(
    written: Companion, own: Companion, scale: float, models: tuple[Weights, Weights]
) -> bool:
    """Whether a layer is the target's and what the input's differs by from the source's.

    Args:
        written: of the output, with the target's path.
        own: of the input, with the source's.
        scale: that multiplies every update.
        models: source and target.
    """
    if (written.array.shape, written.array.dtype) != (own.array.shape, own.array.dtype):
        return False
    if own.path not in models[0].spec.modules:  # a new head
        return written.array.tobytes() == own.array.tobytes()
    source, target = models[0].matrix(own.path), models[1].matrix(written.path)
    if scale == 1.0 and (source == target).all():
        return written.array.tobytes() == own.array.tobytes()
    # Two roundings to float32, of the difference and of the sum, and one to the file's dtype, which
    # is no share of a number where that is subnormal: of float16, below 6e-5.
    held = ml_dtypes.finfo(written.array.dtype)
    rounding, least = float(held.eps) / 2.0, float(held.smallest_subnormal) / 2.0
    for first in range(0, len(source), _ROWS):
        rows = slice(first, first + _ROWS)
        wide = (a[rows].astype(np.float64) for a in (source, target, own.array, written.array))
        before, base, saved, found = wide
        wanted = base + scale * (saved - before)
        size = np.abs(base) + abs(scale) * (np.abs(saved) + np.abs(before))
        slack = 2.0 * np.finfo(np.float32).eps * size + rounding * np.abs(wanted) + least
        if not (np.abs(found - wanted) <= slack).all():
            return False
    return True
