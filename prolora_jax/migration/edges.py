"""Numbers at the edges of a dtype: taken to the middle before work is done, put back after it.

The device computes squares in float32: factors near 1e-25 have none, factors near 1e30 have
infinite ones. Powers of two take both to the middle and round nothing. The result goes to the
file's dtype only where that holds it to its own rounding, to float32 where that does, and nowhere
else.
"""

from dataclasses import replace
from math import frexp, ldexp

import numpy as np

from prolora_jax import layout
from prolora_jax.adapters.adapter import LoraModule
from prolora_jax.adapters.formats.folding import rounded
from prolora_jax.method.encoding import HostFactors

MIDDLE = 20
"""Numbers from 2^-20 to 2^20 are left as they are: float32 has their squares and their products."""

_SMALLEST_HALF = 2.0**-25  # the largest error of a float16 that is too small to be a normal one
_ROUNDOFF = 2.0**-11


def to_the_middle(module: LoraModule) -> tuple[LoraModule, int]:
    """A module whose numbers are in the middle of float32, and a power of two.

    Args:
        module: any module.

    Returns:
        A module in its own dtype, or float32 for float64; its update times 2 to the power is that
        of the module given. Where all is well they are that module and 0.
    """
    down, up = _centred(module.down), _centred(module.up)
    mantissa, scale_power = frexp(module.scale)
    if abs(scale_power) <= MIDDLE:
        mantissa, scale_power = module.scale, 0
    power = down[1] + up[1] + scale_power
    if down[0] is module.down and up[0] is module.up and not scale_power:
        return module, 0
    alpha = None if module.alpha is None else mantissa * module.rank
    return replace(module, down=down[0], up=up[0], alpha=alpha), power


def apart(scale: float, power: int) -> tuple[float, int]:
    """A scale times a power of two as what the device can multiply with, and the power left."""
    mantissa, exponent = frexp(scale)
    if abs(exponent + power) <= 2 * MIDDLE:
        return ldexp(scale, power), 0
    return mantissa, exponent + power


def holds(factors: HostFactors, norm: float) -> bool:
    """Whether float16 factors are not too small to hold an update of this norm to their rounding.

    Other dtypes have the range of float32, in which the device has computed.
    """
    if factors.up.dtype != np.float16:
        return True
    (out, rank), width = factors.up.shape, factors.down.shape[1]
    # Far from the edge nothing is looked at: 100 for columns that cancel each other.
    if norm >= 100 * rank * max(out, width) * _SMALLEST_HALF:
        return True
    lost_up, lost_down = (size**0.5 * _SMALLEST_HALF for size in (out, width))
    ups = np.linalg.norm(factors.up.astype(np.float64), axis=0) + lost_up
    downs = np.linalg.norm(factors.down.astype(np.float64), axis=1) + lost_down
    return float(np.sum(lost_up * downs + lost_down * ups)) <= _ROUNDOFF * norm


def stored(factors: HostFactors, scale: float, power: int, dtype: np.dtype) -> HostFactors | None:
    """Factors times a scale and a power of two, in a dtype or, where it holds less, in float32.

    Args:
        factors: in float32.
        scale: goes into `up`.
        power: of two; in parts on both sides, where it has to be.
        dtype: of the file.

    Returns:
        None where float32 does not hold them either.
    """
    half, (down, up) = power // 2, factors
    if power or scale != 1.0:
        up = np.ldexp(up.astype(np.float64) * scale, power - half)
        down = np.ldexp(down.astype(np.float64), half)
    for wanted in dict.fromkeys((dtype, np.dtype(np.float32))):
        found = rounded(up, down, wanted)
        if found is not None:
            return HostFactors(found[1], found[0])
    return None


def _centred(factor: np.ndarray) -> tuple[np.ndarray, int]:
    """The factor, times a power of two where its largest number is far from 1; and that power."""
    if factor.dtype == np.float16:  # float32 has all squares of all its numbers
        return factor, 0
    largest = float(np.abs(layout.down_to_matrix(factor)).max(initial=0.0))
    power = frexp(largest)[1]
    if abs(power) <= MIDDLE:
        return factor, 0
    wide = np.ldexp(factor.astype(np.float64), -power)
    narrow = np.float32 if factor.dtype == np.float64 else factor.dtype
    return wide.astype(narrow), power
