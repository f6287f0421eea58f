"""How fast a store is asked, and how long one waits for it.

The rate rises by a little with each answer and is halved when the store says that it is too much
(503, 429): many workers without a word between them come to share what a store gives. Between
tries one waits for a random part of a span that doubles, so that they do not come back together.

A store that has answered will do so again, and is waited for, aloud. One that has not may not be
there at all: that is said within seconds.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from prolora_jax.errors import OutputError, Refusal

Answer = TypeVar("Answer")
_log = logging.getLogger(__name__)

FIRST_RATE, LEAST_RATE, MOST_RATE = 200.0, 1.0, 5000.0
"""Requests a second of one process. S3 takes 3,500 writes a second below one prefix."""

PATIENCE = 900.0
"""Seconds without an answer after which a run stops; the same command goes on."""

FIRST_PATIENCE = 15.0
"""Seconds without the first answer of a store after which it is taken for one that is not there.

A server that is started again is back by then."""

LONGEST_ANSWER = 300.0
"""Seconds that one answer of a store that is there may take: the largest have gigabytes."""

TELL_AFTER = 20.0
"""Seconds without an answer after which it is said that a store is waited for."""

_RISE = 0.5
_BURST_SECONDS = 0.25
_LONGEST_WAIT = 30.0
_HALVED_AT_MOST_EVERY = 1.0


class StoreRefused(OutputError):
    """Raised when a store refuses what was asked, and would do so again.

    Attributes:
        forbidden: whether it may be for who asks.
    """

    def __init__(self, message: str, *, forbidden: bool = False):
        super().__init__(message, code=Refusal.CANNOT_WRITE)
        self.forbidden = forbidden


class NoStore(StoreRefused):
    """Raised at the start: a store that has not answered yet does not, or refuses what is asked."""

    exit_code = 2


class StoreBusy(OutputError):
    """Raised when a store gave no answer that could be used, and may give one later.

    Attributes:
        place: which store, in words, without credentials.
        reason: what came instead of an answer.
        reached: whether that has come from a server.
        overloaded: whether it said that it was asked too much.
    """

    def __init__(
        self, message: str, place: str, reason: str, *, reached: bool, overloaded: bool = False
    ):
        super().__init__(message, code=Refusal.CANNOT_WRITE)
        self.place, self.reason = place, reason
        self.reached, self.overloaded = reached, overloaded


class Pace:
    """How fast one process asks one store; safe to use from several threads.

    Args:
        patience: seconds without an answer before `StoreBusy` is raised.
        clock: seconds that only rise.
        sleep: waits for so many seconds.
        waiting: called before each wait for a store, which may be a sign of life. Whoever gives
            one works for another process that has had answers: it is patient from its start, where
            others are told within `FIRST_PATIENCE` of a store that does not answer at all.
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
        self._waiting, self._told = waiting, False
        self._answered = waiting is not None
        self._lock = threading.Lock()
        self._free_at = clock()
        self._halved = self._free_at - _HALVED_AT_MOST_EVERY

    @property
    def longest_answer(self) -> float:
        """Seconds without a byte after which a request is given up.

        A server may take what it is sent and never say a word, as one does that nothing is behind.
        """
        return LONGEST_ANSWER if self._answered else FIRST_PATIENCE

    def patiently(self, ask: Callable[[], Answer]) -> Answer:
        """An answer, however often it has to be asked for.

        Args:
            ask: raises `StoreBusy` when there was no answer, and `StoreRefused` for a plain no.

        Raises:
            NoStore: the store has not answered so far, and seems not to be there, or refuses.
            StoreRefused: it refuses.
            StoreBusy: there was no answer for as long as patience lasts.
            FileNotFoundError: what was asked for is not there, which is an answer.
        """
        begun, wait = self._clock(), 0.1
        while True:
            self._take_turn()
            try:
                answer = ask()
            except StoreBusy as busy:
                if busy.overloaded:
                    self._slow_down()
                waited = self._clock() - begun
                if not (self._answered or busy.reached) and waited + wait > FIRST_PATIENCE:
                    raise NoStore(_none_there(busy)) from None
                if waited + wait > self._patience:
                    raise
                self._tell(busy, waited)
                if self._waiting is not None:
                    self._waiting()
                self._sleep(random.uniform(wait / 2, wait))
                wait = min(2 * wait, _LONGEST_WAIT)
                continue
            except StoreRefused as refused:
                if not self._answered:
                    raise NoStore(str(refused), forbidden=refused.forbidden) from None
                raise
            except FileNotFoundError:
                self._answered = True
                raise
            with self._lock:
                self.rate = min(self.rate + _RISE, MOST_RATE)
            self._answered, self._told = True, False
            return answer

    def _tell(self, busy: StoreBusy, waited: float) -> None:
        """Say once, of all that wait for it, that a store is waited for."""
        with self._lock:
            if self._told or waited < TELL_AFTER:
                return
            self._told = True
        now = time.time()
        since, until = (
            time.strftime("%H:%M:%S", time.localtime(now + seconds))
            for seconds in (-waited, self._patience - waited)
        )
        _log.warning(
            "%s: no answer since %s (%s); it is asked again until %s, then this ends",
            *(busy.place, since, busy.reason, until),
        )

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


def _none_there(busy: StoreBusy) -> str:
    return (
        f"{busy.place}: found no store that answers ({busy.reason}); expected one; check that it "
        "runs, and its address: AWS_ENDPOINT_URL for s3://, STORAGE_EMULATOR_HOST for gs://"
    )
