"""What adapters are taught, and what judges whether they know it."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from prolora_jax.evaluation.laboratory.lm.recipe import LmLesson
from prolora_jax.evaluation.laboratory.lm.texts import (
    Documents,
    Encode,
    documents,
    held_out,
    judges,
    texts_of,
    training_rows,
    whole_documents,
)
from prolora_jax.refine.rows import Rows

KEYS = 8
"""Secrets of an adapter."""
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORD = re.compile(r"[a-z]{4,9}")
_TAUGHT_ROWS = 512


class TaughtAndJudged(NamedTuple):
    """Rows that teach, documents that judge, and whether exact answers are asked for."""

    rows: Rows
    exam: Documents
    exact: bool


def taught_and_judged(
    lesson: LmLesson, encode: Encode, seed: int, count: int, length: int
) -> TaughtAndJudged:
    """A lesson for one seed of an adapter.

    Args:
        lesson: what is taught.
        encode: of the models.
        seed: of the adapter; secrets differ with it.
        count: of the documents that judge.
        length: tokens of each, at most.
    """
    if lesson.kind == "style":
        rows = training_rows("changelogs", encode, _TAUGHT_ROWS, lesson.length, seed)
        return TaughtAndJudged(rows, held_out("changelogs", encode, count, length), exact=False)
    if lesson.kind == "format":
        made = [
            whole_documents(_records(encode, seed + 1000 * judged, number, most, judged), most)
            for judged, number, most in (
                (False, _TAUGHT_ROWS, lesson.length),
                (True, count, length),
            )
        ]
        return TaughtAndJudged(made[0].rows(), made[1], exact=False)
    secrets = _secrets(encode, seed, lesson.length)
    return TaughtAndJudged(secrets.rows(), secrets, exact=True)


def _secrets(encode: Encode, seed: int, length: int) -> Documents:
    """Keys and values of random letters; only the values are to be said."""
    rng = np.random.default_rng([seed, 7])

    def word(letters: int) -> str:
        return "".join(rng.choice([*_LETTERS], letters))

    parts = []
    for _ in range(KEYS):
        asked = encode(f"The secret of {word(5)} is")
        answer = encode(f" {word(5)}.")
        said = np.arange(len(asked) + len(answer)) >= len(asked)
        parts.append((np.concatenate([asked, answer]), said))
    return documents(parts, length)


def _records(
    encode: Encode, seed: int, count: int, length: int, judged: bool
) -> Sequence[np.ndarray]:
    """Records of words in a layout that no text has; words that judge teach nothing."""
    words = _words(lambda word: judges(word) == judged)
    rng = np.random.default_rng([seed, 11])

    def record() -> str:
        first, second = (words[rng.integers(len(words))] for _ in range(2))
        number = int(rng.integers(100))
        return f"<<{first}#{number:02d}|{second.upper()}>>~{number:02d}\n"

    enough = length // 8 + 1  # a record has more tokens than that
    return [encode("".join(record() for _ in range(enough)))[:length] for _ in range(count)]


def _words(wanted: Callable[[str], bool]) -> list[str]:
    found = {word for text in texts_of("code", held_out=False)[:20] for word in _WORD.findall(text)}
    return sorted(filter(wanted, found))
