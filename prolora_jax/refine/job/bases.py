"""Two base models that are to draw for each other: where they lie, and whether they can."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.pipeline_files import pipeline_files
from prolora_jax.migration.pair import BasePair
from prolora_jax.refine.job.student import TAUGHT


@dataclass(frozen=True)
class DrawingBases:
    """Where two base models draw from.

    Attributes:
        source: a diffusers pipeline's folder, or a UNet in any form.
        target: likewise.
        source_parts: pipeline from which everything but the source's UNet is taken.
        target_parts: likewise.
        dtype: what both nets compute in; the student's factors are float32.
    """

    source: Path
    target: Path
    source_parts: Path | None = None
    target_parts: Path | None = None
    dtype: str = "float32"


def latent_space(place: Path, parts: Path | None = None) -> dict[str, Any]:
    """What tells latent spaces apart, from the configuration of a pipeline's VAE.

    Args:
        place: of the base model.
        parts: of its other components, if not beside it.

    Raises:
        UsageError: there is nothing.
        BaseModelError: it is no whole pipeline.
    """
    config = pipeline_files(place, parts).config("vae")
    known = {"latent_channels": 4, "scaling_factor": 0.18215, "shift_factor": None}
    blocks = config.get("block_out_channels")
    found = {name: config.get(name, usual) for name, usual in known.items()}
    return found | {"pixels_per_latent": 2 ** (len(blocks) - 1) if isinstance(blocks, list) else 8}


def beside_unets(bases: DrawingBases) -> list[str]:
    """What identifies all that both draw with beside their UNets' weights.

    Args:
        bases: source and target. Text encoders of a pipeline are identified with its UNet; those
            of other parts are read here.

    Raises:
        BaseModelError: one of them is no whole pipeline.
    """
    places = (bases.source, bases.source_parts), (bases.target, bases.target_parts)
    return [
        pipeline_files(place, parts).digest(weights=parts is not None) for place, parts in places
    ]


def require_one_latent_space(bases: DrawingBases) -> int:
    """Refuse base models whose nets speak of different latents.

    Args:
        bases: source and target.

    Returns:
        Pixels of a latent, height and width.

    Raises:
        BaseModelError: they differ.
    """
    source = latent_space(bases.source, bases.source_parts)
    target = latent_space(bases.target, bases.target_parts)
    for name, wanted in target.items():
        if source[name] != wanted:
            raise BaseModelError(
                f"{bases.source}: its VAE has {name} {source[name]}; expected {wanted}, which "
                f"{bases.target} has: pictures of one are none of the other's, so nothing can be "
                "learned from them; use `prolora migrate`",
                code=Refusal.WRONG_BASE,
            )
    return target["pixels_per_latent"]


def require_nets(pair: BasePair) -> None:
    """Refuse base models whose nets are not computed here: they draw, but not with a UNet.

    Args:
        pair: source and target.

    Raises:
        BaseModelError: one of them is such.
    """
    for model in (pair.source, pair.target):
        if not any(path.startswith(TAUGHT) for path in model.spec.modules):
            raise BaseModelError(
                f"{model.location}: found {model.spec.name}, whose net is not computed here; "
                "expected pipelines with a UNet, or language models, of source and target; use "
                "`prolora migrate`",
                code=Refusal.UNSUPPORTED_CONFIG,
            )
