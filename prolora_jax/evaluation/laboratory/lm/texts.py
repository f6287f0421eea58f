"""Texts as tokens: rows that models are trained on, documents that judge them.

Files are split by the hash of their name: a fifth of them judges, the others teach.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.guarded import is_regular, read_small
from prolora_jax.io.system_texts import SystemText, system_texts
from prolora_jax.refine.rows import Rows

Encode = Callable[[str], np.ndarray]
BYTES = 256
_LARGEST_TOKENIZER = 2**26
_ROUGHLY = 8
"""Characters of a token, more than there are in nearly all texts: what is cut before encoding."""


class Documents(NamedTuple):
    """Texts with the tokens that count.

    Attributes:
        ids: `(n, length)`; places that are not used are 0.
        weights: 1 for tokens that are to be said, else 0; never for the first, `(n, length)`.
    """

    ids: Int[np.ndarray, "n length"]
    weights: Float[np.ndarray, "n length"]

    def rows(self) -> Rows:
        """As a student's rows, whose loss is `token_loss`."""
        times = np.zeros(len(self.ids), np.float32)
        return Rows(self.ids, times, np.ones(self.ids.shape, bool), self)


def encoder_of(folder: Path, raw: Mapping[str, Any]) -> Encode:
    """How a model's texts become tokens: by its tokenizer; bytes where it has none.

    Args:
        folder: of the model.
        raw: what its `config.json` says.

    Raises:
        BaseModelError: it has none, and more or fewer tokens than there are bytes.
    """
    file = folder / "tokenizer.json"
    if not is_regular(file):
        if raw.get("vocab_size") != BYTES:
            raise BaseModelError(
                f"{file}: found no tokenizer of a model with a vocab_size of "
                f"{raw.get('vocab_size')}; expected one, as without it tokens are taken for the "
                f"{BYTES} bytes; put it there",
                code=Refusal.MISSING_FILE,
            )
        return lambda text: np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(read_small(file, _LARGEST_TOKENIZER))
    return lambda text: np.asarray(tokenizer.encode(text).ids, np.int32)


def judges(name: str) -> bool:
    """Whether what has this name is held out."""
    return sha256(name.encode()).digest()[0] % 5 == 0


@cache
def texts_of(kind: SystemText, *, held_out: bool) -> tuple[str, ...]:
    """Texts of the system that teach, or those that judge."""
    found = system_texts(kind)
    return tuple(text for name, text in found.items() if judges(name) == held_out and text)


def training_rows(kind: SystemText, encode: Encode, count: int, length: int, seed: int) -> Rows:
    """Pieces of texts that teach, from places drawn at random.

    Args:
        kind: of the texts.
        encode: of the model.
        count: of rows.
        length: tokens of each.
        seed: of the places.
    """
    rng, texts = np.random.default_rng(seed), texts_of(kind, held_out=False)
    found, span = [], length * _ROUGHLY
    while len(found) < count:
        text = texts[rng.integers(len(texts))]
        place = int(rng.integers(max(1, len(text) - span)))
        ids = encode(text[place : place + span])
        if len(ids) >= length:
            found.append(ids[:length])
    return whole_documents(found, length).rows()


def held_out(kind: SystemText, encode: Encode, count: int, length: int) -> Documents:
    """The beginnings of texts that judge.

    Args:
        kind: of the texts.
        encode: of the model.
        count: of documents, at most.
        length: tokens of each, at most.
    """
    texts = texts_of(kind, held_out=True)[:count]
    return whole_documents((encode(t[: length * _ROUGHLY])[:length] for t in texts), length)


def whole_documents(texts: Iterable[np.ndarray], length: int) -> Documents:
    """Documents of which all tokens but the first are to be said.

    Args:
        texts: tokens of each, no more than `length`.
        length: of all after padding.
    """
    return documents(((ids, np.arange(len(ids)) > 0) for ids in texts), length)


def documents(parts: Iterable[tuple[np.ndarray, np.ndarray]], length: int) -> Documents:
    """Documents of tokens, and whether each is to be said; padded at their end.

    Args:
        parts: tokens and marks of each document, no more than `length`.
        length: of all after padding.
    """
    given = list(parts)
    ids = np.zeros((len(given), length), np.int32)
    weights = np.zeros((len(given), length), np.float32)
    for place, (tokens, said) in enumerate(given):
        ids[place, : len(tokens)], weights[place, : len(tokens)] = tokens, said
    return Documents(ids, weights)


def token_loss(logits: Any, wanted: Documents) -> jax.Array:
    """Mean negative log-likelihood of the tokens that are to be said, in nats."""
    nll = negative_log_likelihoods(logits, jnp.asarray(wanted.ids))
    weights = jnp.asarray(wanted.weights)[:, 1:]
    return (nll * weights).sum() / jnp.maximum(weights.sum(), 1.0)


def negative_log_likelihoods(logits: Any, ids: Any) -> jax.Array:
    """Of each token but the first, `(n, length - 1)`, in nats."""
    said = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    return -jnp.take_along_axis(said, ids[:, 1:, None], axis=-1)[..., 0]
