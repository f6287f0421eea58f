"""Euler's method, and the ancestral one that adds noise (arXiv 2206.00364, algorithm 1).

Latents are `x_0 + sigma e` here; the net sees them divided by `sqrt(sigma^2 + 1)`. The ancestral
steps are those of arXiv 2010.02502, equation 16 with eta 1, in these terms.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from prolora_jax.nets.sampling.spacing import karras, sigmas, sigmas_at, times, times_at
from prolora_jax.nets.sampling.table import StepTable, as_table, forms, picture_weights
from prolora_jax.nets.sampling.training_noise import TrainingNoise


def euler(noise: TrainingNoise, config: Mapping[str, Any], count: int) -> StepTable:
    """The table of a run that adds nothing.

    Args:
        noise: of the training.
        config: fields `timestep_spacing`, `steps_offset`, `use_karras_sigmas`, `sigma_min`,
            `sigma_max` and `final_sigmas_type`, with torch's defaults.
        count: number of steps.
    """
    at = times(config, count, spacing="linspace")
    found = sigmas_at(noise, at)
    if config.get("use_karras_sigmas"):
        most, least = config.get("sigma_max"), config.get("sigma_min")
        found = karras(most or found[0], least or found[-1], count)
        at = times_at(noise, found)
    end = sigmas(noise)[0] if config.get("final_sigmas_type") == "sigma_min" else 0.0
    return _table(noise, config, at, np.append(found, end), np.zeros(count))


def euler_ancestral(noise: TrainingNoise, config: Mapping[str, Any], count: int) -> StepTable:
    """The table of a run that adds noise at each step but the last.

    Args:
        noise: of the training.
        config: fields `timestep_spacing` and `steps_offset`, with torch's defaults.
        count: number of steps.
    """
    at = times(config, count, spacing="linspace")
    found = np.append(sigmas_at(noise, at), 0.0)
    begin, end = found[:-1], found[1:]
    added = np.sqrt(end**2 * (begin**2 - end**2) / begin**2)
    return _table(noise, config, at, found, added)


def _table(
    noise: TrainingNoise,
    config: Mapping[str, Any],
    at: Float[np.ndarray, " n"],
    levels: Float[np.ndarray, " n_and_end"],
    added: Float[np.ndarray, " n"],
) -> StepTable:
    begin, end = levels[:-1], levels[1:]
    kept = np.sqrt(end**2 - added**2)
    x, _, picture = forms(1)
    rows = [[x + (x - picture) / s * (t - s)] for s, t in zip(begin, kept, strict=True)]
    size = np.sqrt(begin**2 + 1)
    # The picture in the net's own terms: it is shown `x / size`.
    weights = picture_weights(noise, 1 / size, begin / size) / np.stack([size, size**0], axis=-1)
    leading = (config.get("timestep_spacing") or "linspace") == "leading"
    return as_table(
        rows,
        times=at,
        picture=weights,
        start=np.sqrt(begin.max() ** 2 + 1) if leading else begin.max(),
        shown=1 / size,
        noise=added,
    )
