"""In which order one of several workers takes what all of them could compute.

They know nothing of each other but what the store has. Each does an own part first, the longest
first; then it helps with what is left of the others', in an order that no other has: two that come
to the same place at the same time do not stay together.
"""

import random
from collections.abc import Mapping
from typing import TypeVar

Key = TypeVar("Key")
Share = tuple[int, int]
"""Number of a part, from 0, and how many parts there are."""


def turns(
    work: Mapping[Key, float], share: Share | None, own: Mapping[Key, str]
) -> tuple[list[Key], list[Key]]:
    """What a worker does first, and what it then does where nobody has.

    Args:
        work: how much each takes; the same in all workers, whatever is done already.
        share: of this worker; None: there is no other.
        own: a name for each, the same in all workers.

    Returns:
        The own part, and the others'; each with the longest first.
    """
    ordered = sorted(work, key=lambda key: (-work[key], own[key]))
    if share is None:
        return ordered, []
    number, parts = share
    mine = [key for place, key in enumerate(ordered) if place % parts == number % parts]
    held = set(mine)
    rest = [key for key in ordered if key not in held]
    random.shuffle(rest)
    return mine, sorted(rest, key=lambda key: -work[key])
