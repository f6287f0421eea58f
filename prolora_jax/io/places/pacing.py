"""How fast a store is asked, and how long one waits for it.

The rate rises by a little with each answer and is halved when the store says that it is too much
(503, 429): many workers without a word between them come to share what a store gives. Between
tries one waits for a random part of a span that doubles, so that they do not come back together.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from prolora_jax.errors import OutputError, Refusal

Answer = TypeVar("Answer")

FIRST_RATE, LEAST_RATE, MOST_RATE = 200.0, 1.0, 5000.0
"""Requests a second of one process. S3 takes 3,500 writes a second below one prefix."""

PATIENCE = 900.0
"""Seconds without an answer after which a run stops; the same command goes on."""

_RISE = 0.5
_BURST_SECONDS = 0.25
_LONGEST_WAIT = 30.0
_HALVED_AT_MOST_EVERY = 1.0


class StoreBusy(OutputError):
    """Raised when a store gave no answer that could be used, and may give one later.

    Attributes:
        overloaded: whether it said that it was asked too much.
    """

    def __init__(self, message: str, *, overloaded: bool = False):
        super().__init__(message, code=Refusal.CANNOT_WRITE)
        self.overloaded = overloaded


class Pace:
    """How fast one process asks one store; safe to use from several threads.

    Args:
        patience: seconds without an answer before `StoreBusy` is raised.
        clock: seconds that only rise.
        sleep: waits for so many seconds.
        waiting: called before each wait for a store, which may be a sign of life.
    """

    def __init__(
        self,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        waiting: Callable[[], object] | None = None,
    ):
        self.rate = FIRST_RATE
        self._patience, self._clock, self._sleep = patience, clock, sleep
        self._waiting = waiting
        self._lock = threading.Lock()
        self._free_at = clock()
        self._halved = self._free_at - _HALVED_AT_MOST_EVERY

    def patiently(self, ask: Callable[[], Answer]) -> Answer:
        """An answer, however often it has to be asked for.

        Args:
            ask: raises `StoreBusy` when there was no answer.

        Raises:
            StoreBusy: there was none for as long as patience lasts.
        """
        begun, wait = self._clock(), 0.1
        while True:
            self._take_turn()
            try:
                answer = ask()
            except StoreBusy as busy:
                if busy.overloaded:
                    self._slow_down()
                if self._clock() - begun + wait > self._patience:
                    raise
                if self._waiting is not None:
                    self._waiting()
                self._sleep(random.uniform(wait / 2, wait))
                wait = min(2 * wait, _LONGEST_WAIT)
                continue
            with self._lock:
                self.rate = min(self.rate + _RISE, MOST_RATE)
            return answer

    def _take_turn(self) -> None:
        """Wait until the rate allows one more request."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - _BURST_SECONDS) + 1 / self.rate
            ahead = self._free_at - now
        if ahead > 0:
            self._sleep(ahead)

    def _slow_down(self) -> None:
        with self._lock:
            now = self._clock()
            # Many threads hear of one overload: it counts once.
            if now - self._halved >= _HALVED_AT_MOST_EVERY:
                self.rate, self._halved = max(self.rate / 2, LEAST_RATE), now
