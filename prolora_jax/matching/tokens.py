"""Which row of a source's embedding and which of a target's are of one token.

Rows of an embedding and of a head stand for tokens, and a token's number is its vocabulary's own:
two of equal size may give all of them other numbers. What is the same is the token, as a string.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Int

from prolora_jax.architectures.llm.layouts import has_rows_of_tokens
from prolora_jax.architectures.spec import BaseModelSpec
from prolora_jax.matching.matching import Matching
from prolora_jax.matching.vocabularies import Vocabulary, says_the_same


@dataclass(frozen=True)
class TokenMap:
    """The tokens of two vocabularies.

    Attributes:
        numbers: the target's number by the source's, of the tokens that both have.
        missing: tokens of the source that the target has not, in the order of their numbers.
    """

    numbers: Mapping[int, int] = field(repr=False)
    missing: tuple[str, ...] = field(repr=False)

    @cached_property
    def keeps_numbers(self) -> bool:
        """Whether each token of the source has the same number in the target."""
        return not self.missing and all(own == other for own, other in self.numbers.items())

    def number(self, row: int) -> int | None:
        """The target's number of the token with this number in the source; None of none.

        Where all tokens keep their numbers, rows beyond the last token keep theirs, too.
        """
        return row if self.keeps_numbers else self.numbers.get(row)

    def rows(self, source: int, target: int) -> Int[np.ndarray, " target"]:
        """The source's row for each row of the target; -1 where it has none.

        Args:
            source: rows of the source's embedding.
            target: rows of the target's.
        """
        found = np.full(target, -1)
        for row in range(source):
            number = self.number(row)
            if number is not None and number < target:
                found[number] = row
        return found

    def moves(self, source: BaseModelSpec, target: BaseModelSpec, path: str) -> bool:
        """Whether a layer's rows have to be found by their tokens.

        Args:
            source: the source base model.
            target: the target base model.
            path: of the layer, in both.
        """
        if not has_rows_of_tokens(path) or not _fit(source, target, path):
            return False
        return source.modules[path].shape != target.modules[path].shape or not self.keeps_numbers


def token_map(source: Vocabulary, target: Vocabulary) -> TokenMap:
    """The tokens of two vocabularies.

    Where one is of bytes and the other is not, only tokens that say the same in both are taken for
    the same: `Ġthe` and `▁the` are written in unlike ways, and `é` is a byte in one and a letter in
    the other.
    """
    ordered = sorted(source.numbers, key=source.numbers.__getitem__)
    alike = source.byte_level == target.byte_level
    common = [t for t in ordered if t in target.numbers and (alike or says_the_same(t))]
    both = {source.numbers[token]: target.numbers[token] for token in common}
    found = {*common}
    return TokenMap(both, tuple(token for token in ordered if token not in found))


def unlike_vocabularies(source: BaseModelSpec, target: BaseModelSpec) -> Iterable[str]:
    """Layers whose rows are of tokens, and of which the target has more or fewer."""
    for path, module in target.modules.items():
        named = has_rows_of_tokens(path) and _fit(source, target, path)
        if named and source.modules[path].shape != module.shape:
            yield path


def with_token_layers(matching: Matching, source: BaseModelSpec, target: BaseModelSpec) -> Matching:
    """A matching of two base models whose tokens are known.

    Args:
        matching: of modules of equal shape.
        source: the source base model.
        target: the target base model.

    Returns:
        The same with embeddings and heads that have another number of rows.
    """
    pairs = {path: path for path in unlike_vocabularies(source, target)} | dict(matching.pairs)
    return replace(matching, pairs={path: pairs[path] for path in target.modules if path in pairs})


def _fit(source: BaseModelSpec, target: BaseModelSpec, path: str) -> bool:
    """Whether both have a layer, in the same width."""
    a, b = source.modules.get(path), target.modules.get(path)
    return a is not None and b is not None and a.shape[1:] == b.shape[1:]
