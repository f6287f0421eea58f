"""What a student is to say: the effect on the target's logits, its likeliest tokens."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prolora_jax.engines.progress import Progress
from prolora_jax.nets.pipelines.devices import each_a_share
from prolora_jax.refine.lm.pools import Texts, WritingModel, said
from prolora_jax.refine.lm.recipe import LmRecipe
from prolora_jax.refine.teacher import Teacher


class TopAnswers(NamedTuple):
    """The likeliest tokens after each token of some texts.

    Attributes:
        tokens: `(n, length - 1, top)`.
        log_likelihoods: of them, over the whole vocabulary.
        counts: 1 where the token after is part of the text, else 0, `(n, length - 1)`.
    """

    tokens: Int[Any, "n places top"]
    log_likelihoods: Float[Any, "n places top"]
    counts: Float[Any, "n places"]


class Teachers(NamedTuple):
    """Who is asked for the answers: the target, the source, and the source with the adapter."""

    target: WritingModel
    source: WritingModel
    taught: WritingModel


def answers(
    speakers: Teachers, texts: Texts, recipe: LmRecipe, vocabulary: int, progress: Progress
) -> TopAnswers:
    """What the student is to say of texts: `z_t + z_{s+D} - z_s` (docs/refine.md 6), or `z_{s+D}`.

    The logits of an unnormalised product of three models (arXiv 2401.08565, section 2).

    Args:
        speakers: whom to ask.
        texts: what about.
        recipe: the teacher, and how many tokens are kept.
        vocabulary: tokens that both models know.
        progress: called with (what, done, total).

    Returns:
        On the host.
    """
    found: list[TopAnswers] = []
    count, step = len(texts.ids), recipe.at_once
    for begin in range(0, count, step):
        progress("both answer", begin, count)
        places = np.minimum(np.arange(begin, begin + step), count - 1)  # one program for all
        part = _asked(
            tuple(speaker.model for speaker in speakers),
            tuple(speaker.params for speaker in speakers),
            *each_a_share((texts.ids[places], texts.real[places]), speakers.target.mesh),
            vocabulary=vocabulary,
            top=min(recipe.top, vocabulary),
            teacher=recipe.teacher,
        )
        found.append(TopAnswers(*(np.asarray(array)[: count - begin] for array in part)))
    progress("both answer", count, count)
    return TopAnswers(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


@partial(jax.jit, static_argnames=("models", "vocabulary", "top", "teacher"))
def _asked(
    models: tuple[Any, ...],
    params: tuple[Any, ...],
    ids: Array,
    real: Array,
    *,
    vocabulary: int,
    top: int,
    teacher: Teacher,
) -> TopAnswers:
    def logits(place: int) -> Array:
        with_adapter = place == 2
        found = said(models[place], params[place], ids, real, with_adapter=with_adapter)
        return jax.nn.log_softmax(found[:, :-1, :vocabulary])

    wanted = logits(2)
    if teacher == "effect":
        wanted = jax.nn.log_softmax(wanted + logits(0) - logits(1))
    likely, tokens = jax.lax.top_k(wanted, top)
    return TopAnswers(tokens.astype(jnp.int32), likely, real[:, 1:].astype(jnp.float32))


def divergence(logits: Float[Array, "n length vocabulary"], wanted: TopAnswers) -> Array:
    """Mean Kullback-Leibler divergence of what is said from what is wanted, in nats a token.

    Tokens that are not among the likeliest count as one.

    Args:
        logits: of the token after each, over all that a model knows.
        wanted: the answers.
    """
    own = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    own = jnp.take_along_axis(own, wanted.tokens, axis=-1)
    likely = jnp.exp(wanted.log_likelihoods)
    tiny = jnp.float32(1e-7)
    others = jnp.maximum(1.0 - likely.sum(axis=-1), tiny)
    own_others = jnp.maximum(1.0 - jnp.exp(own).sum(axis=-1), tiny)
    apart = (likely * (wanted.log_likelihoods - own)).sum(axis=-1)
    apart += others * (jnp.log(others) - jnp.log(own_others))
    return (apart * wanted.counts).sum() / jnp.maximum(wanted.counts.sum(), 1.0)
