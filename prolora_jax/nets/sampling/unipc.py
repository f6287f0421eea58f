"""UniPC: each answer corrects the last step before it predicts the next (arXiv 2302.04867).

Section 3, with the picture predicted, and the paper's `B_2(h) = e^h - 1`.
"""

from collections.abc import Mapping
from math import factorial
from typing import Any

import numpy as np
from jaxtyping import Float

from prolora_jax.nets.sampling.dpm import Levels, levels
from prolora_jax.nets.sampling.table import Form, StepTable, as_table, forms, picture_weights
from prolora_jax.nets.sampling.training_noise import TrainingNoise


def unipc(noise: TrainingNoise, config: Mapping[str, Any], count: int) -> StepTable:
    """The table of a run.

    Args:
        noise: of the training.
        config: fields of `dpm.levels`, and `solver_order`, with torch's defaults.
        count: number of steps.
    """
    at = levels(noise, config, count)
    most = config.get("solver_order", 2)
    x, begun, *earlier, _, picture = forms(most + 2)
    rows = []
    order = 0
    for i in range(count):
        corrected = x
        if i:
            # The last step again, now that the picture at its end is known.
            known = earlier[:order]
            corrected = _moved(at, i - 1, begun, known, end=picture)
        order = min(most, count - i, i + 1)
        moved = _moved(at, i, corrected, [picture, *earlier][:order])
        rows.append([moved, corrected, *[picture, *earlier][:most]])
    told = picture_weights(noise, at.signal[:-1], at.noise[:-1])
    return as_table(rows, times=at.times, picture=told)


def _moved(at: Levels, i: int, x: Form, pictures: list[Form], *, end: Form | None = None) -> Form:
    """Step `i` by the pictures at its beginning and before, and with `end` by that at its end."""
    h = at.half_log[i + 1] - at.half_log[i]
    signal, decay = at.signal[i + 1], np.expm1(-h)
    moved = at.noise[i + 1] / at.noise[i] * x - signal * decay * pictures[0]
    places = [(at.half_log[i - k] - at.half_log[i]) / h for k in range(1, len(pictures))]
    slopes = [(p - pictures[0]) / place for p, place in zip(pictures[1:], places, strict=True)]
    if end is not None:
        places, slopes = [*places, 1.0], [*slopes, end - pictures[0]]
    if not slopes:
        return moved
    shares = _shares(np.asarray(places), h)
    return moved - signal * decay * sum(
        (share * slope for share, slope in zip(shares, slopes, strict=True)), 0 * x
    )


def _shares(places: Float[np.ndarray, " order"], h: float) -> Float[np.ndarray, " order"]:
    """The solution of the paper's equation 5, or where that is one unknown only its limit, 1/2."""
    order, size = len(places), np.expm1(-h)
    if order == 1:
        return np.array([0.5])
    power, wanted = np.expm1(-h) / -h - 1, []
    for k in range(1, order + 1):
        wanted.append(power * factorial(k) / size)
        power = power / -h - 1 / factorial(k + 1)
    return np.linalg.solve(np.vander(places, order, increasing=True).T, np.asarray(wanted))
