"""Flax trees: `unet / down_blocks_1 / ... / to_q / lora-<adapter> / {down, up} / kernel`.

The names are those of diffusers' Flax models and the place beside the base's own kernel is
MaxDiffusion's. Kernels are in Flax layout, so the update of a kernel `(in, out)` is `down @ up`.
Here a tree is flat, with `/` between its levels; `to_flax` and `from_flax` have it nested.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.formats.dumping import dump
from prolora_jax.adapters.formats.flax_keys import DEFAULT_NAME, LORA
from prolora_jax.adapters.formats.folding import fold_scales
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.architectures.flax_trees import Tree, leaves, nested
from prolora_jax.architectures.spec import BaseModelSpec

_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


def to_flax(
    adapter: Adapter, spec: BaseModelSpec, *, name: str = DEFAULT_NAME, keep_alpha: bool = False
) -> Tree:
    """An adapter as a Flax tree in memory, to be merged into the base's parameters.

    Args:
        adapter: resolved, or resolvable against `spec`.
        spec: the base model it is for, which knows the names.
        name: the adapter's name in the tree, `lora-<name>`.
        keep_alpha: whether factors stay as they are and `alpha` stands beside them; otherwise
            the scale is multiplied into `up`, and `down @ up` is the update.

    Returns:
        Nested dictionaries of NumPy arrays: `down` `(in, rank)` or `(kh, kw, in, rank)`, `up`
        `(rank, out)` or `(1, 1, rank, out)`.
    """
    tensors, _ = dump(adapter if keep_alpha else fold_scales(adapter), "flax", spec)
    old, new = f"/{LORA}{DEFAULT_NAME}/", f"/{LORA}{name}/"
    return nested({key.replace(old, new): array for key, array in tensors.items() if old in key})


def from_flax(tree: Mapping[str, Any], spec: BaseModelSpec, *, name: str | None = None) -> Adapter:
    """The adapter in a Flax tree; the base's own parameters around it are passed over.

    Args:
        tree: nested, with `unet` and text encoders on top, or the UNet's own parameters; arrays
            of NumPy or JAX.
        spec: the base model it is for, which knows the names.
        name: the adapter's name in the tree; needed only when there are several.

    Returns:
        The adapter, resolved, format `flax`.
    """
    tree = tree.get("params", tree)
    if not any(component in tree for component in _COMPONENTS):
        tree = {"unet": tree}
    wanted = LORA if name is None else f"{LORA}{name}/"
    tensors = {key: np.asarray(leaf) for key, leaf in leaves(tree) if f"/{wanted}" in key}
    return resolve(parse(tensors, {}, "Flax tree"), spec)
