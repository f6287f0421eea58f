"""DPM-Solver++ in one to three earlier steps (Lu et al., arXiv 2211.01095, algorithms 1 and 2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from prolora_jax.nets.sampling.spacing import karras, sigmas, sigmas_at, times, times_at
from prolora_jax.nets.sampling.table import Form, StepTable, as_table, forms, picture_weights
from prolora_jax.nets.sampling.training_noise import TrainingNoise

_FEW = 15  # runs below that end in steps of lower order, if `lower_order_final`


@dataclass(frozen=True)
class Levels:
    """Where a run of `n` steps is at its times and at its end: `x = signal x_0 + noise e`.

    Attributes:
        times: `(n,)`.
        signal: `(n + 1,)`.
        noise: likewise; the last may be 0.
        half_log: the logarithm of their ratio, likewise; the last may be infinite.
    """

    times: Float[np.ndarray, " n"]
    signal: Float[np.ndarray, " n_and_end"]
    noise: Float[np.ndarray, " n_and_end"]
    half_log: Float[np.ndarray, " n_and_end"]


def levels(noise: TrainingNoise, config: Mapping[str, Any], count: int) -> Levels:
    """Where DPM-Solver++ and UniPC step from and to.

    Args:
        noise: of the training.
        config: fields `timestep_spacing`, `steps_offset`, `use_karras_sigmas` and
            `final_sigmas_type`, with torch's defaults.
        count: number of steps.
    """
    spacing = config.get("timestep_spacing") or "linspace"
    known = sigmas(noise)
    if config.get("use_karras_sigmas"):
        found = karras(known[-1], known[0], count)
        at = times_at(noise, found).round()
    else:
        last = 0 if spacing == "trailing" else 1
        at = times(config, count, spacing=spacing, last=last).round()
        found = sigmas_at(noise, at)
    end = known[0] if config.get("final_sigmas_type") == "sigma_min" else 0.0
    ratios = np.append(found, end)
    signal = 1 / np.sqrt(ratios**2 + 1)
    with np.errstate(divide="ignore"):
        half_log = -np.log(ratios)
    return Levels(at, signal, ratios * signal, half_log)


def dpm(noise: TrainingNoise, config: Mapping[str, Any], count: int) -> StepTable:
    """The table of a run.

    Args:
        noise: of the training.
        config: fields of `levels`, and `solver_order`, `solver_type`, `lower_order_final` and
            `euler_at_final`, with torch's defaults.
        count: number of steps.
    """
    at = levels(noise, config, count)
    order = config.get("solver_order", 2)
    heun = config.get("solver_type") == "heun"
    few = config.get("lower_order_final", True) and count < _FEW
    plain_end = few or config.get("euler_at_final") or at.noise[-1] == 0
    x, *earlier, _, picture = forms(order)
    rows = []
    for i in range(count):
        used = min(order, i + 1)
        if i == count - 1 and plain_end:
            used = 1
        elif i == count - 2 and few:
            used = min(used, 2)
        moved = _moved(at, i, x, [picture, *earlier][:used], heun=heun)
        rows.append([moved, *[picture, *earlier][: order - 1]])
    told = picture_weights(noise, at.signal[:-1], at.noise[:-1])
    return as_table(rows, times=at.times, picture=told)


def _moved(at: Levels, i: int, x: Form, pictures: list[Form], *, heun: bool) -> Form:
    """Step `i` from the pictures of the present step and of earlier ones."""
    h = at.half_log[i + 1] - at.half_log[i]
    signal, decay = at.signal[i + 1], np.expm1(-h)
    moved = at.noise[i + 1] / at.noise[i] * x - signal * decay * pictures[0]
    if len(pictures) == 1:
        return moved
    apart = (at.half_log[i] - at.half_log[i - 1]) / h
    slope = (pictures[0] - pictures[1]) / apart
    if len(pictures) == 2:
        return moved + (signal * (decay / h + 1) if heun else -0.5 * signal * decay) * slope
    before = (at.half_log[i - 1] - at.half_log[i - 2]) / h
    other = (pictures[1] - pictures[2]) / before
    bend = (slope - other) / (apart + before)
    return (
        moved
        + signal * (decay / h + 1) * (slope + apart * bend)
        - signal * ((decay + h) / h**2 - 0.5) * bend
    )
