"""Flax trees: where each torch tensor is in one, and which tensor a place in one means.

`to_out_0` is `to_out.0`, but `linear_1` is `linear_1`: which names a number follows is looked up
in the tables of all published UNets, not guessed from the spelling.
"""

from collections.abc import Mapping
from functools import cache
from itertools import pairwise

import numpy as np

from prolora_jax.architectures.configs import CONFIGS
from prolora_jax.architectures.naming import UNET, flax_path
from prolora_jax.architectures.unet_table import unet_table
from prolora_jax.layout import weight_to_kernel

Shape = tuple[int, ...]
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_WRAPPERS = ("params",)  # a training state keeps its tree in a field of this name


def flax_table(table: Mapping[str, Shape]) -> dict[str, Shape]:
    """The Flax tree of a UNet, flat.

    Args:
        table: shape by torch key, as `unet_table` lists them.

    Returns:
        Shape in Flax layout by place, `down_blocks_1/attentions_0/proj_in/kernel`, sorted.
    """
    return dict(sorted(_flax_entry(key, shape) for key, shape in table.items()))


def _flax_entry(key: str, shape: Shape) -> tuple[str, Shape]:
    module, _, leaf = key.rpartition(".")
    place = flax_path(UNET + module).removeprefix("unet/")
    if leaf == "bias":
        return f"{place}/bias", shape
    if len(shape) == 1:
        return f"{place}/scale", shape
    # A scalar spread over the shape: axes are permuted, and nothing is allocated.
    return f"{place}/kernel", weight_to_kernel(np.broadcast_to(0, shape)).shape


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
