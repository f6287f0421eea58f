"""Two language models of which one is to learn from the other's texts: they must share tokens."""

from typing import NoReturn

from prolora_jax.errors import BaseModelError, Refusal
from prolora_jax.io.base_models.checkpoint import BaseModel
from prolora_jax.matching.tokens import token_map
from prolora_jax.migration.tokens import vocabulary_of


def require_one_tokenizer(source: BaseModel, target: BaseModel, sizes: tuple[int, int]) -> int:
    """Refuse two models that number tokens otherwise.

    Args:
        source: a language model.
        target: likewise.
        sizes: of both vocabularies, padding included.

    Returns:
        Number of tokens that both know.

    Raises:
        BaseModelError: a token has two numbers, nothing says that it has one, or a tokenizer is
            damaged.
    """
    ours, theirs = vocabulary_of(source), vocabulary_of(target)
    if ours is None or theirs is None:
        if sizes[0] == sizes[1]:
            return sizes[0]
        lacking = source if ours is None else target
        found = f"{sizes[0]} and {sizes[1]} tokens"
        _refuse(source, target, found, f"put tokenizer.json into {lacking.location}")
    both = token_map(ours, theirs).numbers
    other = next((t for t, n in ours.numbers.items() if both.get(n, n) != n), None)
    if other is not None:
        number = ours.numbers[other]
        found = f"token {other!r} as {number} and as {both[number]}"
        _refuse(source, target, found, "use `prolora migrate`")
    shared = max(both, default=-1) + 1
    return min(shared, *sizes)


def _refuse(source: BaseModel, target: BaseModel, found: str, remedy: str) -> NoReturn:
    raise BaseModelError(
        f"{source.location} and {target.location}: found {found}; expected one tokenizer for both: "
        f"what one writes is nothing to the other, so nothing can be learned from it; {remedy}",
        code=Refusal.WRONG_BASE,
    )
