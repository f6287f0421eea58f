"""An adapter of a diffusion transformer with the original code's layers, where a format has them.

Pairs of the parts of one original layer become one pair. With one `down` for all they keep their
rank; others get the ranks of all together, and an alpha that grows with it, so that the update is
the same. A part without a pair gets rows of zeros.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from prolora_jax.adapters.adapter import Adapter, LoraModule, StructuredModule
from prolora_jax.adapters.formats.segments import joined, rows_of
from prolora_jax.adapters.formats.transformer_layers import stacked
from prolora_jax.architectures.dit.spellings import FileLayer
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal

_log = logging.getLogger(__name__)

ORIGINAL = frozenset({"comfyui", "kohya-ldm"})
"""Formats whose names are the original code's; of a transformer, its layers are, too."""

GROWN = "fused-ranks: "
"""Start of the flag of a file whose fused layers have the ranks of several parts together."""


def with_original_layers(adapter: Adapter, spec: BaseModelSpec) -> Adapter:
    """The same updates in the layers that the original code has.

    Args:
        adapter: resolved against `spec`.
        spec: the base model.

    Returns:
        The adapter; paths of the transformer's modules are original names behind the component.

    Raises:
        AdapterRefused: a module of another algorithm is of a part of an original layer.
    """
    names = spec.layer_names
    if not names.components:
        return adapter
    modules: list[LoraModule] = []
    groups: dict[tuple[str, FileLayer], dict[str, LoraModule]] = {}
    for module in adapter.modules:
        if not names.has(module.path):
            modules.append(module)
            continue
        key = module.path.partition(".")[0], names.original(module.path)
        groups.setdefault(key, {})[module.path] = module
    grown: list[str] = []
    for (component, layer), parts in groups.items():
        path = f"{component}.{layer.name}"
        modules.append(_whole(path, layer, parts, adapter.origin))
        if modules[-1].rank > max(part.rank for part in parts.values()):
            grown.append(path)
    if grown:
        _log.warning(
            "%s: %d layers, first %s, hold several modules whose down factors differ; they are "
            "written with the ranks of all together, and with alphas that keep the update",
            adapter.origin,
            len(grown),
            grown[0],
        )
    others = tuple(
        replace(m, path=_whole_path(m.path, m.algorithm, adapter.origin, spec))
        if names.has(m.path)
        else m
        for m in adapter.structured
    )
    return replace(adapter, modules=tuple(modules), structured=others)


def cut_alike(adapters: Sequence[Adapter], spec: BaseModelSpec) -> list[Adapter]:
    """Adapters that are to be added up: what one has in parts, no other has whole.

    Args:
        adapters: with LoRA factors, resolved against `spec`.
        spec: the base model.
    """
    paths = {module.path for adapter in adapters for module in adapter.modules}
    layers = (spec.whole or {}).items()
    mixed = {p for p, layer in layers if any(part.path in paths for part in layer.parts)}
    return [in_parts(adapter, spec, mixed) for adapter in adapters] if mixed else [*adapters]


def in_parts(
    adapter: Adapter, spec: BaseModelSpec, paths: Collection[str] | None = None
) -> Adapter:
    """The same updates with no pair of a layer that the base model has beside its parts.

    Every part keeps all columns, so that they still have one `down`: whatever is written, a fused
    layer's rank is the one it had.

    Args:
        adapter: resolved against `spec`.
        spec: the base model.
        paths: of the layers that are cut; all if None.
    """
    found: list[LoraModule] = []
    for module in adapter.modules:
        layer = (spec.whole or {}).get(module.path)
        if layer is None or (paths is not None and module.path not in paths):
            found.append(module)
            continue
        for part in layer.parts:
            assert part.segments is not None  # of a layer with several parts
            found.append(replace(module, path=part.path, up=rows_of(module.up, part.segments)))
    return replace(adapter, modules=tuple(found))


