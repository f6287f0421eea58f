"""The noise that a net was trained with, and what it predicts, by any scheduler's configuration.

Source: Ho et al., arXiv 2006.11239 (betas); Nichol and Dhariwal, arXiv 2102.09672 (cosine); Lin et
al., arXiv 2305.08891, algorithm 1 (no signal at the last time).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from prolora_jax.errors import BaseModelError, Refusal

SCHEDULES = ("scaled_linear", "linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
_MOST_BETA = 0.999


@dataclass(frozen=True)
class TrainingNoise:
    """How a net was trained.

    Attributes:
        num_train_timesteps: times of the training.
        beta_start: variance of the noise added at the first of them.
        beta_end: and at the last.
        beta_schedule: what grows evenly between: its root ("scaled_linear") or itself ("linear");
            or "squaredcos_cap_v2", which asks for neither.
        trained_betas: all variances, instead of these.
        rescale_betas_zero_snr: whether nothing of the picture was left at the last time.
        prediction_type: what the net predicts: "epsilon", "v_prediction" or "sample".
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"

    @cached_property
    def kept(self) -> Float[np.ndarray, " times"]:
        """What is left of a picture's variance at each time: falling, from 1 to 0, float64."""
        kept = np.cumprod(1 - self._betas())
        if self.rescale_betas_zero_snr:
            root = np.sqrt(kept)
            kept = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return kept

    def _betas(self) -> Float[np.ndarray, " times"]:
        count = self.num_train_timesteps
        if self.trained_betas is not None:
            return np.asarray(self.trained_betas, np.float64)
        if self.beta_schedule == "squaredcos_cap_v2":
            bar = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
            return np.minimum(1 - bar[1:] / bar[:-1], _MOST_BETA)
        power = 0.5 if self.beta_schedule == "scaled_linear" else 1.0
        return np.linspace(self.beta_start**power, self.beta_end**power, count) ** (1 / power)


def read_noise(raw: Mapping[str, Any], origin: str) -> TrainingNoise:
    """The noise of a configuration.

    Args:
        raw: the content of a `scheduler_config.json` of any scheduler.
        origin: what to call it in messages.

    Returns:
        The same as our own record.

    Raises:
        BaseModelError: the noise is not of the Stable Diffusion family.
    """
    given = {name: value for name, value in raw.items() if value is not None}

    def must(be_true: bool, name: str, expected: str) -> None:
        if not be_true:
            raise BaseModelError(
                f"{origin}: field {name} is {given.get(name)!r}; expected {expected}; only the "
                f"noise of the Stable Diffusion family is supported; take a model trained with it",
                code=Refusal.UNSUPPORTED_CONFIG,
            )

    must(given.get("use_flow_sigmas") in (None, False), "use_flow_sigmas", "False")
    count = given.get("num_train_timesteps", TrainingNoise.num_train_timesteps)
    must(isinstance(count, int) and 1 < count < 10**6, "num_train_timesteps", "a number of times")
    betas = given.get("trained_betas")
    # Schedulers of flow matching have none of these, and other noise.
    schedule = given.get("beta_schedule")
    if betas is None:
        must(schedule in SCHEDULES, "beta_schedule", " or ".join(map(repr, SCHEDULES)))
    else:
        fits = isinstance(betas, list | tuple) and len(betas) == count and all(map(_part, betas))
        must(fits, "trained_betas", f"null or {count} numbers between 0 and 1")
    if betas is None and schedule != "squaredcos_cap_v2":
        for name in ("beta_start", "beta_end"):
            must(_part(given.get(name)), name, "a number between 0 and 1")
    predicts = given.get("prediction_type", "epsilon")
    must(predicts in PREDICTIONS, "prediction_type", " or ".join(map(repr, PREDICTIONS)))
    zero = given.get("rescale_betas_zero_snr", False)
    must(isinstance(zero, bool), "rescale_betas_zero_snr", "True or False")
    return TrainingNoise(
        num_train_timesteps=count,
        beta_start=given.get("beta_start", TrainingNoise.beta_start),
        beta_end=given.get("beta_end", TrainingNoise.beta_end),
        beta_schedule=str(schedule) if betas is None else "linear",
        trained_betas=None if betas is None else tuple(betas),
        rescale_betas_zero_snr=zero,
        prediction_type=predicts,
    )


def _part(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1
