"""Parameters as trees: which layer of a base model is where in one, and new trees out of old ones.

A tree is a mapping of mappings: dictionaries, Flax's `FrozenDict`, or the `State` of an nnx
module, whose leaves are variables. It holds one UNet's parameters, or those of several components
under `unet`, `text_encoder` and `text_encoder_2`; what else is in it is left alone. Of a list, nnx
counts the items (`down_blocks`, 0) and linen glues the number on (`down_blocks_0`): both are read.
A diffusion transformer (`transformer`, `transformer_2`, or a tree of its own) is as MaxDiffusion
has it, and a kernel of it may hold the modules of a whole stack of blocks.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from flax import nnx
from flax.core import FrozenDict

from prolora_jax import layout
from prolora_jax.adapters.formats.flax_keys import LORA
from prolora_jax.architectures.dit.stacks import DIT_COMPONENTS
from prolora_jax.architectures.dit.trees import (
    TreeModule,
    TreePlace,
    is_transformer_tree,
    modules_in,
)
from prolora_jax.architectures.flax_trees import torch_key
from prolora_jax.architectures.identify import identified
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec

Tree = TypeVar("Tree", bound=Mapping[Any, Any])
Place = tuple[Any, ...]
"""Keys from the root of a tree to a leaf or to a mapping in it."""

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
PARTS = (*COMPONENTS, *DIT_COMPONENTS)
"""Components that adapters have modules for."""
_KERNEL_AXES = {2, 4}


def walk(tree: Mapping[Any, Any], above: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every leaf of a tree and its place; of an nnx state the variables, not their values."""
    for name, below in tree.items():
        place = (*above, name)
        if isinstance(below, Mapping) and not isinstance(below, nnx.Variable):
            yield from walk(below, place)
        else:
            yield place, below


def leaf_at(tree: Mapping[Any, Any], place: Place) -> Any:
    """The leaf at a place; of an nnx variable its value."""
    level: Any = tree
    for name in place:
        level = level[name]
    return level.get_value() if isinstance(level, nnx.Variable) else level


def kernels(params: Mapping[Any, Any]) -> dict[str, Place]:
    """Every linear layer and convolution in a tree; adapters beside them are none.

    Args:
        params: the tree; `jax.ShapeDtypeStruct`s will do for leaves.

    Returns:
        Place of each kernel by module path, `unet.down_blocks.1.attentions.0.proj_in`.
    """
    found = {}
    for place, leaf in walk(params):
        is_adapter = any(str(name).startswith(LORA) for name in place)
        path = module_path(params, place) if place[-1] == "kernel" and not is_adapter else None
        if path is not None and len(leaf.shape) in _KERNEL_AXES:
            found[path] = place
    return found


def module_path(params: Mapping[Any, Any], place: Place) -> str | None:
    """Dotted path of the module that a leaf belongs to; None outside the known components.

    Of a transformer a leaf belongs to many modules: None, too (`layers_of_transformers`).
    """
    names = tuple(map(str, place))
    if names[0] == "params":
        names, params = names[1:], params[place[0]]
    if names[0] in DIT_COMPONENTS or is_transformer_tree(map(str, params)):
        return None
    if not set(COMPONENTS).isdisjoint(params):
        if names[0] not in COMPONENTS:
            return None
    elif names[0] == "text_model":
        names = ("text_encoder", *names)
    key = torch_key(names)
    return None if key is None else key.rpartition(".")[0]


def layers_of_transformers(params: Mapping[Any, Any]) -> dict[str, Place]:
    """Every layer of the diffusion transformers in a tree; adapters beside them are none.

    Args:
        params: as for `kernels`.

    Returns:
        Place of each layer, above its kernel and bias, by its name: component first, `/` between
        the levels.
    """
    found, inside = {}, params.get("params", params)
    above = DIT_COMPONENTS[:1] if is_transformer_tree(map(str, inside)) else ()
    for place, _ in walk(params):
        names = [*above, *(str(name) for name in place[:-1] if name != "params")]
        if not names or names[0] not in DIT_COMPONENTS:
            continue
        is_adapter = any(name.startswith(LORA) for name in names)
        if place[-1] == "kernel" and not is_adapter:
            found["/".join(names)] = place[:-1]
    return found


