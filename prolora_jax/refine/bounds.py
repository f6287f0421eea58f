"""What a recipe may ask for: what could not be followed is refused before anything is drawn."""

import math
from collections.abc import Mapping

from prolora_jax.errors import Refusal, UsageError

MOST_SEEDS = 2**31
"""Seeds are below it: of larger ones generators would see a part alone, and another's samples."""
MOST_TIMES = 1000
"""Of a net's training, and so of a sampler's steps."""


def require_within(asked: object, bounds: Mapping[str, tuple[int, int | None]]) -> None:
    """Refuse a recipe with a number out of bounds, or a seed that no generator takes.

    Args:
        asked: a recipe; it has a `seed`.
        bounds: least and most of its fields, by name; no most if None. A field that is None says
            nothing.

    Raises:
        UsageError: a number is out of bounds.
    """
    for name, (least, most) in {**bounds, "seed": (0, MOST_SEEDS - 1)}.items():
        found = getattr(asked, name)
        if found is None or (found >= least and (most is None or found <= most)):
            continue
        wanted = f"{least} or more" if most is None else f"{least} to {most}"
        raise UsageError(
            f"refine: found {name} {found}; expected {wanted}; give such a "
            "number, or leave it away",
            code=Refusal.BAD_OPTION,
        )


def require_guidance(guidance: float) -> None:
    """Refuse a strength of prompts that no picture can follow.

    Args:
        guidance: of the pools.

    Raises:
        UsageError: it is negative, infinite or no number.
    """
    if not math.isfinite(guidance) or guidance < 0:
        raise UsageError(
            f"refine: found guidance {guidance}; expected a number from 0 on, 1 for none; give "
            "--guidance such a number, or leave it away",
            code=Refusal.BAD_OPTION,
        )


def latents_of(pixels: int, per_latent: int) -> int:
    """Height and width in latents.

    Args:
        pixels: height and width of pictures.
        per_latent: pixels of one latent.

    Raises:
        UsageError: it is no whole number of latents, or none at all.
    """
    if pixels < per_latent or pixels % per_latent:
        raise UsageError(
            f"refine: found size {pixels}; expected a multiple of {per_latent} pixels, of which a "
            "latent stands for each; give --size one, or leave it away",
            code=Refusal.BAD_OPTION,
        )
    return pixels // per_latent
