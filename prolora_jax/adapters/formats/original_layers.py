"""An adapter of a diffusion transformer with the original code's layers, where a format has them.

Pairs of the parts of one original layer become one pair. With one `down` for all they keep their
rank; others get the ranks of all together, and an alpha that grows with it, so that the update is
the same. A part without a pair gets rows of zeros.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

from prolora_jax.adapters.adapter import Adapter, LoraModule
from prolora_jax.adapters.formats.segments import joined
from prolora_jax.architectures.dit.spellings import FileLayer
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal

_log = logging.getLogger(__name__)


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
