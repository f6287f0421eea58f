"""Which worker gets which inputs, and what the death of one means; knows no process and no place.

Chunks are large at first, and small when little is left, so that no worker ends alone with many.
What was in a chunk whose worker died is tried one by one, behind all others; who has ended `TRIES`
workers alone is to blame, and is set apart. A worker that is ended by others (a preempted host)
costs its inputs nothing: who hands them back says so.
"""

import random
from collections import Counter, deque
from collections.abc import Collection, Sequence
from math import ceil

from prolora_jax.catalog.fleet.inputs import Unit

Chunk = tuple[Unit, ...]

MOST = 16
"""Units of a chunk: some seconds of work, and a batch of the engine at ranks of 32."""

TRIES = 3

LOSSES = 20
"""Workers that may be lost with one input, before it is thought to be more than chance."""

_TOGETHER = 3
"""Losses after which an input is tried alone."""


class Dispatch:
    """The work of one run.

    Args:
        units: to be done.
        workers: how many share them; more may come.
        most: units of a chunk.
    """

    def __init__(self, units: Sequence[Unit], workers: int, most: int = MOST):
        self._waiting = deque(units)
        self._alone: deque[Unit] = deque()
        self._apart = set[str]()
        self.workers, self._most = workers, most
        self._deaths: Counter[str] = Counter()
        self._troubles: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()

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
            size = ceil(len(self._waiting) / (2 * self.workers))
            count = 1 if one else max(1, min(size, self._most))
            return tuple(self._waiting.popleft() for _ in range(count))
        return (self._alone.popleft(),) if self._alone else None

    def ahead(self) -> Chunk | None:
        """What a worker may go on with; None where what is left is for who will have nothing."""
        return self.next() if len(self._waiting) >= self.workers else None

    def is_apart(self, chunk: Chunk) -> bool:
        """Whether a chunk is an input that may end its worker, which then has nothing else."""
        return any(unit[0].name in self._apart for unit in chunk)

    def probe(self) -> Chunk | None:
        """One unit from anywhere: what is behind one that could not be done may be like it."""
        if self._waiting:
            place = random.randrange(len(self._waiting))
            unit = self._waiting[place]
            del self._waiting[place]
            return (unit,)
        return self.next(one=True)

    def hand_back(self, units: Collection[Unit]) -> None:
        """Inputs that were not done, and are not to blame for it."""
        self._waiting.extend(units)

    def lost(self, units: Collection[Unit]) -> list[Unit]:
        """A worker was lost with its host; what it had is not to blame, and is done again.

        Args:
            units: of its chunk, what has no receipt.

        Returns:
            Units that were lost `LOSSES` times; they are not given to any other.
        """
        spent = []
        for unit in units:
            self._losses[unit[0].name] += 1
            losses = self._losses[unit[0].name]
            if losses >= LOSSES:
                spent.append(unit)
            elif losses < _TOGETHER:
                self._waiting.append(unit)
            else:
                self._set_apart([unit])
        return spent

    def troubled(self, units: Collection[Unit]) -> list[Unit]:
        """Inputs that a host could not do; each is tried again by itself, behind all others.

        Args:
            units: of a chunk.

        Returns:
            Those that could not be done `TRIES` times; they are not given to any other.
        """
        return self._again(units, self._troubles)

    def died(self, chunk: Chunk, left: Collection[Unit], *, more: bool = False) -> list[Unit]:
        """A worker has ended over a chunk.

        Args:
            chunk: what it had begun.
            left: of that, what has no receipt.
            more: whether it had something else, too, that it had not begun.

        Returns:
            Units that have ended `TRIES` workers alone; they are not given to any other.
        """
        if more or len(chunk) > 1:
            self._set_apart(left)
            return []
        return self._again(left, self._deaths)

    def _again(self, units: Collection[Unit], tries: Counter[str]) -> list[Unit]:
        """Have units tried again alone, but for those that have no tries left."""
        tries.update(unit[0].name for unit in units)
        spent = [unit for unit in units if tries[unit[0].name] >= TRIES]
        self._set_apart([unit for unit in units if unit not in spent])
        return spent

    def _set_apart(self, units: Collection[Unit]) -> None:
        self._apart.update(unit[0].name for unit in units)
        self._alone.extend(units)