def whole_again(adapter: Adapter, paths: Iterable[str], spec: BaseModelSpec) -> Adapter:
    """The reverse of `in_parts`, for layers all of whose parts are there with one `down`.

    Args:
        adapter: resolved against `spec.in_parts`.
        paths: layers that are to be whole; others of `spec.whole` stay as they are.
        spec: the base model.
    """
    given = {module.path: module for module in (*adapter.modules, *adapter.structured)}
    for path in paths:
        layer = (spec.whole or {}).get(path)
        parts = [] if layer is None else [given.get(part.path) for part in layer.parts]
        known = [part for part in parts if part is not None]
        if layer is None or len(known) < len(parts):
            continue
        whole = _joint(path, layer, known, adapter.origin)
        if whole is not None:
            for part in layer.parts:
                del given[part.path]
            given[path] = whole
    modules = tuple(m for m in given.values() if isinstance(m, LoraModule))
    others = tuple(m for m in given.values() if isinstance(m, StructuredModule))
    return replace(adapter, modules=modules, structured=others)


def _joint(
    path: str, layer: FileLayer, parts: Sequence[LoraModule | StructuredModule], origin: str
) -> LoraModule | StructuredModule | None:
    """The module that all parts of a layer were cut out of; None where they were not."""
    pairs = [part for part in parts if isinstance(part, LoraModule)]
    if len(pairs) == len(parts):
        whole = joined(path, pairs, [part.segments or () for part in layer.parts], origin)
        return whole if whole.rank == pairs[0].rank else None
    others = [part for part in parts if isinstance(part, StructuredModule)]
    return stacked(path, others) if len(others) == len(parts) else None


def grown_ranks(adapter: Adapter, format: str, spec: BaseModelSpec) -> tuple[str, ...]:
    """A flag where original layers of a format need more columns than any of their parts.

    Args:
        adapter: resolved against `spec`, before or after it was written: columns without an effect
            on a part do not count for it.
        format: that it is written in.
        spec: the base model.

    Returns:
        The flag, with how many layers there are and the first one's name; none of other formats.
    """
    if format not in ORIGINAL:
        return ()
    groups: dict[str, list[LoraModule]] = {}
    for module in adapter.modules:
        if spec.layer_names.has(module.path):
            component, name = module.path.partition(".")[0], spec.layer_names.original(module.path)
            groups.setdefault(f"{component}.{name.name}", []).append(module)
    grown = []
    for path, parts in sorted(groups.items()):
        columns = [_columns(part) for part in parts] if len(parts) > 1 else []
        if columns and len(frozenset().union(*columns)) > max(map(len, columns)):
            grown.append(path)
    return (f"{GROWN}{len(grown)} layers, first {grown[0]}",) if grown else ()


def _columns(module: LoraModule) -> frozenset[bytes]:
    """The different columns of a pair that add something, by their side of `down`."""
    used = module.up.reshape(len(module.up), -1).any(axis=0)
    return frozenset(row.tobytes() for row in module.down[used].astype(np.float32))


def original_paths(adapter: Adapter, spec: BaseModelSpec) -> frozenset[str]:
    """Paths of `with_original_layers`, without touching a number."""
    names = spec.layer_names
    every = (m.path for m in (*adapter.modules, *adapter.structured))
    return frozenset(
        f"{path.partition('.')[0]}.{names.original(path).name}" if names.has(path) else path
        for path in every
    )


def _whole(path: str, layer: FileLayer, parts: Mapping[str, LoraModule], origin: str) -> LoraModule:
    if all(part.segments is None for part in layer.parts):  # it is the base model's, as it is
        (module,) = parts.values()
        return replace(module, path=path)
    pairs = [parts.get(part.path) for part in layer.parts]
    places = [part.segments or ((0, layer.rows),) for part in layer.parts]
    return joined(path, pairs, places, origin)


def _whole_path(path: str, algorithm: str, origin: str, spec: BaseModelSpec) -> str:
    layer = spec.layer_names.original(path)
    if any(part.segments is not None for part in layer.parts):
        raise AdapterRefused(
            f"{origin}: {path}: unsupported-algorithm:{algorithm}: found a module of {algorithm} "
            f"for rows of {layer.name}, which the format has as one layer; expected plain LoRA; "
            f"write format diffusers, or make LoRA factors of it (prolora convert --to lora)",
            code=Refusal.UNSUPPORTED_ALGORITHM,
        )
    return f"{path.partition('.')[0]}.{layer.name}"
