"""An adapter of a diffusion transformer with the base model's layers, whatever its file has.

Trainers have the original code's layers, of which one holds several of diffusers', or diffusers'
own. Rows of `up` are rows of the layer, so that a layer's pair is that of its parts, bit for bit,
and each part keeps the rank and the scale.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from prolora_jax import layout
from prolora_jax.adapters.adapter import Adapter, Companion, LoraModule, StructuredModule
from prolora_jax.adapters.algorithms.magnitudes import MAGNITUDES
from prolora_jax.adapters.algorithms.table import algorithm_for
from prolora_jax.adapters.formats.segments import cut, rows_of
from prolora_jax.architectures.clip.table import is_text_encoder
from prolora_jax.architectures.dit.spellings import FileLayer, HeldLayer, said_component
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.errors import AdapterRefused, Refusal

IN_PARTS = "in-parts: "
"""Start of the flag of a fused layer that was to move whole, and moves in parts."""

# Parts of other algorithms' modules whose first axis is the layer's rows, and the others.
_BY_ROW = {
    "dora": ({"up", *MAGNITUDES}, {"down"}),
    "loha": ({"hada_w1_a", "hada_w2_a"}, {"hada_w1_b", "hada_w2_b"}),
    "full": ({"diff"}, set()),
}


def of_transformers(adapter: Adapter, spec: BaseModelSpec) -> Adapter:
    """An adapter whose modules are those of the base model's transformers.

    Args:
        adapter: as parsed, or as this function has made it: that changes nothing.
        spec: the base model.

    Returns:
        The adapter; what the base model has no layer for keeps its name, to be refused for it. A
        layer that is a module beside its parts stays whole; where there are such modules and the
        adapter has other layers that are cut, a flag says which.

    Raises:
        AdapterRefused: a layer has other rows than the base model's, or an algorithm whose update
            is no sum of those of its rows; a vector beside the pairs is not zero; or the names do
            not say which of two transformers they are of.
    """
    if not spec.layer_names.components:
        return adapter
    place = _Place(adapter, spec)
    modules = [part for m in adapter.modules for part in place.pairs(m)]
    others = [part for m in adapter.structured for part in place.others(m)]
    # Pairs of convolutions over time stay until it is known whether they may be left behind.
    over_time = {c.path for c in adapter.companions if c.array.ndim == 5}
    left = tuple(
        c for c in adapter.companions if c.path in over_time or _may_stay(c, adapter.origin)
    )
    if spec.whole is not None and place.cut:
        which = f"{IN_PARTS}{len(place.cut)} layers, first {place.cut[0]}"
        adapter = replace(adapter, flags=(*adapter.flags, which))
    return replace(adapter, modules=tuple(modules), structured=tuple(others), companions=left)


class _Place:
    """Where one adapter's modules are in one base model."""

    def __init__(self, adapter: Adapter, spec: BaseModelSpec):
        self._spec, self._origin = spec, adapter.origin
        self.cut: list[str] = []
        every = [*adapter.modules, *adapter.structured]
        self._names = spec.layer_names
        # Also of modules that the base model has by name: the other transformer's become the same.
        named = {said_component(m.path) for m in every if not is_text_encoder(m.path)} - {None}
        new = (m.path for m in every if m.path not in spec.modules)
        paths = [path for path in new if not is_text_encoder(path)]
        said = {said_component(path) for path in paths}
        known = self._names.components
        if len(known) == 1 and len(named) > 1:
            raise AdapterRefused(
                f"{adapter.origin}: found modules of {' and of '.join(_sorted(named))}; expected "
                f"those of one transformer, as base model {spec.name} is; name the folder of the "
                f"pipeline, which has both",
                code=Refusal.UNMATCHED_MODULES,
            )
        if len(known) > 1 and None in said:
            raise AdapterRefused(
                f"{adapter.origin}: found names, such as "
                f"{next(p for p in paths if said_component(p) is None)}, that do not say which of "
                f"{' and '.join(known)} of base model {spec.name} they are of; expected one; name "
                f"the folder of that transformer alone",
                code=Refusal.UNMATCHED_MODULES,
            )
        # Only a model that has layers beside their parts is asked which of both a file has.
        layers = [self._layer(m.path) for m in every] if spec.whole else []
        found = {one.parts[0].path for one in layers if one is not None and _is_one(one)}
        self._apart = found | {m.path for m in every if m.path in spec.in_parts.modules}

    def pairs(self, module: LoraModule) -> Iterator[LoraModule]:
        """The pairs of a module's layers."""
        layer = self._layer(module.path)
        whole = self._whole(module.path, layer)
        if layer is None:
            yield module
        elif whole is not None:
            self._require_rows(module.path, layer, module.up.shape[0])
            yield replace(module, path=whole)
        elif _is_one(layer):
            yield replace(module, path=layer.parts[0].path)
        else:
            self.cut += [layer.name] * (len(layer.parts) > 1)
            up, down = layout.up_to_matrix(module.up), layout.down_to_matrix(module.down)
            self._require_rows(module.path, layer, up.shape[0])
            pair = replace(module, up=up, down=down)
            for part in layer.parts:
                yield cut(pair, part.path, part.segments or ((0, layer.rows),))

    def others(self, module: StructuredModule) -> Iterator[StructuredModule]:
        """The modules of another algorithm's layers."""
        layer = self._layer(module.path)
        whole = self._whole(module.path, layer)
        if layer is None:
            yield module
        elif whole is not None:
            yield replace(module, path=whole)
        elif _is_one(layer):
            yield replace(module, path=layer.parts[0].path)
        else:
            self.cut += [layer.name] * (len(layer.parts) > 1)
            yield from (self._part(module, layer, part) for part in layer.parts)

    def _layer(self, path: str) -> FileLayer | None:
        if path in self._spec.in_parts.modules or is_text_encoder(path):
            return None
        said, known = said_component(path), self._names.components
        return self._names.find(path, said if said in known else known[0])

    def _whole(self, name: str, layer: FileLayer | None) -> str | None:
        """Path of a layer that is a module of the base model beside its parts.

        None of a layer of which the adapter has a part, too: a part is to be there once.
        """
        if layer is None or not self._spec.whole:
            return None
        if any(part.path in self._apart for part in layer.parts):
            return None
        said, known = said_component(name), self._names.components
        path = f"{said if said in known else known[0]}.{layer.name}"
        return path if path in self._spec.whole else None

    def _part(
        self, module: StructuredModule, layer: FileLayer, part: HeldLayer
    ) -> StructuredModule:
        by_row, shared = _BY_ROW.get(module.algorithm, (set(), set()))
        plain = bool(by_row) and module.parts.keys() <= by_row | shared
        # A magnitude of channels is of norms over all rows, which a part does not have.
        magnitudes = (module.parts[name] for name in MAGNITUDES & module.parts.keys())
        if not plain or any(m.size != layer.rows for m in magnitudes):
            title = algorithm_for(module).title
            names = ", ".join(p.path.partition(".")[2] for p in layer.parts)
            raise AdapterRefused(
                f"{self._origin}: {module.path}: unsupported-algorithm:{title}: found {title} on a "
                f"layer that base model {self._spec.name} has as {names}; expected one whose "
                f"update is cut by rows (LoRA, LoHa, DoRA with a magnitude of rows, diff); make "
                f"LoRA factors of it where its layer is whole",
                code=Refusal.UNSUPPORTED_ALGORITHM,
            )
        segments = part.segments or ((0, layer.rows),)
        found: dict[str, np.ndarray] = {}
        for name, array in module.parts.items():
            if name in by_row:
                rows = array.reshape(layer.rows, -1) if name in MAGNITUDES else array
                self._require_rows(module.path, layer, rows.shape[0])
                found[name] = rows_of(rows, segments)
            else:
                found[name] = array
        return replace(module, path=part.path, parts=found)

    def _require_rows(self, path: str, layer: FileLayer, rows: int) -> None:
        if rows != layer.rows:
            names = ", ".join(p.path.partition(".")[2] for p in layer.parts)
            raise AdapterRefused(
                f"{self._origin}: {path}: found {rows} rows; expected {layer.rows}, those of "
                f"{names} of base model {self._spec.name}; name the base model that the adapter "
                f"was trained on",
                code=Refusal.SHAPE_MISMATCH,
            )


