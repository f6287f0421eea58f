"""Authors' layers of diffusion transformers as modules of two base models, beside their parts.

A layer whose rows diffusers has in several modules may move whole: then its weight is all of these
rows, and a span is one of the layer. Both models need such a layer, cut alike.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from prolora_jax.architectures.dit.spellings import FileLayer
from prolora_jax.architectures.spec import BaseModelSpec, ModuleSpec

_NUMBER = re.compile(r"\.\d+(?=\.|$)")

_Cut = tuple[str, tuple[tuple[int, int], ...]]
"""What layers have in common that may stand for each other: the name without numbers, and the
shapes of the parts."""


def whole_layers(
    source: BaseModelSpec, target: BaseModelSpec
) -> tuple[BaseModelSpec, BaseModelSpec]:
    """Two base models with the layers as modules that both have, cut into equal parts.

    Blocks are not matched here: a layer is cut in the same way in every block of a stack.

    Args:
        source: with its modules alone, as a checkpoint gives them.
        target: likewise.

    Returns:
        The same models; modules that were there are, and parts of a layer come before it.
    """
    known = [(spec, spec.layer_names.joined) for spec in (source, target)]
    cuts = [{path: _cut(spec, path, layer) for path, layer in own.items()} for spec, own in known]
    common = set(cuts[0].values()) & set(cuts[1].values())
    found = []
    for (spec, own), cut in zip(known, cuts, strict=True):
        kept = {path: layer for path, layer in own.items() if cut[path] in common}
        found.append(replace(spec, modules={**spec.modules, **_modules(spec, kept)}, whole=kept))
    return found[0], found[1]


def parts_of_layer(layer: FileLayer) -> tuple[str, ...]:
    """Paths of a layer's parts, in the order of their rows."""
    return tuple(part.path for part in layer.parts)


def _cut(spec: BaseModelSpec, path: str, layer: FileLayer) -> _Cut:
    shapes = tuple(spec.modules[part].matrix_shape for part in parts_of_layer(layer))
    return _NUMBER.sub(".*", path), shapes


def _modules(spec: BaseModelSpec, layers: Mapping[str, FileLayer]) -> dict[str, ModuleSpec]:
    return {
        path: ModuleSpec(path, (layer.rows, *spec.modules[layer.parts[0].path].shape[1:]))
        for path, layer in layers.items()
    }
