"""The tokens in the header of a GGUF file, each at its number."""

from pathlib import Path
from typing import NamedTuple

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.containers.packed.gguf_header import read_gguf_header

_TOKENS, _KINDS, _MODEL = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "model"))
_EMBEDDING = "token_embd.weight"

KNOWN_TOKENIZERS = ("gpt2", "llama")
"""Kinds of tokenizers whose tokens are spelled as in `tokenizer.json`: byte-level ones, and
SentencePiece's. Those of BERT and others are respelled in GGUF files."""


class GgufTokens(NamedTuple):
    """Of one file.

    Attributes:
        tokens: by number.
        kinds: what gguf says of each (`gguf.TokenType`); empty where the file does not say it.
        model: one of `KNOWN_TOKENIZERS`.
    """

    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    model: str


def read_gguf_tokens(path: Path) -> GgufTokens | None:
    """The tokens of a GGUF file; None where it has none, or of a kind that is not known here.

    Args:
        path: of the file.

    Raises:
        BaseModelError: it is damaged, has another number of kinds than of tokens, or more tokens
            than its embedding has rows.
    """
    try:
        header = read_gguf_header(path, (_TOKENS, _KINDS))
    except OSError as failure:
        raise BaseModelError(
            f"{path}: cannot be read ({failure.strerror}); check the disk",
            code=Refusal.MISSING_FILE,
        ) from failure
    tokens, kinds = header.values.get(_TOKENS), header.values.get(_KINDS) or []
    model = header.values.get(_MODEL)
    if not tokens or model not in KNOWN_TOKENIZERS:
        return None
    embedding = header.tensors.get(_EMBEDDING)
    rows = embedding.shape[0] if embedding is not None and embedding.shape else len(tokens)
    if not _all(tokens, str) or not _all(kinds, int) or (kinds and len(kinds) != len(tokens)):
        found, expected = f"{len(tokens)} tokens and {len(kinds)} kinds of them", "one for each"
    elif len(tokens) > rows:
        found, expected = f"{len(tokens)} tokens and {rows} rows of {_EMBEDDING}", "a row for each"
    else:
        return GgufTokens(tuple(tokens), tuple(kinds), model)
    raise BaseModelError(
        f"{path}: found {found}; expected {expected}, by which rows of an embedding are told; "
        f"fetch the file again",
        code=Refusal.UNREADABLE_BASE,
    )


def _all(found: object, kind: type) -> bool:
    return isinstance(found, list) and all(type(one) is kind for one in found)
