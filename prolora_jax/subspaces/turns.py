"""In which order one of several workers takes what all of them could compute.

They know nothing of each other but what the store has. Each does an own part first, the longest
first; then it helps with what is left of the others', the long ones before the short, but in an
order that no other has: two that come to the same place at the same time do not stay together.
"""

import math
import random
from collections.abc import Mapping
from typing import TypeVar

_CLASS = 8
"""Work of one class is within this factor."""

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
        The own part with the longest first; and the others'.
    """
    ordered = sorted(work, key=lambda key: (-work[key], own[key]))
    if share is None:
        return ordered, []
    number, parts = share
    mine = [key for place, key in enumerate(ordered) if place % parts == number % parts]
    held = set(mine)
    rest = [key for key in ordered if key not in held]
    random.shuffle(rest)
    # In few classes: workers meet where one ends, as there is little left of it to choose from.
    return mine, sorted(rest, key=lambda key: -int(math.log(max(work[key], 1.0), _CLASS)))
