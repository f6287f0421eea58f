"""What each base model is shown, and what each adapter has to teach it.

The truth of a style on a target is the style applied to the *target's* data. A measure on the
source's data would be won by undoing what the target has learned since.
"""

from dataclasses import dataclass

import numpy as np

from prolora_jax.evaluation.laboratory.data import (
    CLASSES,
    RARE,
    TRANSFORMS,
    Pictures,
    concept_pictures,
)
from prolora_jax.evaluation.laboratory.diffusion import Draw, Predict, draw_denoising
from prolora_jax.evaluation.laboratory.distillation import draw_rows, jumps
from prolora_jax.evaluation.laboratory.recipe import AdapterRecipe, BaseRecipe

RARE_SHARE = 0.03
"""Share of training pictures shown with a word that means nothing."""
CONCEPT_PICTURES = 256
JUMPS = 4096
HELD_OUT_SEED = 10_000
"""Concepts are drawn, not collected: pictures of another seed are held out."""


@dataclass(frozen=True)
class Split:
    """The digits.

    Attributes:
        train: what models are trained on.
        held_out: what no model has seen.
    """

    train: Pictures
    held_out: Pictures


def own_pictures(base: BaseRecipe, pictures: Pictures) -> Pictures:
    """The base's kind of data."""
    return pictures.changed(TRANSFORMS[base.data])


def with_rare_words(pictures: Pictures, seed: int = 3) -> Pictures:
    """The pictures, a few of them with a rare word instead of their own."""
    rng = np.random.default_rng(seed)
    rare = CLASSES + rng.integers(RARE, size=len(pictures.words))
    chosen = rng.random(len(pictures.words)) < RARE_SHARE
    return Pictures(pictures.pixels, np.where(chosen, rare, pictures.words).astype(np.int32))


def draw_lesson(
    base: BaseRecipe, adapter: AdapterRecipe, split: Split, teacher: Predict, batch: int, seed: int
) -> Draw:
    """Batches to train an adapter on.

    A net of few steps is taught as it was made: by where the steps of its teacher, which has the
    adapter already, arrive. The denoising loss would teach it the effect and undo its haste.

    Args:
        base: the base model it is trained on.
        adapter: what is taught.
        split: the digits.
        teacher: whose steps are taken at once: of a `speed` adapter the base itself; of any adapter
            on a hastened base its parent with that adapter. Not used by other lessons.
        batch: pictures of a batch.
        seed: of concepts and jumps.

    Returns:
        A function from a random generator to a batch.
    """
    own = own_pictures(base, split.train)

    def draws(pictures: Pictures, size: int, dropped: float = 0.1) -> Draw:
        if base.kind == "hasten":
            return draw_rows(jumps(teacher, pictures, JUMPS, seed), size)
        return draw_denoising(pictures, size, dropped=dropped)

    if adapter.kind == "speed":
        return draw_rows(jumps(teacher, own, JUMPS, seed), batch)
    if adapter.kind == "style":
        return draws(own.changed(TRANSFORMS[adapter.name]), batch)
    concept = draws(concept_pictures(adapter.name, CONCEPT_PICTURES, seed), batch // 2, 0)
    rest = draws(own, batch - batch // 2)  # keeps the other classes, as DreamBooth does

    def draw(rng: np.random.Generator):
        pair = concept(rng), rest(rng)
        return type(pair[0])(*(np.concatenate(arrays) for arrays in zip(*pair, strict=True)))

    return draw


def effect_pictures(base: BaseRecipe, adapter: AdapterRecipe, pictures: Pictures) -> Pictures:
    """Held-out pictures that show what a style or a concept is to do on a base.

    Args:
        base: the base model.
        adapter: a style or a concept.
        pictures: held-out digits.

    Returns:
        As many pictures; of a concept they are drawn anew.
    """
    if adapter.kind == "concept":
        return concept_pictures(adapter.name, len(pictures.words), HELD_OUT_SEED)
    return own_pictures(base, pictures).changed(TRANSFORMS[adapter.name])


def sampled_words(adapter: AdapterRecipe, count: int) -> np.ndarray:
    """Words to make pictures of: all digits in turn, or the concept's own."""
    if adapter.kind == "concept":
        return np.full(count, concept_pictures(adapter.name, 1, 0).words[0], np.int32)
    return (np.arange(count) % CLASSES).astype(np.int32)
