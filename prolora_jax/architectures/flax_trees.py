"""Flax trees: where each torch tensor is in one, which tensor a place in one means, and both ways.

`to_out_0` is `to_out.0`, but `linear_1` is `linear_1`: which names a number follows is looked up
in the tables of all published UNets, not guessed from the spelling.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from prolora_jax.architectures.clip.table import COMPONENTS
from prolora_jax.architectures.naming import UNET, flax_path
from prolora_jax.architectures.unet.published import CONFIGS
from prolora_jax.architectures.unet.table import unet_table
from prolora_jax.layout import kernel_to_weight, weight_to_kernel

Shape = tuple[int, ...]
Tree = dict[str, Any]
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_ROOT = "unet/"
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
    # A scalar spread over the shape: axes are permuted, and nothing is allocated.
    place, array = _in_flax(key, np.broadcast_to(0, shape))
    return place, array.shape


def _in_flax(key: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    """Place and array, in Flax layout, of a UNet's tensor."""
    module, _, leaf = key.rpartition(".")
    place = flax_path(UNET + module).removeprefix(_ROOT)
    if leaf == "bias":
        return f"{place}/bias", tensor
    if tensor.ndim == 1:
        return f"{place}/scale", tensor
    return f"{place}/kernel", weight_to_kernel(tensor)


def unet_to_flax(tensors: Mapping[str, np.ndarray]) -> Tree:
    """A UNet's checkpoint as the parameters of a Flax module.

    Args:
        tensors: all tensors by torch key (`conv_in.weight`), in torch layout.

    Returns:
        Nested dictionaries of the same numbers in Flax layout; views, nothing is copied.
    """
    return nested(dict(sorted(_in_flax(key, tensor) for key, tensor in tensors.items())))


def unet_from_flax(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The checkpoint of a UNet whose parameters are in a Flax tree; inverse of `unet_to_flax`.

    Args:
        tree: the UNet's own parameters, or a tree with them under `params` or `unet`; arrays of
            NumPy or JAX. What else is in it is passed over.

    Returns:
        Tensors by torch key in torch layout, sorted by key.
    """
    keyed = ((torch_key(tuple(key.split("/"))), key, leaf) for key, leaf in leaves(tree))
    return dict(
        sorted(
            (name.removeprefix(UNET), in_torch_layout(key.rpartition("/")[2], np.asarray(leaf)))
            for name, key, leaf in keyed
            if name is not None and name.startswith(UNET)
        )
    )


def in_torch_layout(leaf: str, array: np.ndarray) -> np.ndarray:
    """An array of a Flax tree in torch layout; `leaf` is its own name, `kernel` or another."""
    is_kernel = leaf == "kernel" and array.ndim in {2, 4}
    return kernel_to_weight(array) if is_kernel else array


def nested(tensors: Mapping[str, Any]) -> Tree:
    """The tree of keys with `/` between the levels."""
    tree: Tree = {}
    for key, array in tensors.items():
        *places, last = key.split("/")
        level = tree
        for place in places:
            level = level.setdefault(place, {})
        level[last] = array
    return tree


def leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a tree by key, with `/` between the levels."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{name}/")
        else:
            yield f"{above}{name}", value


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
    if place[0] not in {*COMPONENTS, "text_model", "text_projection", "unet"}:
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
