"""A base model that draws with one adapter or another, by one program for all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from prolora_jax.adapters.adapter import Adapter, alike
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.nets.adapters.lora import attach
from prolora_jax.nets.adapters.tree import spec_of
from prolora_jax.nets.pipelines.devices import mesh_of_all
from prolora_jax.nets.pipelines.generation import generate
from prolora_jax.nets.pipelines.pipeline import Pipeline
from prolora_jax.nets.unet.loading import Params

NONE = "none"
"""The arm without adapters."""

Pictures = Float[np.ndarray, "prompts seeds height width 3"]

_LCM_STEPS, _STEPS = 4, 25
GUIDANCE_LCM, GUIDANCE_XL, _GUIDANCE = 1.0, 5.0, 7.5


def usual_steps(pipeline: Pipeline) -> int:
    """Steps of its sampler where nobody says how many."""
    return _LCM_STEPS if pipeline.sampler.name == "lcm" else _STEPS


def usual_guidance(pipeline: Pipeline) -> float:
    """How much the prompt counts where nobody says how much."""
    if pipeline.sampler.name == "lcm":
        return GUIDANCE_LCM
    return GUIDANCE_XL if pipeline.is_sdxl_family else _GUIDANCE


def require_heard(negative: str | None, guidance: float) -> None:
    """Refuse what not to draw where nothing asks for it.

    Args:
        negative: what not to draw.
        guidance: how much prompts count against it.

    Raises:
        UsageError: pictures would be the same without it.
    """
    if negative is not None and guidance <= 1:
        raise UsageError(
            f"--negative {negative!r}: found guidance {guidance:g}, by which it is not asked for; "
            f"expected more than 1 with it; leave it out, or give --guidance",
            code=Refusal.BAD_OPTION,
        )


@dataclass(frozen=True)
class Drawer:
    """What a base model draws for each arm, from the same noise.

    Attributes:
        pipeline: of the base model.
        params: of all its components.
        adapters: by arm, those that are used together, as LoRA factors; each arm has as many.
        scales: their strengths.
        settings: the other arguments of `generate`.
        always: an adapter that every arm has.
    """

    pipeline: Pipeline
    params: Params
    adapters: Mapping[str, Sequence[Adapter]]
    scales: Sequence[float]
    settings: Mapping[str, Any]
    always: Adapter | None = None

    @cached_property
    def _alike(self) -> dict[str, list[Adapter]]:
        """The adapters in one structure: the next arm's are put where the last one's were."""
        same = [alike(row) for row in zip(*self.adapters.values(), strict=True)]
        return {arm: [row[place] for row in same] for place, arm in enumerate(self.adapters)}

    def draw(
        self,
        arm: str,
        prompts: Sequence[str],
        seeds: Sequence[int],
        progress: Progress = lambda stage, done, total: None,
    ) -> Pictures:
        """Every prompt with every seed.

        Args:
            arm: of `adapters`, or `none`: the same program with strength 0.
            prompts: what to draw.
            seeds: of the noise.
            progress: called with the stage, and how many pictures of how many are done.

        Returns:
            Pictures with values from 0 to 1.

        Raises:
            UsageError: as `generate`.
        """
        of_any = next(iter(self._alike.values()), [])
        names = [f"adapter{place}" for place in range(len(self.scales))]
        some = dict(zip(names, self._alike.get(arm, of_any), strict=False))
        used = {n: 0.0 if arm == NONE else s for n, s in zip(names, self.scales, strict=True)}
        fixed = {} if self.always is None else {"always": self.always}
        return generate(
            self.pipeline,
            # Each was looked at when it was loaded.
            attach(self.params, some | fixed, assume_base=spec_of(self.params).family),
            prompts,
            seeds,
            scales={name: used[name] for name in some} | dict.fromkeys(fixed, 1.0),
            mesh=mesh_of_all(),
            progress=lambda _, done, total: progress(f"drawing: {arm}", done, total),
            **self.settings,
        )