def stacked(path: str, parts: Sequence[StructuredModule]) -> StructuredModule | None:
    """The module of a layer whose parts were cut out of it; None where they were not.

    Args:
        path: of the layer.
        parts: modules of all its parts, in the order of their rows.
    """
    first = parts[0]
    if any((m.algorithm, m.alpha) != (first.algorithm, first.alpha) for m in parts):
        return None
    by_row, _ = _BY_ROW.get(first.algorithm, (set(), set()))
    found: dict[str, np.ndarray] = {}
    for name, array in first.parts.items():
        arrays = [m.parts[name] for m in parts if name in m.parts]
        alike = all(np.array_equal(array, other) for other in arrays)
        if len(arrays) < len(parts) or not (name in by_row or alike):
            return None
        found[name] = np.concatenate(arrays) if name in by_row else array
    return replace(first, path=path, parts=found)


def _is_one(layer: FileLayer) -> bool:
    """Whether a layer is one of the base model's, as it is."""
    return all(part.segments is None for part in layer.parts)


def _may_stay(companion: Companion, origin: str) -> bool:
    """Whether a tensor beside the pairs has an effect that something else takes care of.

    Raises:
        AdapterRefused: it changes a bias, a norm or a whole layer of the transformer.
    """
    if is_text_encoder(companion.path):
        return True
    if companion.part == "none":
        return False
    raise AdapterRefused(
        f"{origin}: {companion.key}: found a tensor that changes a "
        f"{'norm' if companion.part == 'weight' else companion.part} of the transformer and is not "
        f"zero; expected pairs alone, which can be moved; extract a plain LoRA from the adapter",
        code=Refusal.UNSUPPORTED_ALGORITHM,
    )


def _sorted(said: set[str | None]) -> list[str]:
    return sorted(component for component in said if component is not None)
