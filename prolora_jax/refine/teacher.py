"""What the student is to answer: the effect on the target, or the source's own answer.

All predictions are of one parametrisation (`parametrisation.converted`) on the same noisy rows:
`v_t` of the target, `v_s` of the source, `v_{s+D}` of the source with the adapter.
"""

from typing import Literal

import jax
import numpy as np

Array = jax.Array | np.ndarray
Teacher = Literal["effect", "absolute"]


def effect(target: Array, adapted: Array, source: Array) -> Array:
    """`v_t + v_{s+D} - v_s`: the target's own answer, and what the adapter changes on the source.

    It is what Delta Sampling (arXiv 2512.03056) draws with at every step, and what proxy tuning
    (arXiv 2401.08565) adds up over tokens. It is right where both base models draw the same kind of
    pictures, and wrong where the target's domain has moved: see `guard`.

    Args:
        target: `v_t`.
        adapted: `v_{s+D}`.
        source: `v_s`.

    Returns:
        What the target with the adapter is to predict.
    """
    return target + (adapted - source)


def taught(kind: Teacher, target: Array, adapted: Array, source: Array) -> Array:
    """What the target with the adapter is to predict.

    Args:
        kind: `effect`, or `absolute` for the source's own answer, `v_{s+D}`: as good within a
            domain, but it drags a target whose domain has moved back to the source's.
        target: `v_t`.
        adapted: `v_{s+D}`.
        source: `v_s`.

    Returns:
        As `target`.
    """
    return adapted if kind == "absolute" else effect(target, adapted, source)


def effect_mismatch(on_target: Array, on_source: Array) -> float:
    """`|d_t - d_s|^2 / |d_s|^2`: how far an adapter's effect on the target is from the source's.

    Zero where both are the same, one where the target is not changed at all. It orders ways to move
    an adapter by weights alone; a student that was fitted to it may not be judged by it.

    Args:
        on_target: what the student changes, `v_{t+D'} - v_t`.
        on_source: what the adapter changes, `v_{s+D} - v_s`, on the same rows.

    Returns:
        The ratio; infinite where the adapter changes nothing on the source but the student does.
    """
    missed, whole = (
        float(np.sum(np.square(np.asarray(array, np.float64))))
        for array in (np.asarray(on_target) - np.asarray(on_source), on_source)
    )
    if whole == 0:
        return 0.0 if missed == 0 else float("inf")
    return missed / whole
