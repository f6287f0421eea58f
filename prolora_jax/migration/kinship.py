"""Whether two language models or two diffusion transformers are relatives at all.

Equal shapes do not tell: Llama 3 8B and Mistral 7B have the same layers in the same shapes and
nothing else in common, and so have Flux.1 and the smallest Flux.2 in part. Weights of relatives
point the same way, those of strangers are at right angles. Unlike widths do tell: nobody makes a
transformer of another width from the weights of a first. So do unlike families, whose blocks may
have equal names and shapes (Flux.1 and Qwen-Image).
"""

from collections.abc import Mapping

import numpy as np

from prolora_jax.architectures.dit.families import unlike_families
from prolora_jax.architectures.dit.stacks import DIT_COMPONENTS
from prolora_jax.architectures.llm.names import LM
from prolora_jax.architectures.stacks import place_of
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.io.stores.weight_tables import WeightTables
from prolora_jax.matching.levels import score
from prolora_jax.migration.evidence import cosines

LEAST_COSINE = 0.1
"""Median cosine of some weights below which two models are strangers.

Between unrelated encoders with equal shapes all cosines are below .007 (MiniLM L6 and L3), between
two fine-tunes of one model above .99; of a million numbers, chance gives .001.
"""

LOOKED_AT = 5
"""Pairs of weights that are read, spread over the layers."""


_LOOKED_AT_IN = (LM, *(f"{component}." for component in DIT_COMPONENTS))


class Strangers(AdapterRefused):
    """Raised when the weights of two language models or transformers have nothing in common."""

    def __init__(self, source: BaseModel, target: BaseModel, cosine: float, count: int):
        super().__init__(
            f"{source.location} and {target.location}: found layers of equal shapes whose weights "
            f"have nothing in common (median cosine {cosine:.3f} of {count} of them); expected "
            f"relatives, such as a fine-tune, a pruned or a packed one; give the base model that "
            f"descends from the adapter's, or move it all the same with --min-similarity -1",
            code=Refusal.UNRELATED,
        )


def median_cosine(
    source: BaseModel,
    target: BaseModel,
    pairs: Mapping[str, str],
    tables: WeightTables | None = None,
) -> tuple[float, int] | None:
    """Median cosine of some of the weights that are paired, and of how many.

    Args:
        source: the source base model.
        target: the target base model.
        pairs: source path by target path.
        tables: where dot products are looked up and kept.

    Returns:
        None where no pair stands in a layer of a language model, or a block of a transformer.
    """
    paths = [p for p in pairs if p.startswith(_LOOKED_AT_IN) and place_of(p) is not None]
    if not paths:
        return None
    places = np.unique(np.linspace(0, len(paths) - 1, LOOKED_AT).round().astype(int))
    asked = [(pairs[paths[place]], paths[place]) for place in places]
    found = [score(cosines(source, target, [s], [t], tables)[0, 0]) for s, t in asked]
    return float(np.median(found)), len(found)


class UnlikeWidths(AdapterRefused):
    """Raised when no block of two diffusion transformers has a module of one shape."""

    def __init__(self, source: BaseModel, target: BaseModel, paths: tuple[str, str]):
        theirs, ours = paths
        super().__init__(
            f"{source.location} and {target.location}: found blocks of unlike widths "
            f"({theirs} {source.spec.modules[theirs].shape}, {ours} "
            f"{target.spec.modules[ours].shape}); expected relatives: transformers of unlike "
            f"widths are strangers, whose names look the same and whose weights have nothing in "
            f"common; give the base model that descends from the adapter's, or train the adapter "
            f"anew",
            code=Refusal.UNRELATED,
        )


def require_a_common_shape(source: BaseModel, target: BaseModel, pairs: Mapping[str, str]) -> None:
    """Refuse two diffusion transformers of which no blocks fit.

    Args:
        source: the source base model.
        target: the target base model.
        pairs: source path by target path, of the whole matching.

    Raises:
        UnlikeWidths: both have blocks, and no module in a block is paired.
    """
    for component in DIT_COMPONENTS:
        theirs, ours = (
            [path for path in model.spec.component(component) if place_of(path) is not None]
            for model in (source, target)
        )
        if not theirs or not ours or any(path in pairs for path in ours):
            continue
        both = next((path for path in ours if path in source.spec.modules), None)
        raise UnlikeWidths(source, target, (both or theirs[0], both or ours[0]))


class UnlikeFamilies(AdapterRefused):
    """Raised when two diffusion transformers are of families that share no weights."""

    def __init__(self, source: BaseModel, target: BaseModel, names: tuple[str, str]):
        super().__init__(
            f"{source.location} and {target.location}: found transformers of unlike families "
            f"({names[0]}, {names[1]}); expected relatives: what they have in common are names and "
            f"shapes, and no weights; give the base model that descends from the adapter's, or "
            f"move it all the same with --min-similarity -1",
            code=Refusal.UNRELATED,
        )


def require_one_family(source: BaseModel, target: BaseModel) -> None:
    """Refuse two diffusion transformers of unlike families, before any weight is read.

    Args:
        source: the source base model.
        target: the target base model.

    Raises:
        UnlikeFamilies: they are.
    """
    for component in DIT_COMPONENTS:
        names = [
            [path.removeprefix(f"{component}.") for path in model.spec.component(component)]
            for model in (source, target)
        ]
        unlike = unlike_families(*names)
        if unlike is not None:
            raise UnlikeFamilies(source, target, (unlike[0].name, unlike[1].name))
