"""One after another, where one that is refused stops no other."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from prolora_jax.errors import AdapterRefused

Todo = TypeVar("Todo")
Done = TypeVar("Done")


def in_turn(
    make: Callable[[Sequence[Todo]], Iterator[Done]], todo: Sequence[Todo]
) -> Iterator[tuple[Todo, Done | AdapterRefused]]:
    """What comes of each, in their order.

    Args:
        make: yields what came of each of some, or raises at the next; it is asked anew for those
            after it, so what they share should be kept.
        todo: all of them.

    Yields:
        Each with what came of it: its refusal, where it was refused.
    """
    rest = list(todo)
    while rest:
        try:
            for done in make(tuple(rest)):
                yield rest.pop(0), done
        except AdapterRefused as refusal:
            yield rest.pop(0), refusal
