"""CLIP's tokenizer, over the library `tokenizers`: the numbers that transformers' gives.

Byte pair encoding of words, of which the last piece says that it is the last (arXiv 1508.07909;
the pattern of words is CLIP's).
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from prolora_jax.errors import BaseModelError, Refusal, UsageError
from prolora_jax.io.base_models.tokenizer_files import TokenizerFiles

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_LAST = "</w>"
# Blocks of Chinese characters, each of which is a word by itself.
_IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class ClipTokenizer:
    """Prompts as numbers.

    Attributes:
        length: tokens of a prompt, with its beginning, its end and what fills it up.
        begin: number of the token that every prompt begins with.
        end: number of the token that it ends with.
        pad: number of the token that fills it up.
        size: how many numbers there are: the highest and one.
    """

    def __init__(self, files: TokenizerFiles, most: int):
        """A tokenizer from its files.

        Args:
            files: of `read_tokenizer`.
            most: tokens that the encoder has places for; the files may say less.

        Raises:
            UsageError: the library `tokenizers` is not installed.
            BaseModelError: the files do not fit each other.
        """
        self.length = min(files.length or most, most)
        self._cleans = files.whole is None
        self._tokenizer = _made(files)
        self._numbers = self._never_split(files)
        self.begin, self.end, self.pad = (
            self._numbers[token] for token in (files.begin, files.end, files.pad)
        )
        self.size = 1 + max(*self._tokenizer.get_vocab().values(), *self._numbers.values())
        longest_first = sorted(self._numbers, key=len, reverse=True)
        self._borders = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def ids(self, text: str) -> list[int]:
        """The numbers of a text, however many, without a beginning and an end."""
        # Halves of a character, which no file can hold, would stop the library.
        text = text.encode("utf-8", "ignore").decode()
        found: list[int] = []
        # Before anything is cleaned, as transformers does it: these may have capitals.
        for piece in self._borders.split(text):
            if piece in self._numbers:
                found.append(self._numbers[piece])
            else:
                piece = cleaned(piece) if self._cleans else piece
                found += self._tokenizer.encode(piece, add_special_tokens=False).ids
        return found

    def framed(self, ids: Sequence[int], length: int | None = None) -> list[int]:
        """Numbers with a beginning and an end, cut off or filled up to `length`."""
        length = length or self.length
        framed = [self.begin, *ids[: length - 2], self.end]
        return framed + [self.pad] * (length - len(framed))

    def __call__(self, prompts: Sequence[str]) -> Int[np.ndarray, "prompts length"]:
        """The prompts as numbers; what is too long is cut off."""
        return np.array([self.framed(self.ids(prompt)) for prompt in prompts], np.int32)

    def _never_split(self, files: TokenizerFiles) -> dict[str, int]:
        """Special and added tokens with their numbers."""
        found = dict(files.added)
        for token, number in files.added.items():
            other = self._tokenizer.id_to_token(number)
            if other not in {None, token}:
                expected = f"another than that of {other!r}"
                raise _misfit(files, f"number {number} for the added token {token!r}", expected)
        for token in (files.begin, files.end, files.unknown, files.pad):
            number = found.get(token, self._tokenizer.token_to_id(token))
            if number is None:
                raise _misfit(files, f"no token {token!r} in the vocabulary", "its special tokens")
            found[token] = number
        return found


def cleaned(text: str) -> str:
    """A text as `CLIPTokenizer` takes it where the library ftfy is not installed.

    Args:
        text: of a prompt.

    Returns:
        In lower case, composed (NFC), without control characters, with one space between words;
        Chinese characters are words.
    """
    kept = []
    for char in text:
        kind, code = unicodedata.category(char), ord(char)
        if char in "\t\n\r" or kind == "Zs":
            kept.append(" ")
        elif kind.startswith("C") or char == _REPLACEMENT:
            continue
        elif any(first <= code <= last for first, last in _IDEOGRAPHS):
            kept.append(f" {char} ")
        else:
            kept.append(char)
    # Word by word: the sigma at the end of a word has a lower case of its own.
    words = unicodedata.normalize("NFC", "".join(kept)).split()
    return " ".join(word.lower() for word in words)


def _made(files: TokenizerFiles) -> Any:
    """The library's tokenizer."""
    try:
        from tokenizers import Regex, Tokenizer
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
    except ImportError:
        raise UsageError(
            "tokenizers: found no such library; expected it, to make pictures; "
            "pip install 'prolora_jax[pipelines]'",
            code=Refusal.MISSING_LIBRARY,
        ) from None
    try:
        if files.whole is None:
            merges = list(files.merges)
            model = BPE(
                dict(files.vocabulary), merges, unk_token=files.unknown, end_of_word_suffix=_LAST
            )
            made = Tokenizer(model)
            words = Split(Regex(_WORDS), behavior="removed", invert=True)
            # Bytes only: its own pattern of words is GPT-2's.
            made.pre_tokenizer = Sequence(
                [words, ByteLevel(add_prefix_space=False, use_regex=False)]
            )
            # In the cleaned text, too, where capitals are gone.
            made.add_special_tokens([t for t in (files.begin, files.end) if t in files.vocabulary])
        else:
            made = Tokenizer.from_str(files.whole)
            made.no_truncation()
            made.no_padding()
    except Exception as failure:  # noqa: BLE001 (the library raises nothing narrower)
        reason = " ".join(str(failure).split())[:200]
        raise _misfit(files, reason, "files that fit each other") from failure
    return made


def _misfit(files: TokenizerFiles, found: str, expected: str) -> BaseModelError:
    return BaseModelError(
        f"{files.origin}: found {found}; expected {expected}; fetch the whole tokenizer again",
        code=Refusal.UNREADABLE_BASE,
    )
