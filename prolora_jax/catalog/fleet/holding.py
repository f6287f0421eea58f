"""Which worker has which chunks: what it is at, and what it goes on with; knows no process.

Who gives out work lets a worker have `IN_FLIGHT` chunks, of which it begins the first: it fetches
inputs of the next while it computes, and asks nobody when it is done. What a worker has not begun
is not to blame for its end.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

from prolora_jax.catalog.fleet.dispatch import Chunk

IN_FLIGHT = 2

SLOW = 60.0
"""Seconds after which a chunk may be slow, and not large."""


class Held(NamedTuple):
    """A chunk that a worker has.

    Attributes:
        chunk: empty when another has done it.
        strikes: of the worker, when it was given.
        shared: whether another has got a second copy.
    """

    chunk: Chunk
    strikes: int = 0
    shared: bool = False


class Holding:
    """What all workers have, each in the order in which it does it."""

    def __init__(self):
        self._held: dict[int, list[Held]] = {}
        self._since: dict[int, float] = {}

    def __contains__(self, worker: int) -> bool:
        return worker in self._held

    def __len__(self) -> int:
        return len(self._held)

    @property
    def at_work(self) -> bool:
        """Whether any worker has something that nobody has done yet."""
        return any(held.chunk for every in self._held.values() for held in every)

    def add(self, worker: int, chunk: Chunk, strikes: int = 0) -> None:
        """Note what a worker was given, behind what it has."""
        self._since.setdefault(worker, time.monotonic())
        self._held.setdefault(worker, []).append(Held(chunk, strikes))

    def with_room(self) -> Iterator[tuple[int, Chunk]]:
        """Workers that may go on with one chunk more, and what they are at."""
        for worker, every in list(self._held.items()):
            if len(every) < IN_FLIGHT:
                yield worker, every[0].chunk

    def take(self, worker: int, *, done: bool = False) -> Held:
        """What a worker was at, which it is no more: it has begun what is behind it.

        Args:
            worker: that has it no more.
            done: whether it has done all of it.

        Returns:
            Of a chunk that another has, too, which goes on or comes too late, an empty one.
        """
        every = self._held[worker]
        held = every.pop(0)
        self._since[worker] = time.monotonic()
        if not every:
            del self._held[worker], self._since[worker]
        return held if self._forget(held.chunk, done=done) else held._replace(chunk=())

    def unbegun(self, worker: int) -> list[Chunk]:
        """What a worker had behind what it was at, which is taken from it; others' not among it."""
        every = self._held.pop(worker, [])
        self._since.pop(worker, None)
        return [held.chunk for held in every if self._forget(held.chunk, done=False)]

    def _forget(self, chunk: Chunk, *, done: bool) -> bool:
        """Whether a chunk that a worker has no more is nobody else's; what is done is no one's."""
        copies = [
            (every, place)
            for every in self._held.values()
            for place, held in enumerate(every)
            if chunk and held.chunk is chunk
        ]
        for every, place in copies if done else ():
            every[place] = Held(())
        return done or not copies

    def second_copy(self) -> Chunk | None:
        """A chunk for a worker that has nothing to do, and no other can be given.

        What another has not begun comes first, then what it has been at for long. Who finishes
        first has done it: outputs are made if they are not there.
        """
        now = time.monotonic()
        found = [
            (place > 0, now - self._since[worker], worker, place)
            for worker, every in self._held.items()
            for place, held in enumerate(every)
            if held.chunk and not held.shared and (place or now - self._since[worker] > SLOW)
        ]
        if not found:
            return None
        *_, worker, place = max(found)
        held = self._held[worker][place]
        self._held[worker][place] = held._replace(shared=True)
        return held.chunk
