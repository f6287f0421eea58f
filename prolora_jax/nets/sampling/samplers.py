"""Which sampler draws: the one a pipeline names, or another; of diffusers' Flax classes, or LCM.

Flax's classes were compared with torch's of the same names (docs/flax.md): over a whole run they
agree to 1e-6 where they know a configuration, but they pass over fields that they do not know, and
some are wrong. What is wrong and needed is mended here; what is passed over is refused.
"""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.nets.pipelines.diffusers_flax import flax_class, theirs
from prolora_jax.nets.sampling.lcm import LCMScheduler

_log = logging.getLogger(__name__)

Sampler = Literal["auto", "ddim", "pndm", "euler", "dpm", "lcm"]
Spacing = Literal["leading", "linspace", "trailing"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
_BY_CLASS = {
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "pndm",
    "EulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpm",
    "LCMScheduler": "lcm",
}
_INSTEAD = "euler"  # for classes that Flax never had
# Fields that Flax's classes pass over or get wrong, and the values at which that does not matter;
# null counts as unset.
_NOISE: dict[str, tuple[Any, ...]] = {"rescale_betas_zero_snr": (False,)}
_SPACING: dict[str, tuple[Any, ...]] = {"timestep_spacing": get_args(Spacing)}
_STEPS: dict[str, tuple[Any, ...]] = {
    "thresholding": (False,),
    "use_beta_sigmas": (False,),
    "use_exponential_sigmas": (False,),
    "use_karras_sigmas": (False,),
}
_CONTINUOUS = {
    "final_sigmas_type": ("zero",),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
}
_STEPS_OF: Mapping[str, dict[str, tuple[Any, ...]]] = {
    "ddim": _STEPS,
    "pndm": _STEPS | {"timestep_spacing": ("leading",), "set_alpha_to_one": (False,)},
    "euler": _STEPS | _CONTINUOUS,
    "dpm": _STEPS | {"algorithm_type": ("dpmsolver++",), "final_sigmas_type": ("zero",)},
}


def sampler_named(name: Sampler, config: Mapping[str, Any], *, origin: str) -> Any:
    """A sampler for a net that was trained with the noise of this configuration.

    Args:
        name: `auto` for the one that the configuration names. For another, fields that only the
            configuration's own sampler has are left out.
        config: the content of a `scheduler_config.json`.
        origin: what to call it in messages.

    Returns:
        An object with `create_state`, `set_timesteps`, `scale_model_input` and `step`, as
        diffusers' Flax schedulers are.

    Raises:
        BaseModelError: the noise, or the way of stepping, is of a kind that is not supported.
        UsageError: diffusers is not there, or has no Flax.
    """
    given = str(config.get("_class_name", "")).replace("Flax", "")
    own = _BY_CLASS.get(given)
    if name == "auto" and own is None:
        _log.warning("%s: there is no %s in Flax; %s draws instead", origin, given, _INSTEAD)
    chosen = (own or _INSTEAD) if name == "auto" else name
    if chosen == "lcm":
        return LCMScheduler.from_diffusers(config, origin=origin)
    fields = {key: value for key, value in config.items() if not key.startswith("_")}
    steps = _STEPS_OF[chosen]
    if own != chosen:
        fields = {key: value for key, value in fields.items() if key not in steps}
    for field, allowed in (_NOISE | _SPACING | steps).items():
        if fields.get(field) is not None and fields[field] not in allowed:
            others = f"choose a sampler, of {', '.join(SAMPLERS[1:])}"
            raise BaseModelError(
                f"{origin}: field {field} is {fields[field]!r}; expected "
                f"{' or '.join(map(repr, allowed))}, which is all that {chosen} knows in Flax; "
                f"{'nothing here draws from this noise' if field in _NOISE else others}",
                code=Refusal.UNSUPPORTED_CONFIG,
            )
    made = {"ddim": _ddim, "pndm": _pndm, "euler": _euler, "dpm": _dpm}[chosen]()
    with theirs():
        # Flax's classes read an offset that not all of them have a default for.
        sampler = made.from_config({"steps_offset": 0} | fields)
        try:
            sampler.create_state()
        except NotImplementedError as failure:
            raise BaseModelError(
                f"{origin}: {failure}; expected a noise that diffusers' Flax classes know; choose "
                f"another pipeline",
                code=Refusal.UNSUPPORTED_CONFIG,
            ) from failure
    return sampler


def times(
    config: Mapping[str, Any], count: int, *, spacing: str = "leading", last: int = 0
) -> np.ndarray:
    """Where a run steps from, as torch's schedulers place it.

    Args:
        config: fields `num_train_timesteps`, `timestep_spacing` and `steps_offset`.
        count: number of steps.
        spacing: what `timestep_spacing` is where it is not given.
        last: times after the last, which evenly spaced runs leave out.

    Returns:
        Falling times, `(count,)`, float64; of `linspace` not whole numbers.
    """
    trained = config["num_train_timesteps"]
    spacing = config.get("timestep_spacing") or spacing
    if spacing == "trailing":
        return np.arange(trained, 0, -trained / count).round() - 1
    if spacing == "linspace":
        rising = np.linspace(0, trained - 1, count + last)
    else:
        offset = config.get("steps_offset") or 0.0
        rising = np.arange(count + last) * (trained // (count + last)) + offset
    return rising[::-1][:count]


@cache
def _pndm() -> Any:
    return flax_class("FlaxPNDMScheduler")


@cache
def _ddim() -> Any:
    stock: Any = flax_class("FlaxDDIMScheduler")

    class DDIM(stock):
        """Flax's own places all times as `leading` does."""

        def set_timesteps(self, state: Any, num_inference_steps: int, shape: Any = ()) -> Any:
            placed = times(self.config, num_inference_steps).round()
            state = super().set_timesteps(state, num_inference_steps, shape)
            return state.replace(timesteps=jnp.asarray(placed, jnp.int32))

    return DDIM


@cache
def _euler() -> Any:
    stock: Any = flax_class("FlaxEulerDiscreteScheduler")

    class Euler(stock):
        """Flax's own does not know `trailing`, and takes every offset for 1."""

        def set_timesteps(self, state: Any, num_inference_steps: int, shape: Any = ()) -> Any:
            placed = times(self.config, num_inference_steps, spacing="linspace")
            alphas = state.common.alphas_cumprod
            trained = jnp.arange(len(alphas), dtype=jnp.float32)
            at = jnp.asarray(placed, jnp.float32)
            sigmas = jnp.interp(at, trained, jnp.sqrt((1 - alphas) / alphas))
            leading = self.config.get("timestep_spacing") == "leading"
            return state.replace(
                timesteps=at,
                sigmas=jnp.append(sigmas, 0),
                num_inference_steps=num_inference_steps,
                init_noise_sigma=jnp.sqrt(sigmas.max() ** 2 + leading),
            )

    return Euler


@cache
def _dpm() -> Any:
    stock: Any = flax_class("FlaxDPMSolverMultistepScheduler")

    class DPM(stock):
        """Flax's own ends at the noise of time 0, torch's without any; it rounds in float32."""

        def set_timesteps(self, state: Any, num_inference_steps: int, shape: Any) -> Any:
            spacing = self.config.get("timestep_spacing") or "linspace"
            last = 0 if spacing == "trailing" else 1
            placed = times(self.config, num_inference_steps, spacing=spacing, last=last).round()
            state = super().set_timesteps(state, num_inference_steps, shape)
            return state.replace(timesteps=jnp.asarray(placed, jnp.int32))

        def step(self, state: Any, model_output: Any, timestep: Any, sample: Any) -> Any:
            done = super().step(state, model_output, timestep, sample)
            ends, clean = timestep == state.timesteps[-1], done.state.model_outputs[-1]
            done.prev_sample = jnp.where(ends, clean, done.prev_sample)
            return done

    return DPM
