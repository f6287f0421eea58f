"""Flax names read back: which torch tensor a place in a Flax tree means.

`to_out_0` is `to_out.0`, but `linear_1` is `linear_1`: which names a number follows is looked up
in the tables of all published UNets, not guessed from the spelling.
"""

from functools import cache
from itertools import pairwise

from prolora_jax.architectures.configs import CONFIGS
from prolora_jax.architectures.naming import UNET
from prolora_jax.architectures.unet_table import unet_table

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_WRAPPERS = ("params",)  # a training state keeps its tree in a field of this name


def torch_key(place: tuple[str, ...]) -> str | None:
    """Key, with component, of the torch tensor that is at a place in a Flax tree.

    Args:
        place: names from the root to the array: of a UNet, of a text encoder (`text_model` first),
            or of a tree of components.

    Returns:
        `unet.conv_in.weight` for `("conv_in", "kernel")`; None for what is no parameter.
    """
    while place and place[0] in _WRAPPERS:
        place = place[1:]
    if not place or place[-1] not in _LEAVES:
        return None
    if place[0] not in {*_TEXT_ENCODERS, "text_model", "text_projection", "unet"}:
        place = ("unet", *place)
    parts = [*place[:-1], _LEAVES[place[-1]]]
    if place[0] == "unet":
        parts = [_split(part) for part in parts]
    return ".".join(parts)


def _split(part: str) -> str:
    name, _, number = part.rpartition("_")
    return f"{name}.{number}" if number.isdecimal() and name in _numbered() else part


@cache
def _numbered() -> frozenset[str]:
    """Names that a number follows in some UNet: `down_blocks`, `to_out`, `net`."""
    keys = (f"{UNET}{key}" for config in CONFIGS.values() for key in unet_table(config))
    steps = (step for key in keys for step in pairwise(key.split(".")))
    return frozenset(name for name, after in steps if after.isdecimal())
