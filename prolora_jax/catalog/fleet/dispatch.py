"""Which worker gets which inputs, and what the death of one means; knows no process and no place.

Chunks are large at first, and small when little is left, so that no worker ends alone with many.
What was in a chunk whose worker died is tried one by one, behind all others; who has ended `TRIES`
workers alone is to blame, and is set apart. A worker that is ended by others (a preempted host)
costs its inputs nothing: who hands them back says so.
"""

from collections import Counter, deque
from collections.abc import Collection, Sequence
from math import ceil

from prolora_jax.catalog.fleet.inputs import Unit

Chunk = tuple[Unit, ...]

MOST = 16
"""Units of a chunk: some seconds of work, and a batch of the engine at ranks of 32."""

TRIES = 3


class Dispatch:
    """The work of one run.

    Args:
        units: to be done.
        workers: how many share them.
        most: units of a chunk.
    """

    def __init__(self, units: Sequence[Unit], workers: int, most: int = MOST):
        self._waiting = deque(units)
        self._alone: deque[Unit] = deque()
        self._workers, self._most = workers, most
        self._deaths: Counter[str] = Counter()

    @property
    def left(self) -> int:
        """Units that no worker has."""
        return len(self._waiting) + len(self._alone)

    def next(self, *, one: bool = False) -> Chunk | None:
        """What a worker that is free is to do; None when there is nothing now.

        Args:
            one: whether it is to be a single unit, whatever is left.
        """
        if self._waiting:
            size = ceil(len(self._waiting) / (2 * self._workers))
            count = 1 if one else max(1, min(size, self._most))
            return tuple(self._waiting.popleft() for _ in range(count))
        return (self._alone.popleft(),) if self._alone else None

    def hand_back(self, units: Collection[Unit]) -> None:
        """Inputs that were not done, and are not to blame for it."""
        self._waiting.extend(units)

    def died(self, chunk: Chunk, left: Collection[Unit]) -> list[Unit]:
        """A worker has ended over a chunk.

        Args:
            chunk: what it was given.
            left: of that, what has no receipt.

        Returns:
            Units that have ended `TRIES` workers alone; they are not given to any other.
        """
        if len(chunk) > 1:
            self._alone.extend(left)
            return []
        blamed = []
        for unit in left:
            self._deaths[unit[0].name] += 1
            if self._deaths[unit[0].name] < TRIES:
                self._alone.append(unit)
            else:
                blamed.append(unit)
        return blamed
