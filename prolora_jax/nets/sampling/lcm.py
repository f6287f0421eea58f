"""Sampling in a few steps by a latent consistency model (LCM).

The net of such a model, or one with an LCM adapter on it, says in one step where a picture ends;
further steps put fresh noise on that and ask again (Luo et al., arXiv 2310.04378, algorithm 2 of
arXiv 2303.01469; as an adapter: arXiv 2311.05556).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.nets.sampling.table import StepTable, as_table, forms, picture_weights
from prolora_jax.nets.sampling.training_noise import TrainingNoise

_SIGMA_DATA = 0.5  # standard deviation of the data, as the distillation takes it
_DISTILLED = 50


def lcm(noise: TrainingNoise, config: Mapping[str, Any], count: int) -> StepTable:
    """The table of a run.

    Args:
        noise: of the training.
        config: fields `original_inference_steps` (steps of the solver in the distillation; the
            times are taken from theirs) and `timestep_scaling` (by which times are multiplied where
            output and input are weighed), with torch's defaults.
        count: number of steps.

    Raises:
        BaseModelError: the distillation had more steps than the training has times.
        UsageError: more steps than the distillation had.
    """
    trained = noise.num_train_timesteps
    most = config.get("original_inference_steps", _DISTILLED)
    if not 1 <= most <= trained:
        raise BaseModelError(
            f"scheduler: field original_inference_steps is {most}; expected 1 to {trained}, the "
            f"times of the training; correct it",
            code=Refusal.UNSUPPORTED_CONFIG,
        )
    if count > most:
        raise UsageError(
            f"num_inference_steps: found {count}; expected 1 to {most}, the steps of the "
            f"distillation; take fewer",
            code=Refusal.BAD_OPTION,
        )
    falling = np.arange(most, 0, -1) * (trained // most) - 1
    # As torch's diffusers rounds, whose times the published adapters are shown with.
    at = falling[np.floor(np.linspace(0, most, count, endpoint=False)).astype(int)]
    signal, sigma = np.sqrt(noise.kept), np.sqrt(1 - noise.kept)
    # At time 0 the net's part has to vanish, which makes a net a consistency model.
    scaled = at * config.get("timestep_scaling", 10.0)
    variance = scaled**2 + _SIGMA_DATA**2
    x, _, picture = forms(1)
    clean = [
        share * picture + kept * x
        for share, kept in zip(scaled / np.sqrt(variance), _SIGMA_DATA**2 / variance, strict=True)
    ]
    left = np.append(signal[at[1:]], 1.0)
    return as_table(
        [[a * form] for a, form in zip(left, clean, strict=True)],
        times=at,
        picture=picture_weights(noise, signal[at], sigma[at]),
        noise=np.append(sigma[at[1:]], 0.0),
    )
