"""Which words an adapter answers to, found without data (docs/refine.md 3).

Both the source and the source with the adapter are shown pure noise at one high time: how much
their answers differ for a word is the adapter's effect on it.
"""

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

TIME = 0.9
"""Of the noise that words are tried on, in [0, 1]."""
NOISES = 16
"""Tried for each word."""
NULL_SHARE = 0.1
"""Of self-made words: the word for "anything", which guidance needs."""
TRIGGER_SHARE = 0.05
"""Of the largest effect: words above it are triggers. A rule by the median took a word along
that the adapter does not teach."""


def effects(
    changed: Float[jax.Array | np.ndarray, "words noises ..."],
    plain: Float[jax.Array | np.ndarray, "words noises ..."],
) -> Float[np.ndarray, " words"]:
    """`e(w)`, the mean of `|v_{s+D} - v_s|^2` by word.

    Args:
        changed: answers of the source with the adapter, to the same noises for each word.
        plain: of the source.

    Returns:
        float64.
    """
    change = np.asarray(changed, np.float64) - np.asarray(plain, np.float64)
    return np.mean(change**2, axis=tuple(range(1, change.ndim)))


def word_shares(effect: Float[np.ndarray, " words"]) -> Float[np.ndarray, " words"]:
    """How often each word is drawn: half evenly, half in proportion to its effect.

    Args:
        effect: from `effects`.

    Returns:
        Positive shares that add up to one; even ones for an adapter without effect.
    """
    even = np.full(len(effect), 1 / len(effect))
    total = effect.sum()
    return (even + (effect / total if total > 0 else even)) / 2


def trigger_words(effect: Float[np.ndarray, " words"]) -> Bool[np.ndarray, " words"]:
    """The words that an adapter answers to; none for an adapter without effect.

    Args:
        effect: from `effects`.

    Returns:
        Whether each word is one.
    """
    return effect > TRIGGER_SHARE * effect.max()


def is_style(triggers: Bool[np.ndarray, " words"]) -> bool:
    """Whether more than half of the words are triggers: there is nothing to keep apart then."""
    return bool(triggers.mean() > 0.5)


def draw_words(
    shares: Float[np.ndarray, " words"],
    count: int,
    null: int,
    rng: np.random.Generator,
    *,
    null_share: float = NULL_SHARE,
) -> Int[np.ndarray, " count"]:
    """Self-made words.

    Args:
        shares: of each word, as `word_shares` has them.
        count: how many.
        null: the word for "anything".
        rng: of the draws.
        null_share: how many become that word.

    Returns:
        int32 `(count,)`, places in `shares` or `null`.
    """
    words = rng.choice(len(shares), size=count, p=shares)
    return np.where(rng.random(count) < null_share, null, words).astype(np.int32)
