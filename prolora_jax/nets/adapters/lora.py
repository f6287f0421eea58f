"""Adapters on a net's parameters: merged into its kernels, or beside them, where they stay apart.

Merged, an update is added to the kernel and costs nothing when the net runs. Beside the kernel it
is MaxDiffusion's layout, `.../to_q/lora-<name>/{down, up}/kernel`: several adapters, each with a
scale of its own, and the base's parameters are the same arrays, not copies. `adapted` makes a net
use them.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prolora_jax import layout
from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.algorithms.cutting import FactorRank
from prolora_jax.adapters.fitting import fit
from prolora_jax.adapters.formats.flax_keys import LORA
from prolora_jax.adapters.formats.flax_tree import from_flax
from prolora_jax.architectures.flax_trees import nested
from prolora_jax.architectures.naming import flax_path
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal, UsageError
from prolora_jax.nets.adapters.stacks import pairs_of_stacks, refuse_beside
from prolora_jax.nets.adapters.tree import (
    PARTS,
    Tree,
    grafted,
    kernels,
    leaf_at,
    matrices,
    module_path,
    modules_of_transformers,
    pruned,
    spec_of,
    walk,
)
from prolora_jax.nets.adapters.vectors import biases, warn_of_vectors, with_vectors_added

Scale = float | jax.Array
_WHOLE = FactorRank(1.0, None)
_SMALL = FactorRank()


def merge(
    params: Tree,
    adapter: Adapter,
    scale: Scale = 1.0,
    *,
    parts: Collection[str] = PARTS,
    donate: bool = False,
    assume_base: str | None = None,
    factor_rank: FactorRank = _WHOLE,
) -> Tree:
    """Add an adapter's update to the kernels it is for, and to biases and norms where it has some.

    The sum is formed in float32 and rounded once to the kernel's dtype. In float32 `unmerge`
    therefore gives back each kernel to 1e-6 of its largest number; in bfloat16 both roundings
    are up to 2^-8 of the sum, so a base that is to be used again is better kept, or the adapter
    put beside the kernels (`attach`).

    Args:
        params: parameters of a UNet or of one of MaxDiffusion's transformers, or those of several
            components (see `nets.adapters.tree`).
        adapter: of any format; names are looked up in the tree.
        scale: what the update is multiplied with, beside its own alpha / rank.
        parts: components whose modules are merged; the adapter's others are left out.
        donate: whether the old kernels are given up as the new ones are made, so that no more
            than one of them is there twice; `params` cannot be used after that.
        assume_base: id of the base model that the adapter is for (sdxl, ssd-1b, ...), whatever it
            says itself.
        factor_rank: of the LoRA factors that stand for updates of other algorithms
            (`load_adapter(..., structured=True)`); whole by default. DoRA and its like are worked
            out from the kernels in `params`, which have to be the base model's own.

    Returns:
        A tree of the same type. Leaves that the adapter does not touch are the same objects.

    Raises:
        AdapterRefused: a module is not in the tree, or has another shape there; or all fit, but
            the adapter is another base model's, as SSD-1B's fit SDXL; or it adds to a bias or norm
            that the tree lacks, or has whole layers of its own; or a module's place is not certain.
    """
    places = kernels(params)
    add = _added_in_place if donate else _added
    new = {}
    in_stacks = modules_of_transformers(params)
    fitted = _fitted(params, adapter, assume_base, factor_rank)
    vectors = with_vectors_added(params, fitted, scale, parts)
    modules = _modules_for(params, fitted, parts)
    held = tuple(module for module in modules if module.path in in_stacks)
    for place, (down, up) in pairs_of_stacks(params, in_stacks, held, fitted):
        new[place] = add(leaf_at(params, place), down, up, scale)
    for module in modules:
        if module.path in in_stacks:
            continue
        place = places[module.path]
        down, up = _kernel_factors(module)
        new[place] = add(leaf_at(params, place), down, up.reshape(up.shape[-2:]), scale)
    return grafted(params, new | vectors)


def unmerge(
    params: Tree,
    adapter: Adapter,
    scale: Scale = 1.0,
    *,
    parts: Collection[str] = PARTS,
    donate: bool = False,
    assume_base: str | None = None,
) -> Tree:
    """Take off what `merge` has added; arguments, result and errors are the same.

    Raises:
        AdapterRefused: as `merge` does; also for DoRA and its like: their update depends on the
            kernels as they were, so keep these.
    """
    fitted = fit(adapter, spec_of(params), assume_base, factor_rank=_WHOLE).adapter
    return merge(params, fitted, -scale, parts=parts, donate=donate, assume_base=assume_base)


def attach(
    params: Tree,
    adapters: Mapping[str, Adapter],
    *,
    parts: Collection[str] = PARTS,
    assume_base: str | None = None,
    factor_rank: FactorRank = _SMALL,
) -> Tree:
    """Put adapters beside the kernels they are for; nothing changes until `adapted` names them.

    A program that was compiled for a tree is used again for any other of the same structure:
    other factors under the same name, of the same ranks. `adapter.alike` makes several adapters
    so. Biases and norms that an adapter adds to are left out, which is logged with their share of
    the update.

    Args:
        params: as for `merge`.
        adapters: by the name that each gets in the tree.
        parts: components whose modules are put in; the adapters' others are left out.
        assume_base: as for `merge`.
        factor_rank: as for `merge`, but at most 64 columns by default: they are computed with
            whenever the net runs.

    Returns:
        A tree of the same type with `lora-<name>` places in it: `down` `(in, rank)` or
        `(kh, kw, in, rank)`, `up` `(rank, out)` or `(1, 1, rank, out)`, in the kernel's dtype,
        alpha / rank multiplied into `up`. The base's arrays are the same objects.

    Raises:
        AdapterRefused: as `merge` does; also for a transformer's parameters, whose nets are not
            run here.
        UsageError: a name is in the tree already, or is no name.
    """
    refuse_beside(params)
    places, new = kernels(params), {}
    taken = attached_names(params)
    for name, adapter in adapters.items():
        if name in taken or not name or "/" in name:
            found = "a name that is taken" if name in taken else "no name"
            raise UsageError(
                f"adapter {name!r}: found {found}; expected one without / that is none of "
                f"{sorted(taken)}; choose another, or detach the old one first",
                code=Refusal.BAD_NAME,
            )
        fitted = _fitted(params, adapter, assume_base, factor_rank)
        warn_of_vectors(fitted, parts)
        for module in _modules_for(params, fitted, parts):
            *layer, _ = places[module.path]
            dtype = leaf_at(params, places[module.path]).dtype
            for side, factor in zip(("down", "up"), _kernel_factors(module), strict=True):
                # In its final layout first: a device takes no strided views.
                array = jnp.asarray(np.ascontiguousarray(factor), dtype)
                new[*layer, LORA + name, side, "kernel"] = array
    return grafted(params, new)


def detach(params: Tree, name: str | None = None) -> Tree:
    """A tree without an adapter that `attach` has put in, or without any.

    Args:
        params: the tree.
        name: the adapter's; None for all.

    Returns:
        A tree of the same type.

    Raises:
        UsageError: there is none of this name.
    """
    names = attached_names(params)
    if name is not None and name not in names:
        raise UsageError(
            f"adapter {name!r}: not in the tree; expected one of {sorted(names)}",
            code=Refusal.BAD_NAME,
        )
    return pruned(params, {LORA + n for n in (names if name is None else {name})})


def attached_names(params: Mapping[Any, Any]) -> set[str]:
    """Names of the adapters in a tree."""
    steps = (str(step) for place, _ in walk(params) for step in place)
    return {step.removeprefix(LORA) for step in steps if step.startswith(LORA)}


def attached_places(params: Mapping[Any, Any], name: str) -> set[str]:
    """Components of a tree that an adapter of this name has modules in."""
    return {str(place[0]) for place, _ in walk(params) if LORA + name in map(str, place)}


def attached(params: Mapping[Any, Any], spec: BaseModelSpec | None = None) -> dict[str, Adapter]:
    """The adapters in a tree, as `attach` or MaxDiffusion has put them there.

    Args:
        params: the tree, with or without the base's own parameters.
        spec: the base model; read off the parameters if None.

    Returns:
        Adapter by name, resolved, format `flax`.

    Raises:
        AdapterRefused: a module is none of the base model's.
    """
    flat = {}
    for place, leaf in walk(params):
        at = next((i for i, step in enumerate(place) if str(step).startswith(LORA)), None)
        path = None if at is None else module_path(params, (*place[:at], "kernel"))
        if path is not None:
            key = "/".join((flax_path(path), *map(str, place[at:])))
            flat[key] = np.asarray(leaf)
    spec, tree = spec or spec_of(params), nested(flat)
    return {name: from_flax(tree, spec, name=name) for name in sorted(attached_names(params))}


def _fitted(
    params: Mapping[Any, Any],
    adapter: Adapter,
    assume_base: str | None,
    factor_rank: FactorRank,
) -> Adapter:
    """An adapter with its paths in the tree, factors of LoRA alone."""
    known: dict[str, Any] = {"matrix": matrices(params), "bias": biases(params)}
    return fit(adapter, spec_of(params), assume_base, factor_rank=factor_rank, **known).adapter


def _modules_for(
    params: Mapping[Any, Any], adapter: Adapter, parts: Collection[str]
) -> tuple[LoraModule, ...]:
    """The modules of a fitted adapter that are to be put in; all must be there."""
    spec = spec_of(params)
    kept = tuple(m for m in adapter.modules if m.path.partition(".")[0] in parts)
    absent = [module.path for module in kept if module.path not in spec.modules]
    if absent:
        part = absent[0].partition(".")[0]
        here = next(iter(spec.modules), "unet").partition(".")[0]
        raise AdapterRefused(
            f"{adapter.origin}: {len(absent)}/{len(kept)} modules are not in the parameters, first "
            f"{absent[0]}; expected the parameters of {part}, too; give a tree of both, "
            f"{{'{here}': ..., '{part}': ...}}, or leave these modules out with "
            f"parts=('{here}',)",
            code=Refusal.UNMATCHED_MODULES,
        )
    shapes = {path: module.shape for path, module in spec.modules.items()}
    return tuple(_shaped(module, shapes[module.path]) for module in kept)


def _shaped(module: LoraModule, shape: tuple[int, ...]) -> LoraModule:
    """With as many axes as the layer's weight has."""
    down = layout.matrix_to_down(layout.down_to_matrix(module.down), shape)
    up = layout.matrix_to_up(layout.up_to_matrix(module.up), shape)
    return replace(module, down=down, up=up)


def _kernel_factors(module: LoraModule) -> tuple[np.ndarray, np.ndarray]:
    """Down and up as kernels, float32, the scale in `up`."""
    up = module.up.astype(np.float32) * np.float32(module.scale)
    return layout.weight_to_kernel(module.down.astype(np.float32)), layout.weight_to_kernel(up)


def _sum(kernel: jax.Array, down: jax.Array, up: jax.Array, scale: Scale) -> jax.Array:
    # Of a stack both have an axis for the blocks before theirs.
    update = jnp.matmul(down, up, precision="highest", preferred_element_type=jnp.float32)
    return (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)


_added = jax.jit(_sum)
_added_in_place = jax.jit(_sum, donate_argnums=0)
