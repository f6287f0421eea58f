"""Prompts of any length as numbers: in chunks that an encoder can take, with weights beside them.

Each chunk has a beginning and an end and is embedded for itself; embeddings stand one behind the
other, as web interfaces have it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from prolora_jax.nets.text.tokens import ClipTokenizer
from prolora_jax.nets.text.weighting import Weighting, weighed

Tokenizers = Mapping[str, ClipTokenizer]

_FRAME = 2
"""Tokens of a chunk that are not the prompt's: its beginning and its end."""


class Prompts(NamedTuple):
    """Prompts as text encoders take them.

    Attributes:
        ids: `(batch, encoders, chunks, length)`.
        weights: of each token, likewise; None where all are 1.
    """

    ids: Any
    weights: Any

    def rows(self, places: Sequence[int]) -> "Prompts":
        """Some of the prompts."""
        return jax.tree.map(lambda array: array[np.asarray(places)], self)


def chunked(
    tokenizers: Tokenizers, texts: Sequence[str], *, weighting: Weighting, chunks: int
) -> Prompts:
    """Prompts as numbers.

    Args:
        tokenizers: of one base model, all of one length.
        texts: the prompts.
        weighting: which brackets weigh.
        chunks: how many each gets; what does not fit is cut off.

    Returns:
        Arrays of the host.
    """
    ids, weights = [], []
    for text in texts:
        for tokenizer in tokenizers.values():
            room = tokenizer.length - _FRAME
            own, heavy = _tokens(tokenizer, text, weighting)
            for begin in range(0, room * chunks, room):
                some = heavy[begin : begin + room]
                ids.append(tokenizer.framed(own[begin : begin + room]))
                weights.append([1.0, *some, *[1.0] * (tokenizer.length - 1 - len(some))])
    shape = (len(texts), len(tokenizers), chunks, -1)
    is_plain = all(weight == 1 for row in weights for weight in row)
    return Prompts(
        np.array(ids, np.int32).reshape(shape),
        None if is_plain else np.array(weights, np.float32).reshape(shape),
    )


def by_chunks(
    models: Sequence[Tokenizers], texts: Sequence[str], against: str, weighting: Weighting
) -> dict[int, list[int]]:
    """Prompts that need the same number of chunks: what is drawn depends on that number.

    Args:
        models: tokenizers of each base model that is told of them.
        texts: the prompts.
        against: the negative prompt, which has to have as many chunks.
        weighting: which brackets weigh.

    Returns:
        Places of prompts by number of chunks.
    """

    def needed(text: str) -> int:
        counts = [
            -(-len(_tokens(tokenizer, text, weighting)[0]) // (tokenizer.length - _FRAME))
            for tokenizers in models
            for tokenizer in tokenizers.values()
        ]
        return max(1, *counts)

    least, found = needed(against), {}
    for place, text in enumerate(texts):
        found.setdefault(max(least, needed(text)), []).append(place)
    return found


def _tokens(
    tokenizer: ClipTokenizer, text: str, weighting: Weighting
) -> tuple[list[int], list[float]]:
    """The numbers of a prompt, and the weight of each."""
    ids, weights = [], []
    for piece in weighed(text, weighting):
        own = tokenizer.ids(piece.text)
        ids += own
        weights += [piece.weight] * len(own)
    return ids, weights


def reweighted(
    hidden: Float[Array, "chunks length width"], weights: Float[Array, "chunks length"]
) -> Float[Array, "chunks length width"]:
    """Embeddings times weights, brought back to the mean that each chunk had.

    Args:
        hidden: what an encoder says of each token.
        weights: of each token.

    Returns:
        `w h mean(h) / mean(w h)`, computed in float32; a chunk whose weights are all 1 as it was.
    """
    wide = hidden.astype(jnp.float32)
    scaled = wide * weights[:, :, None]
    means = (array.mean(axis=(1, 2), keepdims=True) for array in (wide, scaled))
    before, after = means
    restored = scaled * jnp.where(after == 0, 1.0, before / jnp.where(after == 0, 1.0, after))
    plain = (weights == 1).all(axis=1)[:, None, None]
    return jnp.where(plain, hidden, restored.astype(hidden.dtype))
