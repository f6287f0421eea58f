"""Flax trees: `unet / down_blocks_1 / ... / to_q / lora-<adapter> / {down, up} / kernel`.

The names are those of diffusers' Flax models and the place beside the base's own kernel is
MaxDiffusion's. Kernels are in Flax layout, so the update of a kernel `(in, out)` is `down @ up`.
Here a tree is flat, with `/` between its levels; `to_flax` and `from_flax` have it nested. Layers
of a diffusion transformer are those of MaxDiffusion's trees, whole stacks of blocks in one
(`flax_stacks`); CLIP's beside it are as beside a UNet.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.formats.components import is_clip_layer
from prolora_jax.adapters.formats.dumping import dump
from prolora_jax.adapters.formats.flax_keys import DEFAULT_NAME, LORA, dump_tensors
from prolora_jax.adapters.formats.flax_stacks import Pair, require_places, stacked, unstacked
from prolora_jax.adapters.formats.folding import fold_scales
from prolora_jax.adapters.formats.parsing import parse
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.architectures.dit.stacks import DIT_COMPONENTS
from prolora_jax.architectures.dit.trees import tree_places
from prolora_jax.architectures.flax_trees import Tree, leaves, nested
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal, UsageError

_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_COMPONENTS = ("unet", *_TEXT_ENCODERS)


def to_flax(
    adapter: Adapter, spec: BaseModelSpec, *, name: str = DEFAULT_NAME, keep_alpha: bool = False
) -> Tree:
    """An adapter as a Flax tree in memory, to be merged into the base's parameters.

    Args:
        adapter: resolved, or resolvable against `spec`.
        spec: the base model it is for, which knows the names.
        name: the adapter's name in the tree, `lora-<name>`.
        keep_alpha: whether factors stay as they are and `alpha` stands beside them; otherwise
            the scale is multiplied into `up`, and `down @ up` is the update. Not of a diffusion
            transformer, whose layers hold many modules.

    Returns:
        Nested dictionaries of NumPy arrays: `down` `(in, rank)` or `(kh, kw, in, rank)`, `up`
        `(rank, out)` or `(1, 1, rank, out)`; of a stack of blocks `(blocks, in, rank)` and
        `(blocks, rank, out)`, zeros in blocks without an update.

    Raises:
        AdapterRefused: a module is not in `spec`, or has no certain place in a tree.
        UsageError: `keep_alpha` of a diffusion transformer's adapter.
    """
    if spec.layer_names.components:
        return _transformer_tree(adapter, spec, name, keep_alpha=keep_alpha)
    tensors, _ = dump(adapter if keep_alpha else fold_scales(adapter), "flax", spec)
    old, new = f"/{LORA}{DEFAULT_NAME}/", f"/{LORA}{name}/"
    return nested({key.replace(old, new): array for key, array in tensors.items() if old in key})


def from_flax(tree: Mapping[str, Any], spec: BaseModelSpec, *, name: str | None = None) -> Adapter:
    """The adapter in a Flax tree; the base's own parameters around it are passed over.

    Args:
        tree: nested, with `unet`, `transformer` and text encoders on top, or the parameters of
            the one UNet or transformer; arrays of NumPy or JAX.
        spec: the base model it is for, which knows the names.
        name: the adapter's name in the tree; needed only when there are several.

    Returns:
        The adapter, resolved, format `flax`.

    Raises:
        AdapterRefused: a module is not in `spec`, or a layer in no known tree.
        UsageError: a transformer's tree has several adapters, and no name was given.
    """
    tree = tree.get("params", tree)
    components = spec.layer_names.components
    if not any(component in tree for component in (*_COMPONENTS, *DIT_COMPONENTS)):
        tree = {components[0] if components else "unet": tree}
    wanted = LORA if name is None else f"{LORA}{name}/"
    tensors = {key: np.asarray(leaf) for key, leaf in leaves(tree) if f"/{wanted}" in key}
    if not components:
        return resolve(parse(tensors, {}, "Flax tree"), spec)
    names = {key.partition(f"/{LORA}")[2].partition("/")[0] for key in tensors}
    if len(names) > 1:
        raise UsageError(
            f"Flax tree: found adapters {', '.join(sorted(names))}; expected one; name it (name=)",
            code=Refusal.BAD_NAME,
        )
    texts = {key: a for key, a in tensors.items() if key.partition("/")[0] in _TEXT_ENCODERS}
    modules = tuple(unstacked(_pairs(tensors)))
    if texts:
        modules += parse(texts, {}, "Flax tree").modules
    if not modules:
        raise AdapterRefused(
            f"Flax tree: found {len(tensors)} tensors of adapters, none with an update in a layer "
            f"of a transformer; expected MaxDiffusion's layers of {spec.name}; give the tree with "
            f"its component on top, {{'{components[0]}': ...}}",
            code=Refusal.UNMATCHED_MODULES,
        )
    return resolve(Adapter(modules, "flax", origin="Flax tree"), spec)


def _transformer_tree(
    adapter: Adapter, spec: BaseModelSpec, name: str, *, keep_alpha: bool
) -> Tree:
    if keep_alpha:
        raise UsageError(
            f"{adapter.origin}: found keep_alpha=True for a transformer's adapter; expected scales "
            f"multiplied into up, as a layer of the tree holds many modules; leave it away",
            code=Refusal.BAD_OPTION,
        )
    given = fold_scales(resolve(adapter, spec))
    if given.structured:
        one = given.structured[0]
        raise AdapterRefused(
            f"{adapter.origin}: {one.path}: found {one.algorithm}, to be put in a Flax tree; "
            f"expected LoRA factors; fit the adapter to its base model first (prolora_jax.fit)",
            code=Refusal.UNSUPPORTED_ALGORITHM,
        )
    clip = tuple(m for m in given.modules if _is_clip_layer(m.path))
    modules = [module for module in given.modules if not _is_clip_layer(module.path)]
    places = tree_places({path: module.shape for path, module in spec.modules.items()})
    require_places(given, [module.path for module in modules], places)
    tensors = dump_tensors(Adapter(clip, "flax"), name)
    for layer, pair in stacked(modules, places, given.origin):
        for side, factor in zip(("down", "up"), pair, strict=True):
            tensors[f"{layer}/{LORA}{name}/{side}/kernel"] = factor
    return nested(tensors)


def _is_clip_layer(path: str) -> bool:
    return path.partition(".")[0] in _TEXT_ENCODERS and is_clip_layer(path)


def _pairs(tensors: Mapping[str, np.ndarray]) -> dict[str, Pair]:
    """Both factors of each layer by its place."""
    ends = "/down/kernel", "/up/kernel"
    found: dict[str, Pair] = {}
    for key, down in tensors.items():
        up = tensors.get(key.removesuffix(ends[0]) + ends[1])
        if key.endswith(ends[0]) and up is not None:
            found[key.partition(f"/{LORA}")[0]] = down, up
    return found
