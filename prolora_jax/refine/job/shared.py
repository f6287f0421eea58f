"""What all adapters of a pair share: samples of both base models, and R.

The target draws T and answers half of every student's rows; the source answers the same rows,
draws S, and each says how well it knows the other's samples. These are made once, and kept.
"""

from typing import NamedTuple

import numpy as np

from prolora_jax.io.outputs.work_folder import WorkFolder
from prolora_jax.refine import guard, triggers
from prolora_jax.refine.job.base_net import BaseNet, Shown
from prolora_jax.refine.job.recipe import RefineRecipe
from prolora_jax.refine.rows import NoisyRows, SamplePool, noised_rows

T_SEED, S_SEED = 0, 10_000
"""Added to the recipe's seed: of the noise that T and S are drawn from."""


class OfTarget(NamedTuple):
    """What the target has said before any adapter came.

    Attributes:
        shown: the noise of its training.
        pool: T.
        rows: pictures of T with noise.
        own: its answers to them.
        loss: L_t(T).
    """

    shown: Shown
    pool: SamplePool
    rows: NoisyRows
    own: np.ndarray
    loss: float


class OfSource(NamedTuple):
    """What the source has said before any adapter came.

    Attributes:
        pool: S.
        plain: its answers to the rows of T.
        loss: L_s(S).
        loss_on_target: L_s(T).
    """

    pool: SamplePool
    plain: np.ndarray
    loss: float
    loss_on_target: float


def size_of(net: BaseNet, recipe: RefineRecipe) -> tuple[int, int]:
    """Height and width of samples in latents: what was asked, or what the target was trained on."""
    return recipe.size or (net.pipeline.sample_size, net.pipeline.sample_size)


def drawn_words(shares: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Places of prompts, each word's by its share, and a tenth of all the empty one."""
    return triggers.draw_words(shares, count, -1, rng) + 1


def of_target(net: BaseNet, recipe: RefineRecipe) -> OfTarget:
    """T, rows of it, and what the target says of both.

    Args:
        net: the target.
        recipe: how.
    """
    who, shown, words = net.spoken(recipe.prompts), net.shown, len(recipe.prompts)
    rng = np.random.default_rng(recipe.seed)
    places = drawn_words(np.full(words, 1 / words), recipe.pictures, rng)
    size = size_of(net, recipe)
    pool = net.pool(who, places, recipe.seed + T_SEED, "target draws", size)
    rows = noised_rows([pool], recipe.rows // 2, shown.levels, recipe.seed + 2)
    own = net.answers(rows, who, shown, "target answers")
    return OfTarget(shown, pool, rows, own, net.loss(pool, who, shown, recipe.seed + 4))


def of_source(net: BaseNet, theirs: OfTarget, recipe: RefineRecipe) -> OfSource:
    """S, and what the source says of it, and of T.

    Args:
        net: the source.
        theirs: of the target.
        recipe: how.
    """
    who, shown, words = net.spoken(recipe.prompts), theirs.shown, len(recipe.prompts)
    rng = np.random.default_rng(recipe.seed + 1)
    places = drawn_words(np.full(words, 1 / words), recipe.pictures, rng)
    size: tuple[int, int] = theirs.pool.clean.shape[2:]
    pool = net.pool(who, places, recipe.seed + S_SEED, "source draws", size)
    return OfSource(
        pool,
        net.answers(theirs.rows, who, shown, "source answers"),
        net.loss(pool, who, shown, recipe.seed + 5),
        net.loss(theirs.pool, who, shown, recipe.seed + 4),
    )


def losses_of(
    net: BaseNet, target: OfTarget, source: OfSource, recipe: RefineRecipe
) -> dict[str, float]:
    """The four losses of the guard, the last of which only the target can say.

    Args:
        net: the target.
        target: what it has said before.
        source: what the source has said.
        recipe: how.

    Returns:
        Arguments of `guard.disagreement`.
    """
    on_source = net.loss(source.pool, net.spoken(recipe.prompts), target.shown, recipe.seed + 5)
    found = {
        "source_on_target": source.loss_on_target,
        "target_on_source": on_source,
        "target_own": target.loss,
        "source_own": source.loss,
    }
    guard.disagreement(**found)  # refuses what is no loss before any adapter waits for it
    return found


def kept_target(work: WorkFolder) -> OfTarget | None:
    """What was kept of the target, if it was."""
    kept = work.load("target")
    if kept is None:
        return None
    predicts = "epsilon" if kept["predicts_noise"] else "v_prediction"
    return OfTarget(
        Shown(kept["variances"], predicts),
        SamplePool(kept["clean"], kept["words"]),
        NoisyRows(kept["noisy"], kept["times"], kept["row_words"]),
        kept["own"],
        float(kept["loss"]),
    )


def keep_target(work: WorkFolder, found: OfTarget) -> None:
    """Keep it."""
    arrays = {
        "clean": found.pool.clean,
        "words": found.pool.conditioning,
        "noisy": found.rows.noisy,
        "times": found.rows.times,
        "row_words": found.rows.conditioning,
        "own": found.own,
        "loss": np.array(found.loss),
        "variances": found.shown.kept,
        "predicts_noise": np.array(found.shown.predicts == "epsilon", np.uint8),
    }
    work.save("target", arrays)


def kept_source(work: WorkFolder) -> OfSource | None:
    """What was kept of the source, if it was."""
    kept = work.load("source")
    if kept is None:
        return None
    pool = SamplePool(kept["clean"], kept["words"])
    return OfSource(pool, kept["plain"], float(kept["loss"]), float(kept["loss_on_target"]))


def keep_source(work: WorkFolder, found: OfSource) -> None:
    """Keep it."""
    arrays = {
        "clean": found.pool.clean,
        "words": found.pool.conditioning,
        "plain": found.plain,
        "loss": np.array(found.loss),
        "loss_on_target": np.array(found.loss_on_target),
    }
    work.save("source", arrays)
