"""Two base models matched: their modules, and layers that they have beside the parts of these."""

from dataclasses import replace
from typing import Literal

from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.whole_layers import parts_of_layer
from prolora_jax.matching.known_sources import known_sources
from prolora_jax.matching.levels import Evidence
from prolora_jax.matching.matching import Matching, match_modules, same_structure


def match_base_models(
    source: BaseModelSpec,
    target: BaseModelSpec,
    evidence: Evidence,
    mode: Literal["auto", "name", "block", "module"],
) -> Matching:
    """Match every target module that has a source module.

    Args:
        source: modules of the source base model.
        target: modules of the target base model.
        evidence: how alike modules are; asked only where shapes and order leave a choice.
        mode: as for `match_modules`; `auto` takes what is published, too.

    Returns:
        The matching. A layer beside its parts comes from the layer that all of these come from.
    """
    specs = source.in_parts, target.in_parts
    told = target.facts is not None and target.facts.layers is not None
    known = mode == "auto" and (told or not same_structure(*specs))
    published = known_sources(*specs, evidence) if known else None
    matching = match_modules(*specs, evidence, mode, published)
    whole = {parts_of_layer(layer): path for path, layer in (source.whole or {}).items()}
    found, parts = dict(matching.pairs), first_parts(target)
    for path, layer in (target.whole or {}).items():
        origin = whole.get(tuple(found.get(part, "") for part in parts_of_layer(layer)))
        if origin is not None:
            found[path] = origin
    return replace(matching, pairs=found, parts=parts)


def first_parts(spec: BaseModelSpec) -> dict[str, str]:
    """First part by path of each layer that is a module beside its parts."""
    return {path: layer.parts[0].path for path, layer in (spec.whole or {}).items()}
