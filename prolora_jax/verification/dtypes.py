"""Whether an update had to be written in float32 because the dtype asked for does not hold it."""

import ml_dtypes
import numpy as np

from prolora_jax.adapters.adapter import LoraModule

_NARROW = {
    # The largest relative error of one rounded number, and the largest error of one near 0.
    "float16": (np.dtype(np.float16), 2.0**-11, 2.0**-25),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), 2.0**-8, 2.0**-134),
}
MARGIN = 4.0
"""Here and where the file was made, what is lost near 0 is bounded: the bounds may differ."""


def needs_float32(module: LoraModule, asked: str) -> bool:
    """Whether 16 bits would cost this update more than their own rounding.

    Args:
        module: as the file holds it, in float32.
        asked: the dtype that it should have: `float16` or `bfloat16`.

    Returns:
        False, too, for any other dtype: that is no reason for float32.
    """
    if asked not in _NARROW:
        return False
    dtype, roundoff, near_zero = _NARROW[asked]
    up = np.asarray(module.up, np.float64).reshape(module.up.shape[0], -1)
    down = np.asarray(module.down, np.float64).reshape(module.down.shape[0], -1)
    # Columns are given even norms first, by powers of two: that is how 16 bits hold the most.
    ups, downs = np.linalg.norm(up, axis=0), np.linalg.norm(down, axis=1)
    used = (ups > 0) & (downs > 0)
    ratio = np.divide(downs, ups, out=np.ones_like(ups), where=used)
    power = np.rint(np.log2(ratio) / 2).astype(int)
    up, down = np.ldexp(up, power), np.ldexp(down, -power[:, None])
    size = float(np.linalg.norm(up @ down))
    with np.errstate(over="ignore"):  # looked at below
        narrow = up.astype(dtype).astype(np.float64), down.astype(dtype).astype(np.float64)
    if not all(np.isfinite(factor).all() for factor in narrow):
        return True
    lost = [near_zero * length**0.5 for length in (up.shape[0], down.shape[1])]
    ups, downs = np.linalg.norm(up, axis=0), np.linalg.norm(down, axis=1)
    bound = float(np.sum(lost[0] * downs + lost[1] * ups))
    error = float(np.linalg.norm(narrow[0] @ narrow[1] - up @ down))
    return MARGIN * bound > roundoff * size or error > 0.99 * roundoff * size
