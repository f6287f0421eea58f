"""A pair of language models, ready to be refined on."""

from functools import partial
from pathlib import Path

import jax.numpy as jnp

from prolora_jax.architectures.llm.layouts import is_embedding
from prolora_jax.architectures.llm.names import LM
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.io.base_models.checkpoint import BaseModel, located
from prolora_jax.io.base_models.lm_files import read_lm_config
from prolora_jax.migration.one_tokenizer import require_one_tokenizer
from prolora_jax.nets.lm.config import lm_from_transformers
from prolora_jax.nets.lm.loading import load_lm
from prolora_jax.refine.job.refined import ToRefine
from prolora_jax.refine.lm.pair import TextPairRefinement
from prolora_jax.refine.lm.recipe import LmRecipe

_HEAD = f"{LM}lm_head"
_BESIDE = {
    "saved": "a whole layer of modules_to_save (saved)",
    "rows": "whole rows of an embedding (rows)",
    "bias": "a vector that is added to a bias (bias)",
    "weight": "a vector that is added to a weight (weight)",
}
"""Tensors beside the pairs, by their part."""


def is_language_model(model: BaseModel) -> bool:
    """Whether a base model writes, and does not draw."""
    return any(path.startswith(LM) for path in model.spec.modules)


def text_pair(
    models: tuple[BaseModel, BaseModel],
    recipe: LmRecipe,
    work: Path,
    stamp: str,
    dtype: str,
    progress: Progress,
) -> TextPairRefinement:
    """What refines adapters of two language models; they are loaded when they are needed.

    Args:
        models: source and target.
        recipe: what is asked.
        work: folder in which all that was done is kept.
        stamp: of the pair and the recipe.
        dtype: what both nets compute in.
        progress: called with (what, done, total).

    Raises:
        BaseModelError: one is of a kind that is not computed, or they number tokens otherwise.
    """
    places = located(models[0].location), located(models[1].location)
    read = (read_lm_config(place) for place in places)
    sizes = [lm_from_transformers(raw, origin=str(file)).vocab_size for raw, file in read]
    require_one_tokenizer(*models, (sizes[0], sizes[1]))

    def tokens(source: int, target: int) -> int:
        return require_one_tokenizer(*models, (source, target))

    source, target = (partial(load_lm, place, dtype=jnp.dtype(dtype)) for place in places)
    spec = models[1].spec
    return TextPairRefinement(source, target, spec, tokens, recipe, work, stamp, progress)


def require_kernels(one: ToRefine, model: BaseModel) -> None:
    """Refuse an adapter of an embedding, of a head that is one, and all that is no pair.

    The net has no layer for the first two; teacher and student are computed with pairs alone.

    Args:
        one: to be refined.
        model: the source.

    Raises:
        AdapterRefused: it has such a module or tensor.
    """
    beside = (c for c in one.given.companions if c.part not in {"none", "layer"})
    other = next(beside, None)
    if other is not None:
        # A pattern that takes a bias away takes its layer's pair, too.
        first = (
            f", or first move the adapter to its own base model without it (`prolora migrate "
            f"--exclude '{other.path}'`)"
        )
        raise AdapterRefused(
            f"{one.given.origin}: {other.key}: found {_BESIDE[other.part]}; expected pairs alone, "
            f"with which teacher and student are computed; use `prolora migrate`"
            f"{first if other.part in {'saved', 'rows'} else ''}",
            code=Refusal.UNMATCHED_MODULES,
        )
    paths = {module.path for module in one.given.modules}
    tied = {_HEAD} & paths and "embed" in model.sources[_HEAD].placement.key
    found = _HEAD if tied else next(filter(is_embedding, sorted(paths)), None)
    if found is not None:
        what = "a head that is tied to the embedding" if tied else "an embedding"
        raise AdapterRefused(
            f"{one.given.origin}: {found}: found an adapter of {what}; expected layers alone, "
            f"which a student can be taught; use `prolora migrate`",
            code=Refusal.UNMATCHED_MODULES,
        )
