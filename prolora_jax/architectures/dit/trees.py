"""MaxDiffusion's parameters of diffusion transformers: which layer of a tree a module is in.

A net that is scanned has the kernels of all its blocks in one, along the first axis; one that is
not has a level for each block. Layers are those of the original code, with q, k and v in one. A
module's place is therefore a layer, a number along its first axis, and rows. The names are read in
MaxDiffusion's source, in what loads a checkpoint into its trees; that program was not run.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, pairwise
from typing import NamedTuple

from prolora_jax.architectures.dit.families import dit_family
from prolora_jax.architectures.dit.originals import Segments, fused_rows
from prolora_jax.architectures.dit.stacks import DIT_COMPONENTS

_QKV = "attn.to_q attn.to_k attn.to_v"
_FLUX_SINGLE = {"norm/lin": "norm.linear"}
_FLUX_DOUBLE = {
    "attn/i_qkv": _QKV,
    "attn/e_qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
    **{"attn/i_proj": "attn.to_out.0", "attn/e_proj": "attn.to_add_out"},
    **{"img_mlp/layers_0": "ff.net.0.proj", "img_mlp/layers_2": "ff.net.2"},
    **{"txt_mlp/layers_0": "ff_context.net.0.proj", "txt_mlp/layers_2": "ff_context.net.2"},
    **{"img_norm1/lin": "norm1.linear", "txt_norm1/lin": "norm1_context.linear"},
}
_FLUX_EMBEDDERS = {
    "FlaxTimestepEmbedding_0": "timestep_embedder",
    "FlaxTimestepEmbedding_1": "guidance_embedder",
    "PixArtAlphaTextProjection_0": "text_embedder",
}
_LINEAR = ("linear_1", "linear_2")
_FLUX_OUTSIDE = {
    **{"img_in": "x_embedder", "txt_in": "context_embedder", "proj_out": "proj_out"},
    "norm_out/Dense_0": "norm_out.linear",
    **{
        f"time_text_embed/{there}/{layer}": f"time_text_embed.{here}.{layer}"
        for there, here in _FLUX_EMBEDDERS.items()
        for layer in _LINEAR
    },
}
_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_WAN_BLOCK = {
    **{f"attn1/{there}": f"attn1.{here}" for there, here in _ATTENTION.items()},
    **{f"attn2/{there}": f"attn2.{here}" for there, here in _ATTENTION.items()},
    **{f"attn2/{one}": f"attn2.{one}" for one in ("add_k_proj", "add_v_proj")},
    **{"ffn/act_fn/proj": "ffn.net.0.proj", "ffn/proj_out": "ffn.net.2"},
}
_WAN_OUTSIDE = {
    **{"proj_out": "proj_out", "condition_embedder/time_proj": "condition_embedder.time_proj"},
    **{
        f"condition_embedder/{one}/{layer}": f"condition_embedder.{one}.{layer}"
        for one in ("text_embedder", "time_embedder")
        for layer in _LINEAR
    },
    **{
        f"condition_embedder/image_embedder/ff/{there}": f"condition_embedder.image_embedder.{here}"
        for there, here in (("net_0", "ff.net.0.proj"), ("net_2", "ff.net.2"))
    },
}


class TreeStack(NamedTuple):
    """A stack of blocks in a tree.

    Attributes:
        name: of the stack here, `transformer_blocks`; empty for what is in none.
        place: before its layers, `*` for a block's number; all blocks are in one without it.
        layers: roles of the modules that are a layer's rows, by the layer.
    """

    name: str
    place: str
    layers: Mapping[str, str]

    @property
    def scanned(self) -> bool:
        """Whether the kernels of all blocks are one."""
        return bool(self.name) and "*" not in self.place


# The first spelling of each stack is the one that is written.
_TREES: Mapping[str, tuple[TreeStack, ...]] = {
    "flux1": (
        TreeStack(
            "transformer_blocks", "scanned_double_blocks/FluxTransformerBlock_0/", _FLUX_DOUBLE
        ),
        TreeStack(
            "single_transformer_blocks",
            "scanned_single_blocks/FluxSingleTransformerBlock_0/",
            _FLUX_SINGLE
            | {"lin_qkv": _QKV, "mlp_and_out/lin_mlp": "proj_mlp"}
            | {"mlp_and_out/linear2": "proj_out"},
        ),
        TreeStack("transformer_blocks", "double_blocks_*/", _FLUX_DOUBLE),
        TreeStack(
            "single_transformer_blocks",
            "single_blocks_*/",
            _FLUX_SINGLE | {"linear1": f"{_QKV} proj_mlp", "linear2": "proj_out"},
        ),
        TreeStack("", "", _FLUX_OUTSIDE),
    ),
    "wan": (
        TreeStack("blocks", "blocks/", _WAN_BLOCK),
        TreeStack("blocks", "blocks/*/", _WAN_BLOCK),
        TreeStack("", "", _WAN_OUTSIDE),
    ),
}
TREES = tuple(_TREES)
"""Families whose trees are known."""
_ROOT = re.compile(r"(scanned_)?(double|single)_blocks(_\d+)?|blocks")

UNCLEAR: Mapping[str, str] = {
    "norm_out.linear": "MaxDiffusion loads the halves of this layer in the original order and "
    "takes them apart in the other"
}
"""Modules that nothing is merged into, and why, by name without component."""


class TreePlace(NamedTuple):
    """Where a module's weight is in a tree.

    Attributes:
        layer: place of the layer, with component and `/` between the levels.
        block: its number along the kernel's first axis; None where the kernel is one block's.
        depth: number of blocks along that axis; None likewise.
        segments: the module's rows in the layer, which are columns of the kernel; None for all.
    """

    layer: str
    block: int | None
    depth: int | None
    segments: Segments | None


class TreeModule(NamedTuple):
    """A module that was found in a tree: its path, the shape of its weight, and its place."""

    path: str
    shape: tuple[int, ...]
    place: TreePlace


def is_transformer_tree(names: Iterable[str]) -> bool:
    """Whether a tree with these names on top is a transformer's, without a component above."""
    return any(_ROOT.fullmatch(name) for name in names)


