"""Pairs of a transformer's modules as those of the layers of a tree, and back; all of it exact.

A layer of MaxDiffusion's trees holds q, k and v in one, and the blocks of a whole stack along its
first axis. Its pair has the largest rank of its blocks, with zeros in blocks that have a smaller
one, or none.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.segments import common_dtype, cut, joined
from prolora_jax.architectures.clip.table import is_text_encoder
from prolora_jax.architectures.dit.trees import TREES, UNCLEAR, TreePlace, modules_in
from prolora_jax.errors import AdapterRefused, Refusal

Places = Mapping[str, TreePlace]
Pair = tuple[np.ndarray, np.ndarray]
"""`down` `(in, rank)` and `up` `(rank, out)`; in a stack both with an axis of blocks first."""


def require_places(adapter: Adapter, paths: Sequence[str], places: Places) -> None:
    """Refuse an adapter whose modules have no certain place in a tree.

    Args:
        adapter: for its name.
        paths: of its modules, with component, but for those of a CLIP in the same tree.
        places: of the tree.

    Raises:
        AdapterRefused: a module has none, or one that is left open.
    """
    for path in paths:
        unclear = UNCLEAR.get(path.partition(".")[2])
        if unclear is not None:
            raise AdapterRefused(
                f"{adapter.origin}: {path}: found an update for it, to be put in a Flax tree; "
                f"{unclear}, so that its rows there are not certain; leave the module out "
                f"(prolora migrate --exclude '*norm_out*')",
                code=Refusal.UNMATCHED_MODULES,
            )
        if is_text_encoder(path):
            raise AdapterRefused(
                f"{adapter.origin}: {path}: found a module of a text encoder, to be put in a Flax "
                f"tree; expected a transformer's, and of text encoders CLIP's first and second, "
                f"whose trees are known; leave it out (prolora migrate --exclude 'text_encoder*')",
                code=Refusal.UNMATCHED_MODULES,
            )
        if path not in places:
            raise AdapterRefused(
                f"{adapter.origin}: {path}: found no place for it in a Flax tree; expected a "
                f"module of one of {', '.join(TREES)}, whose trees are known; write a file instead "
                f"(prolora convert --to diffusers)",
                code=Refusal.UNMATCHED_MODULES,
            )


def stacked(
    modules: Sequence[LoraModule], places: Places, origin: str
) -> Iterator[tuple[str, Pair]]:
    """The pairs of a tree's layers.

    Args:
        modules: with paths in `places`, scale 1.
        places: where each path is.
        origin: the file, for messages.

    Yields:
        A layer that has an update, by its place with component, and its pair.
    """
    layers: dict[str, dict[int | None, list[LoraModule]]] = {}
    for module in modules:
        place = places[module.path]
        layers.setdefault(place.layer, {}).setdefault(place.block, []).append(module)
    widths = {place.layer: 0 for place in places.values()}
    for place in places.values():
        ends = [end for _, end in place.segments or ()]
        widths[place.layer] = max(widths[place.layer], *ends, 0)
    for layer, blocks in layers.items():
        whole = {
            index: _of_block(layer, parts, places, widths[layer], origin)
            for index, parts in blocks.items()
        }
        depth = places[next(iter(blocks.values()))[0].path].depth
        yield layer, _pair(whole, depth)


def _of_block(
    layer: str, parts: Sequence[LoraModule], places: Places, rows: int, origin: str
) -> LoraModule:
    """One pair for a layer of one block; `rows` is 0 where nothing is fused in it."""
    if not rows:
        return parts[0]
    segments = [places[part.path].segments or () for part in parts]
    module = joined(layer, parts, segments, origin)
    missing = rows - module.up.shape[0]
    return replace(module, up=np.pad(module.up, ((0, missing), (0, 0)))) if missing else module


def _pair(blocks: Mapping[int | None, LoraModule], depth: int | None) -> Pair:
    if depth is None:
        (module,) = blocks.values()
        return module.down.T, module.up.T
    rank = max(module.rank for module in blocks.values())
    first = next(iter(blocks.values()))
    width, out = first.down.shape[1], first.up.shape[0]
    down = np.zeros((depth, width, rank), common_dtype([m.down for m in blocks.values()]))
    up = np.zeros((depth, rank, out), common_dtype([m.up for m in blocks.values()]))
    for index, module in blocks.items():
        assert index is not None  # of a stack
        down[index, :, : module.rank] = module.down.T
        up[index, : module.rank] = module.up.T
    return down, up


def unstacked(pairs: Mapping[str, Pair]) -> Iterator[LoraModule]:
    """The modules whose pairs are in a tree; inverse of `stacked`.

    Args:
        pairs: by place of the layer with component, scanned or block by block.

    Yields:
        Modules with scale 1, each with the rank that its update has columns for; those without an
        update are left out, and so is what is in no known layer.
    """
    shapes = {
        layer: (*down.shape[:-1], up.shape[-1])
        for layer, (down, up) in pairs.items()
        if down.ndim == up.ndim
    }
    for path, _, place in modules_in(shapes):
        down, up = (a if place.block is None else a[place.block] for a in pairs[place.layer])
        whole = LoraModule(path, down.T, up.T)
        module = cut(whole, path, place.segments or ((0, up.shape[-1]),))
        if module.up.any():
            yield module