def modules_of_transformers(params: Mapping[Any, Any]) -> dict[str, TreeModule]:
    """The modules of the diffusion transformers in a tree by path, each with its place."""
    layers = layers_of_transformers(params).items()
    shapes = {name: leaf_at(params, (*layer, "kernel")).shape for name, layer in layers}
    return {module.path: module for module in modules_in(shapes)}


def spec_of(params: Mapping[Any, Any]) -> BaseModelSpec:
    """The base model whose parameters are in a tree: what adapters are checked against.

    Args:
        params: the tree.

    Returns:
        Its modules and their names; of a published model its architecture, too.
    """
    modules = {}
    for path, place in kernels(params).items():
        *window, width, out = leaf_at(params, place).shape
        modules[path] = ModuleSpec(path, (out, width, *window))  # from (in, out) or HWIO
    for path, module in modules_of_transformers(params).items():
        modules[path] = ModuleSpec(path, module.shape)
    return identified(BaseModelSpec("params", dict(sorted(modules.items()))))


def matrices(params: Mapping[Any, Any]) -> Callable[[str], np.ndarray]:
    """The weights in a tree as matrices: what updates of DoRA, OFT and their like depend on.

    Args:
        params: the tree.

    Returns:
        The weight of a module, by its path, as a float32 matrix `(out, in * kh * kw)`.
    """
    places, stacked = kernels(params), modules_of_transformers(params)
    layers = layers_of_transformers(params)

    def matrix(path: str) -> np.ndarray:
        if path in stacked:
            place = stacked[path].place
            return part_of(leaf_at(params, (*layers[place.layer], "kernel")), place).T
        kernel = np.asarray(leaf_at(params, places[path])).astype(np.float32)
        return layout.weight_to_matrix(layout.kernel_to_weight(kernel))

    return matrix


def part_of(array: Any, place: TreePlace) -> np.ndarray:
    """A module's columns of its layer's kernel or bias, float32.

    Args:
        array: of the layer, `(blocks, ..., out)` in a stack.
        place: of the module.
    """
    block = np.asarray(array if place.block is None else array[place.block])
    ((first, end),) = place.segments or ((0, block.shape[-1]),)
    return block[..., first:end].astype(np.float32)


def grafted(tree: Tree, leaves: Mapping[Place, Any]) -> Tree:
    """A tree with some leaves put in or replaced; all others are the same objects, not copies.

    Args:
        tree: what to start from; it is left as it is.
        leaves: array by place. In an nnx state it becomes a variable like those beside it.

    Returns:
        A new tree of the same type.
    """
    below: dict[Any, dict[Place, Any]] = {}
    level = dict(tree.items())
    for (name, *rest), leaf in leaves.items():
        if rest:
            below.setdefault(name, {})[tuple(rest)] = leaf
        else:
            level[name] = _like(level.get(name), leaf, tree)
    for name, inner in below.items():
        level[name] = grafted(level.get(name, _of_type(tree, {})), inner)
    return _of_type(tree, level)


def pruned(tree: Tree, names: set[str]) -> Tree:
    """A tree without the mappings of these names, wherever they are in it."""
    level = {}
    for name, below in tree.items():
        if isinstance(below, Mapping) and not isinstance(below, nnx.Variable):
            if name not in names:
                level[name] = pruned(below, names)
        else:
            level[name] = below
    return _of_type(tree, level)


def _of_type(tree: Any, level: dict[Any, Any]) -> Any:
    return type(tree)(level) if isinstance(tree, FrozenDict | nnx.State) else level


def _like(old: Any, leaf: Any, tree: Any) -> Any:
    """A leaf in the form that its neighbours have."""
    if isinstance(old, nnx.Variable):
        return old.replace(leaf)
    return nnx.Param(leaf) if isinstance(tree, nnx.State) else leaf
