"""Where singular values of noise end: the Marchenko-Pastur law and Gavish and Donoho's factor.

*The Optimal Hard Threshold for Singular Values is 4/sqrt(3)*, Gavish and Donoho 2014 (arXiv
1305.5870), for noise of unknown strength: the strength is read off the median singular value.
"""

import math
from functools import cache

HALVINGS = 60
"""Of an interval of length pi: the angle of the median is then known to the last bit."""


@cache
def threshold_factor(short: int, long: int) -> float:
    """The factor omega of the optimal hard threshold: omega * (median singular value).

    Args:
        short: the smaller dimension of the matrix.
        long: the larger one.

    Returns:
        lambda(beta) / sqrt(mu(beta)) with beta = short / long: 2.858 for a square matrix.
    """
    beta = short / long
    root = math.sqrt(beta * beta + 14.0 * beta + 1.0)
    squared = 2.0 * (beta + 1.0) + 8.0 * beta / (beta + 1.0 + root)
    return math.sqrt(squared / marchenko_pastur_median(beta))


def marchenko_pastur_median(beta: float) -> float:
    """The median mu of the Marchenko-Pastur law of aspect ratio `beta` and variance 1.

    With t = 1 + beta - 2 sqrt(beta) cos(angle) the density is 2 sin^2(angle) / (pi t) on (0, pi),
    whose integral is elementary; the angle of the median is found by halving.

    Args:
        beta: in (0, 1].
    """
    low, high = 0.0, math.pi
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _share_below(middle, beta) < 0.5 else (low, middle)
    return 1.0 + beta - 2.0 * math.sqrt(beta) * math.cos(low)


def _share_below(angle: float, beta: float) -> float:
    a, b, root = 1.0 + beta, 2.0 * math.sqrt(beta), math.sqrt(beta)
    # atan2 and not atan of a quotient: for beta = 1 its denominator is 0.
    turned = math.atan2((1.0 + root) * math.sin(angle / 2.0), (1.0 - root) * math.cos(angle / 2.0))
    whole = a * angle / b**2 + math.sin(angle) / b - 2.0 * (1.0 - beta) * turned / b**2
    return whole * 2.0 / math.pi
