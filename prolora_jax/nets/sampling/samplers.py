"""Which sampler draws: the one that a pipeline names, or another.

Each is compared with torch's of the same name over whole runs (`tests/nets/test_samplers.py`).
Fields of a configuration that a sampler does not follow are refused, never passed over.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.nets.sampling.ddim import ddim
from prolora_jax.nets.sampling.dpm import dpm
from prolora_jax.nets.sampling.euler import euler, euler_ancestral
from prolora_jax.nets.sampling.lcm import lcm
from prolora_jax.nets.sampling.pndm import pndm
from prolora_jax.nets.sampling.scheduler import MakeTable, TableSampler
from prolora_jax.nets.sampling.spacing import Spacing
from prolora_jax.nets.sampling.training_noise import read_noise
from prolora_jax.nets.sampling.unipc import unipc

_log = logging.getLogger(__name__)

Sampler = Literal["auto", "ddim", "pndm", "euler", "euler-a", "dpm", "unipc", "lcm"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
_INSTEAD = "euler"  # for classes that are not here

_FLAGS = (False, True)
_ENDS = ("zero", "sigma_min")
_ORDERS = (1, 2, 3)
_PLACES: dict[str, tuple[Any, ...]] = {
    "timestep_spacing": get_args(Spacing),
    "timestep_type": ("discrete",),
}
_NEVER_LEFT_OUT = {*_PLACES, "prediction_type", "rescale_betas_zero_snr"}
"""What they say is true of the net, whoever steps."""

_OTHER_STEPS: dict[str, tuple[Any, ...]] = {
    "thresholding": (False,),
    "use_beta_sigmas": (False,),
    "use_exponential_sigmas": (False,),
    "use_lu_lambdas": (False,),
}
_KARRAS: dict[str, tuple[Any, ...]] = {"use_karras_sigmas": _FLAGS, "final_sigmas_type": _ENDS}


@dataclass(frozen=True)
class _Kind:
    """A sampler: torch's class of the same name, its table, and what its fields may be.

    Attributes:
        torch: name of the class.
        make: writes the table.
        fields: what a field may be, where it is read or would change what torch does; null counts
            as unset.
        reads: fields that are numbers.
        clips: whether pictures are clipped where the configuration does not say.
        adds_noise: whether steps add noise.
    """

    torch: str
    make: MakeTable
    fields: Mapping[str, tuple[Any, ...]]
    reads: tuple[str, ...] = ()
    clips: bool | None = None
    adds_noise: bool = False


_KINDS = {
    "ddim": _Kind(
        "DDIMScheduler",
        ddim,
        {"set_alpha_to_one": _FLAGS, "clip_sample": _FLAGS},
        reads=("clip_sample_range",),
        clips=True,
    ),
    "pndm": _Kind(
        "PNDMScheduler",
        pndm,
        {
            "set_alpha_to_one": _FLAGS,
            "skip_prk_steps": _FLAGS,
            "rescale_betas_zero_snr": (False,),
            "prediction_type": ("epsilon", "v_prediction"),
        },
    ),
    "euler": _Kind(
        "EulerDiscreteScheduler",
        euler,
        _KARRAS | {"interpolation_type": ("linear",)},
        reads=("sigma_min", "sigma_max"),
    ),
    "euler-a": _Kind("EulerAncestralDiscreteScheduler", euler_ancestral, {}, adds_noise=True),
    "dpm": _Kind(
        "DPMSolverMultistepScheduler",
        dpm,
        _KARRAS
        | {
            "algorithm_type": ("dpmsolver++",),
            "solver_order": _ORDERS,
            "solver_type": ("midpoint", "heun"),
            "lower_order_final": _FLAGS,
            "euler_at_final": _FLAGS,
            "lambda_min_clipped": (float("-inf"),),
            "variance_type": (),
        },
    ),
    "unipc": _Kind(
        "UniPCMultistepScheduler",
        unipc,
        {
            "use_karras_sigmas": _FLAGS,
            # With others torch's own ends in what is no number.
            "final_sigmas_type": ("zero",),
            "predict_x0": (True,),
            "solver_order": _ORDERS,
            "solver_type": ("bh2",),
            "lower_order_final": (True,),
            "disable_corrector": ([],),
            "solver_p": (),
        },
    ),
    "lcm": _Kind(
        "LCMScheduler",
        lcm,
        {"clip_sample": _FLAGS},
        reads=("clip_sample_range", "original_inference_steps", "timestep_scaling"),
        clips=False,
        adds_noise=True,
    ),
}
_BY_CLASS = {kind.torch: name for name, kind in _KINDS.items()}


def sampler_named(
    name: Sampler, config: Mapping[str, Any], *, origin: str, spacing: Spacing | None = None
) -> TableSampler:
    """A sampler for a net that was trained with the noise of this configuration.

    Args:
        name: `auto` for the one that the configuration names. For another, fields that it does not
            follow are left out, as torch leaves out what a class does not have.
        config: the content of a `scheduler_config.json`.
        origin: what to call it in messages.
        spacing: where steps are, whatever the configuration says.

    Returns:
        A sampler for `denoise`; also an object with `create_state`, `set_timesteps`,
        `scale_model_input` and `step`, as diffusers' Flax schedulers were.

    Raises:
        BaseModelError: the noise, or the way of stepping, is of a kind that is not supported.
        UsageError: a spacing is given, and this sampler takes its steps elsewhere.
    """
    config = config if spacing is None else {**config, "timestep_spacing": spacing}
    given = str(config.get("_class_name", "")).replace("Flax", "")
    own = _BY_CLASS.get(given)
    if name == "auto" and own is None:
        _log.warning("%s: there is no %s here; %s draws instead", origin, given, _INSTEAD)
    chosen = (own or _INSTEAD) if name == "auto" else name
    kind = _KINDS[chosen]
    fields = {key: value for key, value in config.items() if value is not None}
    allowed = _PLACES | _OTHER_STEPS | dict(kind.fields)
    for field, values in allowed.items():
        if field not in fields or fields[field] in values:
            continue
        if own != chosen and field not in _NEVER_LEFT_OUT:
            del fields[field]
            continue
        raise BaseModelError(
            f"{origin}: field {field} is {fields[field]!r}; expected "
            f"{' or '.join(map(repr, values)) or 'null'}, which is all that {chosen} knows here; "
            f"choose a sampler, of {', '.join(SAMPLERS[1:])}",
            code=Refusal.UNSUPPORTED_CONFIG,
        )
    for field in ("steps_offset", *kind.reads):
        if not isinstance(fields.get(field, 0), int | float):
            raise BaseModelError(
                f"{origin}: field {field} is {fields[field]!r}; expected a number; correct it",
                code=Refusal.UNSUPPORTED_CONFIG,
            )
    if chosen == "pndm" and own != "pndm":
        # What a pipeline of Stable Diffusion has, and nobody means otherwise.
        fields.setdefault("skip_prk_steps", True)
    clips = kind.clips is not None and fields.get("clip_sample", kind.clips)
    chosen_from = [
        field for field, values in (_PLACES | dict(kind.fields)).items() if len(values) > 1
    ]
    read = ("steps_offset", *kind.reads, *chosen_from)
    if spacing is not None and (why := _placed_elsewhere(chosen, fields)):
        raise UsageError(
            f"--spacing {spacing}: found the sampler {chosen}, whose steps are where {why}; "
            f"expected no spacing with it; leave it out, or name another --sampler",
            code=Refusal.BAD_OPTION,
        )
    return TableSampler(
        name=chosen,
        config=read_noise(fields, origin),
        fields=tuple((key, fields[key]) for key in sorted({*read} & fields.keys())),
        make=kind.make,
        clip=fields.get("clip_sample_range", 1.0) if clips else None,
        adds_noise=kind.adds_noise,
    )


def _placed_elsewhere(name: str, fields: Mapping[str, Any]) -> str | None:
    """Where the steps of a sampler are that asks for no spacing; None for all others."""
    if name == "lcm":
        return "it was distilled"
    if name in {"dpm", "unipc"} and fields.get("use_karras_sigmas"):
        return "Karras' levels of noise are (use_karras_sigmas)"
    return None
