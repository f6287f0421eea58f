"""Whether two base models draw the same kind of pictures: R, without any adapter."""

from dataclasses import dataclass, replace
from functools import partial

import jax.numpy as jnp

from prolora_jax.engines.progress import Progress
from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.nets.pipelines.pipeline_loading import load_pipeline
from prolora_jax.refine import guard
from prolora_jax.refine.job import shared
from prolora_jax.refine.job.base_net import BaseNet
from prolora_jax.refine.job.bases import DrawingBases, require_one_latent_space
from prolora_jax.refine.job.recipe import RefineRecipe
from prolora_jax.refine.lm.opening import is_language_model


@dataclass(frozen=True)
class BySamples:
    """What the samples of two base models say.

    Attributes:
        disagreement: R (docs/refine.md 4).
        sentence: what R says, for people.
        losses: L_s(T), L_t(S), L_t(T), L_s(S).
        pictures: that each drew.
    """

    disagreement: float
    sentence: str
    losses: dict[str, float]
    pictures: int


def by_samples(
    bases: DrawingBases,
    recipe: RefineRecipe,
    pixels: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> BySamples:
    """Let both draw, and ask each how well it knows the other's samples.

    One net is in memory at a time: target, source, target.

    Args:
        bases: both.
        recipe: what is drawn, and how.
        pixels: height and width of samples; None for what the target was trained on.
        progress: called with (what, done, total).

    Raises:
        UsageError: there is nothing at a path, or `pixels` is no whole number of latents.
        BaseModelError: one of them cannot draw, or both speak of different latents.
    """
    for place in (bases.source, bases.target):
        if is_language_model(load_base_model(place)):
            raise BaseModelError(
                f"{place}: found a language model, which draws nothing; expected base models that "
                "draw; of language models `prolora refine` computes R, and its report says it",
                code=Refusal.UNSUPPORTED_CONFIG,
            )
    per_latent = require_one_latent_space(bases)
    # Rows are for students, of whom there are none.
    recipe = replace(recipe, rows=2).at_pixels(pixels, per_latent)
    load = partial(load_pipeline, dtype=jnp.dtype(bases.dtype))

    def target() -> BaseNet:
        return BaseNet.placed(
            "target", load(bases.target, parts=bases.target_parts), recipe, progress
        )

    theirs = shared.of_target(target(), recipe)
    ours = shared.of_source(
        BaseNet.placed("source", load(bases.source, parts=bases.source_parts), recipe, progress),
        theirs,
        recipe,
    )
    losses = shared.losses_of(target(), theirs, ours, recipe)
    r = guard.disagreement(**losses)
    return BySamples(r, guard.sentence(r), losses, recipe.pictures)
