"""Biases and norms beside an adapter's pairs, on the parameters of a net.

They are vectors that are added to a layer's `bias` or, of a norm, to its `scale`. `merge` adds them
too; beside a kernel nothing in MaxDiffusion's layout holds them.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax.adapters.adapter import Adapter, Companion
from prolora_jax.adapters.formats.flax_keys import LORA
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.nets.adapters.tree import (
    Place,
    layers_of_transformers,
    leaf_at,
    module_path,
    modules_of_transformers,
    part_of,
    walk,
)

_log = logging.getLogger(__name__)
_PARTS = {"bias": "bias", "scale": "weight"}
"""What a companion calls the leaves of a layer."""


def vectors(params: Mapping[Any, Any]) -> dict[tuple[str, str], Place]:
    """Place of each bias and each norm's scale in a tree, by its layer's path and `bias`/`weight`.

    Args:
        params: as for `merge`; adapters beside the kernels are none.
    """
    found = {}
    for place, _ in walk(params):
        part = _PARTS.get(str(place[-1]))
        if part is not None and not any(str(name).startswith(LORA) for name in place):
            path = module_path(params, place)
            if path is not None:
                found[path, part] = place
    return found


def biases(params: Mapping[Any, Any]) -> Callable[[str], np.ndarray | None]:
    """The bias of a layer by its path, float32; None where it has none.

    Args:
        params: the tree.
    """
    places, stacked = vectors(params), modules_of_transformers(params)
    layers = layers_of_transformers(params)

    def bias(path: str) -> np.ndarray | None:
        if path in stacked:
            place = stacked[path].place
            layer: Any = leaf_at(params, layers[place.layer])
            held = "bias" in layer
            return part_of(leaf_at(layer, ("bias",)), place) if held else None
        place = places.get((path, "bias"))
        return None if place is None else np.asarray(leaf_at(params, place)).astype(np.float32)

    return bias


def with_vectors_added(
    params: Mapping[Any, Any], adapter: Adapter, scale: float | jax.Array, parts: Collection[str]
) -> dict[Place, jax.Array]:
    """New biases and norms where an adapter adds to them, by place.

    Args:
        params: the tree.
        adapter: with what it adds beside its pairs.
        scale: what is added is multiplied with it.
        parts: components that are looked at.

    Raises:
        AdapterRefused: the tree has no such bias or norm, or one of another width; or the adapter
            has a whole layer of its own.
    """
    places, new = vectors(params), {}
    for one in _with_effect(adapter, parts):
        place = places.get((one.path, one.part))
        old = None if place is None else leaf_at(params, place)
        if place is None or old is None or old.shape != one.array.shape:
            found = "none" if old is None else f"one of shape {old.shape}"
            raise AdapterRefused(
                f"{adapter.origin}: {one.key}: found {one.part} of shape {one.array.shape} for "
                f"{one.path}, and in the parameters {found}; expected the same; leave the "
                f"component out with parts=, or move the adapter without it (prolora migrate)",
                code=Refusal.UNMATCHED_MODULES,
            )
        total = jnp.asarray(old, jnp.float32) + scale * jnp.asarray(one.array, jnp.float32)
        new[place] = total.astype(old.dtype)
    return new


def warn_of_vectors(adapter: Adapter, parts: Collection[str]) -> None:
    """Log how much of an adapter does not stand beside the kernels.

    Args:
        adapter: with what it adds beside its pairs.
        parts: components that are looked at.
    """
    left = _with_effect(adapter, parts)
    if not left:
        return
    beside = sum(one.norm**2 for one in left)
    whole = beside + sum(module.norm**2 for module in adapter.modules)
    _log.warning(
        "%s: %d biases and norms are not put beside the kernels, %.2g %% of the squared update; "
        "merge adds them",
        adapter.origin,
        len(left),
        100 * beside / whole if whole else 100.0,
    )


def _with_effect(adapter: Adapter, parts: Collection[str]) -> list[Companion]:
    return [
        one
        for one in adapter.companions
        if one.part != "none" and one.path.partition(".")[0] in parts
    ]
