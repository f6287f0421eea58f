"""What one adapter does on its source: which words it answers to, its own samples, its answers."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from prolora_jax.io.outputs.work_folder import WorkFolder
from prolora_jax.refine import guard, triggers
from prolora_jax.refine.fitting import require_numbers
from prolora_jax.refine.job.base_net import BaseNet, Shown, Spoken
from prolora_jax.refine.job.recipe import RefineRecipe
from prolora_jax.refine.job.shared import OfTarget, drawn_words
from prolora_jax.refine.rows import NoisyRows, Rows, joined, noised_rows
from prolora_jax.refine.teacher import taught

A_SEED = 20_000
"""Added to the recipe's seed: of the noise that A is drawn from."""


class Effect(NamedTuple):
    """What the source says with an adapter, and without.

    Attributes:
        effect: of each word.
        rows: pictures of A with noise.
        plain: the source's answers to them.
        adapted: those of the source with the adapter.
        on_target: of the source with the adapter to the rows of T.
    """

    effect: Float[np.ndarray, " words"]
    rows: NoisyRows
    plain: np.ndarray
    adapted: np.ndarray
    on_target: np.ndarray


class Speaker(NamedTuple):
    """A base model, and as whom it is asked: with an adapter, or without."""

    net: BaseNet
    who: Spoken


def effect_of(
    plain: Speaker, adapted: Speaker, theirs: OfTarget, recipe: RefineRecipe, origin: str
) -> Effect:
    """Ask the source, with an adapter and without.

    A is drawn by words in proportion to their effect, so that its rows serve `refine` and
    `reteach`: which of the two it will be is known only when both base models have been asked.

    Args:
        plain: the source.
        adapted: the source with the adapter beside its kernels.
        theirs: of the target.
        recipe: how.
        origin: the adapter's, for messages.

    Raises:
        AdapterRefused: its effect on a word is no finite number.
    """
    shown = theirs.shown
    size: tuple[int, int] = theirs.pool.clean.shape[2:]
    found = word_effects(plain, adapted, shown, size, recipe)
    require_numbers(found, f"{origin}: what the source says with it")
    rng = np.random.default_rng(recipe.seed + 3)
    places = drawn_words(triggers.word_shares(found), recipe.pictures, rng)
    stage = "source with the adapter"
    pool = adapted.net.pool(adapted.who, places, recipe.seed + A_SEED, f"{stage} draws", size)
    count = recipe.rows - recipe.rows // 2
    rows = noised_rows([pool], count, shown.levels, recipe.seed + 6)
    return Effect(
        found,
        rows,
        plain.net.answers(rows, plain.who, shown, "source answers"),
        adapted.net.answers(rows, adapted.who, shown, f"{stage} answers"),
        adapted.net.answers(theirs.rows, adapted.who, shown, f"{stage} answers"),
    )


def word_effects(
    plain: Speaker,
    adapted: Speaker,
    shown: Shown,
    size: tuple[int, int],
    recipe: RefineRecipe,
) -> Float[np.ndarray, " words"]:
    """How much an adapter changes the source's answer to pure noise, by word.

    Args:
        plain: the source.
        adapted: the source with the adapter beside its kernels.
        shown: the noise of the target's training.
        size: height and width in latents.
        recipe: how many noises each word is tried on.
    """
    rng = np.random.default_rng(recipe.seed)
    words, channels = plain.who.words, plain.net.pipeline.unet.config.tensors.in_channels
    some = rng.standard_normal((recipe.noises, channels, *size), np.float32)
    noisy = np.tile(some, (words, 1, 1, 1))
    times = np.full(len(noisy), triggers.TIME, np.float32)
    places = np.repeat(np.arange(1, words + 1, dtype=np.int32), recipe.noises)
    rows = NoisyRows(noisy, times, places)
    said = [net.answers(rows, who, shown, "words") for net, who in (adapted, plain)]
    return triggers.effects(*(a.reshape(words, recipe.noises, *a.shape[1:]) for a in said))


def lesson(
    theirs: OfTarget,
    plain: np.ndarray,
    found: Effect,
    own: np.ndarray,
    way: guard.Way,
    recipe: RefineRecipe,
) -> Rows:
    """What the student is shown.

    Args:
        theirs: of the target: the rows of T, and its answers.
        plain: the source's answers to the rows of T.
        found: of the adapter.
        own: the target's answers to the rows of A.
        way: `refine` or `reteach`.
        recipe: which teacher, for `refine`.

    Returns:
        Rows with answers; of `reteach` those of A that show a trigger, as the source with the
        adapter says, and those of T that show none, as the target says.
    """
    if way == "refine":
        on_theirs = taught(recipe.teacher, theirs.own, found.on_target, plain)
        on_own = taught(recipe.teacher, own, found.adapted, found.plain)
        return joined([theirs.rows.answered(on_theirs), found.rows.answered(on_own)])
    parts = []
    sides = [(theirs.rows, theirs.own, False), (found.rows, found.adapted, True)]
    for rows, answers, with_trigger in sides:
        chosen = _shows_trigger(rows.conditioning, found) == with_trigger
        some = NoisyRows(rows.noisy[chosen], rows.times[chosen], rows.conditioning[chosen])
        parts.append(some.answered(answers[chosen]))
    return joined(parts)


def of_teacher(
    rows: Rows, before: np.ndarray, theirs: OfTarget, found: Effect, way: guard.Way
) -> np.ndarray:
    """What the teacher changes in the target's answers, to be compared with `on_source`.

    Args:
        rows: of `lesson`.
        before: the target's answers, to the rows of T, then to those of A.
        theirs: of the target.
        found: of the adapter.
        way: `refine` or `reteach`.

    Returns:
        Of the rows of T, then of those of A.
    """
    if way == "refine":
        return np.asarray(rows.target) - before
    # The student is shown some of them; of the others a teacher of triggers says as much.
    words = np.concatenate([theirs.rows.conditioning, found.rows.conditioning])
    adapted = np.concatenate([found.on_target, found.adapted])
    return np.where(_shows_trigger(words, found).reshape(-1, 1, 1, 1), adapted - before, 0)


def _shows_trigger(words: np.ndarray, found: Effect) -> np.ndarray:
    """Whether rows of these words show a trigger; the empty word is none."""
    return np.concatenate([[False], triggers.trigger_words(found.effect)])[words]


def on_source(plain: np.ndarray, found: Effect) -> np.ndarray:
    """What the adapter changes on the source.

    Args:
        plain: the source's answers to the rows of T.
        found: of the adapter.

    Returns:
        Of the rows of T, then of those of A.
    """
    return np.concatenate([found.on_target - plain, found.adapted - found.plain])


def kept_effect(work: WorkFolder) -> Effect | None:
    """What was kept, if it was."""
    kept = work.load("effect")
    if kept is None:
        return None
    rows = NoisyRows(kept["noisy"], kept["times"], kept["words"])
    return Effect(kept["effect"], rows, kept["plain"], kept["adapted"], kept["on_target"])


def keep_effect(work: WorkFolder, found: Effect) -> None:
    """Keep it."""
    arrays = {
        "effect": found.effect,
        "noisy": found.rows.noisy,
        "times": found.rows.times,
        "words": found.rows.conditioning,
        "plain": found.plain,
        "adapted": found.adapted,
        "on_target": found.on_target,
    }
    work.save("effect", arrays)
