"""Where a run steps from, as torch's schedulers place it, and how much noise there is."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.nets.sampling.training_noise import TrainingNoise

Spacing = Literal["leading", "linspace", "trailing"]
_ALMOST_NOTHING = 2.0**-24  # what is left of a picture where nothing should be: sigmas stay finite
_RHO = 7.0  # Karras et al., arXiv 2206.00364, equation 5


def times(
    config: Mapping[str, Any], count: int, *, spacing: str = "leading", last: int = 0
) -> Float[np.ndarray, " count"]:
    """Where a run steps from.

    Args:
        config: fields `num_train_timesteps`, `timestep_spacing` and `steps_offset`.
        count: number of steps.
        spacing: what `timestep_spacing` is where it is not given.
        last: times after the last, which evenly spaced runs leave out.

    Returns:
        Falling times, `(count,)`, float64; of `linspace` not whole numbers.

    Raises:
        UsageError: more steps than there are times for.
    """
    trained = config["num_train_timesteps"]
    spacing = config.get("timestep_spacing") or spacing
    if spacing == "trailing":
        return np.arange(trained, 0, -trained / count).round() - 1
    if spacing == "linspace":
        rising = np.linspace(0, trained - 1, count + last)
    else:
        offset = config.get("steps_offset") or 0.0
        if (
            count + last > trained
            or (count + last - 1) * (trained // (count + last)) + offset >= trained
        ):
            raise UsageError(
                f"steps: found {count}; expected fewer: placed as this pipeline has it, the first "
                f"would be later than the last of the {trained} times of the training; take fewer",
                code=Refusal.BAD_OPTION,
            )
        rising = np.arange(count + last, dtype=np.float64) * (trained // (count + last)) + offset
    return rising[::-1][:count]


def sigmas(noise: TrainingNoise) -> Float[np.ndarray, " times"]:
    """Noise over signal at each time of the training, rising."""
    kept = noise.kept.copy()
    kept[-1] = max(kept[-1], _ALMOST_NOTHING)
    return np.sqrt((1 - kept) / kept)


def sigmas_at(noise: TrainingNoise, at: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Noise over signal at times that are not always whole, by the line between both."""
    known = sigmas(noise)
    return np.interp(at, np.arange(len(known)), known)


def times_at(noise: TrainingNoise, found: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The times of the training that have these ratios of noise to signal; not always whole."""
    known = sigmas(noise)
    return np.interp(np.log(found), np.log(known), np.arange(len(known)))


def karras(most: float, least: float, count: int) -> Float[np.ndarray, " count"]:
    """Ratios of noise to signal from `most` to `least` (arXiv 2206.00364, equation 5)."""
    root = 1 / _RHO
    return (most**root + np.linspace(0, 1, count) * (least**root - most**root)) ** _RHO