def modules_in(layers: Mapping[str, tuple[int, ...]]) -> Iterator[TreeModule]:
    """The modules whose kernels are in a tree.

    Args:
        layers: shape of the kernel, `(in, out)` or `(blocks, in, out)`, by place of its layer:
            component first, `/` between the levels.

    Yields:
        The modules; layers of other components and of unknown names are passed over.
    """
    for component in DIT_COMPONENTS:
        start = f"{component}/"
        inside = {
            layer.removeprefix(start): shape
            for layer, shape in layers.items()
            if layer.startswith(start)
        }
        stacks = next((s for s in _TREES.values() if any(_in_stack(s, p) for p in inside)), ())
        for layer, kernel in inside.items():
            for stack in stacks:
                yield from _of_layer(stack, component, layer, kernel)


def _in_stack(stacks: Iterable[TreeStack], place: str) -> bool:
    return any(stack.name and _found(stack, place) is not None for stack in stacks)


def _found(stack: TreeStack, place: str) -> tuple[str | None, str] | None:
    """Number of the block, and roles, of a layer; None where the stack has no such layer."""
    before, several, after = stack.place.partition("*")
    number, inside = None, place.removeprefix(before)
    if inside == place and before:
        return None
    if several:
        number, _, inside = inside.partition(after)
        if not number.isdecimal():
            return None
    roles = stack.layers.get(inside)
    return None if roles is None else (number, roles)


def _of_layer(
    stack: TreeStack, component: str, layer: str, kernel: tuple[int, ...]
) -> Iterator[TreeModule]:
    found = _found(stack, layer)
    if found is None or len(kernel) != (3 if stack.scanned else 2):
        return
    number, roles = found
    *blocks, width, out = kernel
    parts = roles.split()
    rows = fused_rows(len(parts), (out, width)) if len(parts) > 1 else ((0, out),)
    depth = blocks[0] if blocks else None
    for role, (first, end) in zip(parts, rows or (), strict=rows is not None):
        segments = ((first, end),) if len(parts) > 1 else None
        for index in range(depth) if depth is not None else (None,):
            block = number if index is None else index
            name = f"{stack.name}.{block}.{role}" if stack.name else role
            place = TreePlace(f"{component}/{layer}", index, depth, segments)
            yield TreeModule(f"{component}.{name}", (end - first, width), place)


def tree_places(shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, TreePlace]:
    """Where the modules of a base model are in a tree whose blocks are scanned.

    Args:
        shapes: of all its modules, by path with component.

    Returns:
        Place by path; empty for what is no transformer of one of `TREES`.
    """
    found: dict[str, TreePlace] = {}
    for component in DIT_COMPONENTS:
        start = f"{component}."
        inside = {p.removeprefix(start): s for p, s in shapes.items() if p.startswith(start)}
        family = dit_family(inside)
        if family is None or family.name not in _TREES:
            continue
        for stack in _TREES[family.name]:
            if "*" not in stack.place:
                found |= _places_of(stack, component, inside)
    return found


def _places_of(
    stack: TreeStack, component: str, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, TreePlace]]:
    start = f"{stack.name}." if stack.name else ""
    inside = (name.removeprefix(start) for name in shapes if start and name.startswith(start))
    depth = max((int(name.partition(".")[0]) + 1 for name in inside), default=None)
    for layer, roles in stack.layers.items():
        parts = roles.split()
        for index in range(depth) if depth is not None else (None,):
            before = start if index is None else f"{start}{index}."
            names = [f"{before}{role}" for role in parts]
            if not all(name in shapes for name in names):
                continue
            ends = accumulate((shapes[name][0] for name in names), initial=0)
            for name, rows in zip(names, pairwise(ends), strict=True):
                segments = (rows,) if len(names) > 1 else None
                place = TreePlace(f"{component}/{stack.place}{layer}", index, depth, segments)
                yield f"{component}.{name}", place
