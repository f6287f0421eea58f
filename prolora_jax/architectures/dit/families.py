"""The families of diffusion transformers, and which of them a model is."""

import re
from collections.abc import Iterable

from prolora_jax.architectures.dit.cross import (
    COGVIDEOX,
    COSMOS,
    HIDREAM,
    KREA2,
    LTX,
    LTX2,
    LUMINA2,
    PIXART,
    QWEN,
    QWEN21,
    SANA,
    WAN,
    Z_IMAGE,
)
from prolora_jax.architectures.dit.names import DitFamily
from prolora_jax.architectures.dit.streams import (
    AURAFLOW,
    CHROMA,
    FLUX1,
    FLUX2,
    FLUX3,
    HUNYUAN_IMAGE,
    HUNYUAN_VIDEO,
    HUNYUAN_VIDEO_15,
    SD3,
)

# Whatever has more of its own stands before what shares the rest.
DIT_FAMILIES: tuple[DitFamily, ...] = (
    *(FLUX2, FLUX3, CHROMA, FLUX1, HUNYUAN_IMAGE, HUNYUAN_VIDEO, HUNYUAN_VIDEO_15, SD3, AURAFLOW),
    *(PIXART, LUMINA2, Z_IMAGE, WAN, COSMOS, QWEN, QWEN21, HIDREAM, KREA2, LTX2, LTX, SANA),
    COGVIDEOX,
)

_NUMBER = re.compile(r"\.\d+(?=\.)")


def dit_family(names: Iterable[str]) -> DitFamily | None:
    """The family of a diffusion transformer; None of any other model.

    Args:
        names: of its modules without prefix or component, diffusers' or its authors'.
    """
    signs = {_NUMBER.sub(".*", name) for name in names}
    return next((family for family in DIT_FAMILIES if family.fits(signs)), None)


def unlike_families(
    source: Iterable[str], target: Iterable[str]
) -> tuple[DitFamily, DitFamily] | None:
    """The families of two models, where they share no weights; None where they may, or are unknown.

    Args:
        source: names of the modules of one transformer, without component.
        target: those of another.
    """
    ours, theirs = dit_family(source), dit_family(target)
    if ours is None or theirs is None or ours.origin == theirs.origin:
        return None
    return ours, theirs
