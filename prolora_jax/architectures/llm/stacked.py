"""Models that mergekit has put together of other models' layers: which layer is which.

Its recipe lies beside the weights (`mergekit_config.yml`). SOLAR is made so, of layers 0 to
23 of Mistral's and then 8 to 31, as are many "self-merges": a layer may be there twice.
"""

from collections.abc import Mapping
from typing import Any

from prolora_jax.architectures.llm.names import LM
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.architectures.stacks import place_of

_MOST = 2_000
"""Layers. The deepest model that is known has hundreds."""


def layers_of_recipe(recipe: object) -> tuple[int, ...] | None:
    """Number of the layer that each layer was, in the model that it is from.

    Args:
        recipe: mergekit's configuration, as YAML has it.

    Returns:
        The numbers, in order; None of a recipe that mixes weights, or is none.
    """
    slices = recipe.get("slices") if isinstance(recipe, Mapping) else None
    found: list[int] = []
    for piece in slices if isinstance(slices, list) else []:
        sources = piece.get("sources") if isinstance(piece, Mapping) else None
        span = _span(sources[0]) if isinstance(sources, list) and len(sources) == 1 else None
        if span is None or len(found) + len(span) > _MOST:
            return None
        found += span
    return tuple(found) or None


def _span(source: Any) -> range | None:
    said = source.get("layer_range") if isinstance(source, Mapping) else None
    if not isinstance(said, list) or len(said) != 2 or any(type(n) is not int for n in said):
        return None
    return range(*said) if 0 <= said[0] < said[1] else None


def stacked_source_paths(source: BaseModelSpec, target: BaseModelSpec) -> dict[str, str] | None:
    """Source path by target path, where a recipe says which layer each of the target's was.

    Args:
        source: modules of the source base model.
        target: modules of the target base model.

    Returns:
        Every module of the target's layers that has a source module of its shape; None where no
        recipe says it, or says it of another number of layers.
    """
    layers = None if target.facts is None else target.facts.layers
    places = {path: place for path in target.component(LM[:-1]) if (place := place_of(path))}
    count = 1 + max((place.steps[0].number for place in places.values()), default=-1)
    if layers is None or len(layers) != count:
        return None
    found = {}
    for path, place in places.items():
        step = place.steps[0]
        origin = f"{LM}{step.stack.name}.{layers[step.number]}.{place.role}"
        module = source.modules.get(origin)
        if module is not None and module.shape == target.modules[path].shape:
            found[path] = origin
    return found
