"""DDIM without added noise (Song et al., arXiv 2010.02502, equation 12)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from prolora_jax.nets.sampling.spacing import times
from prolora_jax.nets.sampling.table import StepTable, as_table, forms, picture_weights
from prolora_jax.nets.sampling.training_noise import TrainingNoise


def ddim(noise: TrainingNoise, config: Mapping[str, Any], count: int) -> StepTable:
    """The table of a run.

    Args:
        noise: of the training.
        config: fields `timestep_spacing`, `steps_offset` and `set_alpha_to_one`, with torch's
            defaults.
        count: number of steps.
    """
    at = times(config, count).round().astype(int)
    kept = noise.kept
    ends = 1.0 if config.get("set_alpha_to_one", True) else kept[0]
    until = at - noise.num_train_timesteps // count
    a, b = np.sqrt(kept[at]), np.sqrt(1 - kept[at])
    after = np.where(until >= 0, kept[until], ends)

    x, answer, picture = forms(1)
    rows = []
    for signal, sigma, left in zip(a, b, after, strict=True):
        if noise.prediction_type == "epsilon":
            noisy = answer
        elif noise.prediction_type == "v_prediction":
            noisy = signal * answer + sigma * x
        else:
            noisy = (x - signal * answer) / sigma
        rows.append([np.sqrt(left) * picture + np.sqrt(1 - left) * noisy])
    return as_table(rows, times=at, picture=picture_weights(noise, a, b))
