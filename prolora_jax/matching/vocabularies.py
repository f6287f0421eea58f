"""The tokens of one language model, by what says them: a `tokenizer.json`, or a GGUF file.

Both spell a token in the same way but for a few, and those of GGUF are spelled here as the other
has them: whatever says the tokens, the row of one is the same.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from prolora_jax.errors import BaseModelError, Refusal

_SPACE = "\u2581"
_UNUSED, _USER_DEFINED = 5, 4


class Vocabulary(NamedTuple):
    """Tokens.

    Attributes:
        numbers: of each token, by its spelling.
        byte_level: whether a letter of a spelling stands for a byte, as in GPT-2's: a space is
            written U+0120 there, and in others, if at all, U+2581.
    """

    numbers: dict[str, int]
    byte_level: bool


def says_the_same(token: str) -> bool:
    """Whether a spelling stands for the same text where letters are bytes and where they are not.

    True of printable ASCII, but for SentencePiece's names of bytes, `<0x0A>`.
    """
    is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return token.isascii() and token.isprintable() and not is_byte


_Number = Annotated[int, msgspec.Meta(ge=0)]


class _Model(msgspec.Struct):
    vocab: dict[str, _Number] | list[tuple[str, float]]


class _Added(msgspec.Struct):
    content: str
    id: _Number


class _Tokenizer(msgspec.Struct):
    model: _Model
    added_tokens: list[_Added] | None = None
    pre_tokenizer: Any = None
    decoder: Any = None


def vocabulary_of_json(content: bytes, origin: str) -> Vocabulary:
    """The tokens of a `tokenizer.json`.

    Args:
        content: of the file (BPE, WordPiece, WordLevel, Unigram).
        origin: where it lies, for messages.

    Raises:
        BaseModelError: it has no vocabulary.
    """
    try:
        found = msgspec.json.decode(content, type=_Tokenizer)
        byte_level = _names_bytes(found.pre_tokenizer) or _names_bytes(found.decoder)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as failure:
        raise BaseModelError(
            f"{origin}: tokenizer.json: found no vocabulary ({failure}); expected the numbers of "
            f"its tokens, by which rows of an embedding are told; fetch the file again, or take it "
            f"away",
            code=Refusal.UNREADABLE_BASE,
        ) from None
    held = found.model.vocab
    numbers = held if isinstance(held, dict) else {token: i for i, (token, _) in enumerate(held)}
    added = {token.content: token.id for token in found.added_tokens or ()}
    return Vocabulary(numbers | added, byte_level)


def _names_bytes(step: Any) -> bool:
    """Whether a step of a tokenizer, or one inside of it, writes bytes as letters."""
    if isinstance(step, dict):
        return step.get("type") == "ByteLevel" or any(map(_names_bytes, step.values()))
    return isinstance(step, list) and any(map(_names_bytes, step))


def vocabulary_of_gguf(tokens: Sequence[str], kinds: Sequence[int], model: str) -> Vocabulary:
    """The tokens of a GGUF file.

    Rows that no token belongs to have `[PAD7]` at number 7, and a token that was added by a user
    has spaces where SentencePiece has U+2581. Of a spelling that is there twice the later one is
    what text becomes.

    Args:
        tokens: by number.
        kinds: what gguf says of each (`gguf.TokenType`); none where the file does not say it.
        model: `gpt2` of byte-level tokens, `llama` of SentencePiece's.
    """
    numbers = {}
    for number, token in enumerate(tokens):
        kind = kinds[number] if kinds else _UNUSED
        if not token or (kind == _UNUSED and token == f"[PAD{number}]"):
            continue
        added = kind == _USER_DEFINED and model == "llama"
        numbers[token.replace(" ", _SPACE) if added else token] = number
    return Vocabulary(numbers, model == "gpt2")
