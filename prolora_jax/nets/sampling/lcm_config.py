"""What LCM's sampler has to know of a net, read off any scheduler's configuration."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from prolora_jax.errors import BaseModelError, Refusal

_CHOICES = {
    "beta_schedule": ("scaled_linear", "linear"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
}
# What else changes the noise or the picture, with its one value here; null counts as unset.
# The rest belongs to other ways of sampling: spacing and offset of their steps, their last step.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "clip_sample": (False,),
    "rescale_betas_zero_snr": (False,),
    "thresholding": (False,),
    "timestep_type": ("discrete",),
    "trained_betas": (),
    "use_flow_sigmas": (False,),
}


@dataclass(frozen=True)
class LCMConfig:
    """How a net was trained and distilled.

    Attributes:
        num_train_timesteps: times of the training.
        beta_start: variance of the noise added at the first of them.
        beta_end: and at the last.
        beta_schedule: what grows evenly between: its root ("scaled_linear") or itself ("linear").
        prediction_type: what the net predicts: "epsilon", "v_prediction" or "sample".
        original_inference_steps: steps of the solver in the distillation; times are taken from
            them.
        timestep_scaling: by which times are multiplied where output and input are weighed.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0


def read_config(raw: Mapping[str, Any], origin: str) -> LCMConfig:
    """The fields of a configuration that count here.

    Args:
        raw: the content of a `scheduler_config.json` of any scheduler.
        origin: what to call it in messages.

    Returns:
        The same as our own record; what is missing has its default, but for the noise.

    Raises:
        BaseModelError: the noise it describes is not of the Stable Diffusion family.
    """
    given = {name: value for name, value in raw.items() if value is not None}
    found = asdict(LCMConfig()) | given

    def must(be_true: bool, name: str, expected: str) -> None:
        if not be_true:
            raise BaseModelError(
                f"{origin}: field {name} is {given.get(name)!r}; expected {expected}; only the "
                f"noise of the Stable Diffusion family is supported; take a model trained with it",
                code=Refusal.UNSUPPORTED_CONFIG,
            )

    for name, allowed in _FIXED.items():
        must(name not in given or given[name] in allowed, name, _listed(allowed))
    # Schedulers of flow matching have none of these, and other noise.
    for name in ("beta_start", "beta_end", "beta_schedule"):
        must(name in given, name, "a value")
    for name, allowed in _CHOICES.items():
        must(found[name] in allowed, name, _listed(allowed))
    for name in ("beta_start", "beta_end"):
        value = found[name]
        must(isinstance(value, float) and 0 < value < 1, name, "a number between 0 and 1")
    train, steps = found["num_train_timesteps"], found["original_inference_steps"]
    must(isinstance(train, int) and train > 0, "num_train_timesteps", "a positive number")
    are_steps = isinstance(steps, int) and 1 <= steps <= train
    must(are_steps, "original_inference_steps", f"1 to {train}")
    must(isinstance(found["timestep_scaling"], int | float), "timestep_scaling", "a number")
    return LCMConfig(**{field.name: found[field.name] for field in fields(LCMConfig)})


def _listed(allowed: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, allowed)) or "null"
