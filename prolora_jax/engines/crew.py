"""A crew: worker processes that keep what they have opened, and may die without their employer.

Each worker is started with a setup, says when it is ready, and then does one task after another, in
the order in which they were given; what it is given meanwhile it makes ready (`turns`).
What becomes of a worker is told, never raised: who gives out the work decides what that means.
"""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from prolora_jax.engines.processes import end_with, one_thread_each
from prolora_jax.engines.turns import Turns
from prolora_jax.errors import ProloraError, Refusal

Task = TypeVar("Task")
_Given = TypeVar("_Given", contravariant=True)

Say = Callable[[], None]
"""A sign of life, of a worker that is at work."""

Start = Callable[[Any, threading.Event, Say], Callable[[Task], Any]]
"""Makes of a setup what does the tasks, in the worker (see `turns.Stager`, too)."""

_SIGN_SECONDS = 1.0
"""How often a sign of life is sent on: there may be many thousands of them."""

_END_SECONDS = 5.0


class Event(NamedTuple):
    """What was heard of a worker.

    Attributes:
        worker: its number.
        kind: `ready`; `done` with a result; `failed` with an error; `ended`, with words that say
            how; `lost`, with words, where something else than its task has ended it for sure.
        told: what belongs to the kind.
    """

    worker: int
    kind: Literal["ready", "done", "failed", "ended", "lost"]
    told: Any = None


@runtime_checkable
class AnyCrew(Protocol[_Given]):
    """What who gives out work needs of a crew, wherever its workers are."""

    @property
    def workers(self) -> list[int]:
        """Numbers of the workers that have not ended, as far as was heard."""
        ...

    def fill(self) -> None:
        """Have as many workers as there shall be: who has ended is replaced."""
        ...

    def give(self, worker: int, task: _Given) -> None:
        """Give a worker that is ready a task; of one that has died meanwhile `events` tells.

        One that has some does it behind them, and begins it by itself.
        """
        ...

    def silent(self, worker: int) -> float:
        """Seconds since something was heard of a worker, or given to it when it had nothing."""
        ...

    def events(self, seconds: float) -> list[Event]:
        """What was heard, at the latest after so many seconds."""
        ...

    def kill(self, worker: int) -> None:
        """End a worker at once; `events` tells that it has ended."""
        ...

    def dismiss(self, worker: int) -> None:
        """The same, of one that is not to be replaced."""
        ...

    def hurry(self) -> None:
        """Ask all workers to end their tasks early, with what they have done."""
        ...

    def close(self) -> None:
        """End all workers at once."""
        ...


class _Giver:
    """Sends tasks in a thread of its own.

    A worker that is stopped, or fetches what it was given before, takes none: who gives out work
    would wait for it, and so would all others.
    """

    def __init__(self, connection: Connection):
        self._connection, self._tasks = connection, SimpleQueue[memoryview | None]()
        self._thread = threading.Thread(target=self._send, name="giver", daemon=True)
        self._thread.start()

    def give(self, task: Any) -> None:
        self._tasks.put(ForkingPickler.dumps(task))

    def end(self) -> None:
        """Send no more, to a process that has ended."""
        self._tasks.put(None)
        self._thread.join(_END_SECONDS)

    def _send(self) -> None:
        with suppress(OSError):  # the worker has ended, which `events` tells
            while (task := self._tasks.get()) is not None:
                self._connection.send_bytes(task)


class _Member(NamedTuple):
    process: BaseProcess
    connection: Connection
    giver: _Giver


class Crew(Generic[Task]):
    """Worker processes.

    Args:
        start: of a module's top level; called in each worker with `setup`, an event that is set
            when the worker is to end its task early, and a function for signs of life. What it
            returns does the tasks.
        setup: for `start`; travels by pickle.
        size: workers.
    """

    def __init__(self, start: Start[Task], setup: Any, size: int):
        self._start, self._setup, self._size = start, setup, size
        self._members: dict[int, _Member] = {}
        self._signs: dict[int, float] = {}
        self._tasks = Counter[int]()
        self._next = 0

    @property
    def workers(self) -> list[int]:
        """Numbers of the workers that have not ended, as far as was heard."""
        return list(self._members)

    def fill(self) -> None:
        """Have as many workers as there shall be: who has ended is replaced."""
        while len(self._members) < self._size:
            self._add()

    def _add(self) -> None:
        context = get_context("spawn")
        here, there = context.Pipe()
        given = there, os.getpid(), self._start, self._setup
        process = context.Process(target=_work, args=given, daemon=True)
        with one_thread_each():
            process.start()
        there.close()  # it is the worker's: when that ends, nothing holds the other side open
        number, self._next = self._next, self._next + 1
        self._members[number] = _Member(process, here, _Giver(here))
        self._signs[number] = time.monotonic()

    def give(self, worker: int, task: Task) -> None:
        """Give a worker that is ready a task (see `AnyCrew`)."""
        if not self._tasks[worker]:  # else its silence is that of what it is at
            self._signs[worker] = time.monotonic()
        self._tasks[worker] += 1
        self._members[worker].giver.give(task)

    def silent(self, worker: int) -> float:
        """Seconds since something was heard of a worker, or given to it when it had nothing."""
        return time.monotonic() - self._signs[worker]

    def events(self, seconds: float) -> list[Event]:
        """What was heard, at the latest after so many seconds; signs of life are not told.

        Args:
            seconds: to wait for something to be heard.
        """
        numbers = {member.connection: number for number, member in self._members.items()}
        heard = []
        for connection in wait(list(numbers), seconds):
            assert isinstance(connection, Connection)
            event = self._event(numbers[connection], connection)
            if event is not None:
                heard.append(event)
        return heard

    def _event(self, worker: int, connection: Connection) -> Event | None:
        self._signs[worker] = time.monotonic()
        try:
            kind, told = connection.recv()
        except (EOFError, OSError):
            return Event(worker, "ended", _how(self._bury(worker)))
        if kind == "sign":
            return None
        if kind != "ready":
            self._tasks[worker] -= 1
        return Event(worker, kind, told)

    def _bury(self, worker: int) -> int | None:
        member = self._members.pop(worker)
        del self._tasks[worker]
        member.process.join(_END_SECONDS)
        if member.process.exitcode is None:  # it has closed its side and goes on
            member.process.kill()
            member.process.join()
        member.giver.end()
        member.connection.close()
        return member.process.exitcode

    def kill(self, worker: int) -> None:
        """End a worker at once; `events` tells that it has ended."""
        self._members[worker].process.kill()

    def dismiss(self, worker: int) -> None:
        """The same, of one that is not to be replaced."""
        self._size -= 1
        self.kill(worker)

    def hurry(self) -> None:
        """Ask all workers to end their tasks early, with what they have done."""
        for member in self._members.values():
            if member.process.pid is not None and member.process.is_alive():
                os.kill(member.process.pid, signal.SIGTERM)

    def close(self) -> None:
        """End all workers at once."""
        for member in self._members.values():
            member.process.kill()
        for number in self.workers:
            self._bury(number)


def _work(
    connection: Connection,
    employer: int,
    start: Start[Any],
    setup: Any,
) -> None:
    """A worker's life."""
    end_with(employer)
    hurried, lock, last = threading.Event(), threading.Lock(), [time.monotonic()]
    signal.signal(signal.SIGTERM, lambda *_: hurried.set())
    # Ctrl-C is heard by all processes of a terminal; the employer ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def sign() -> None:
        with lock:
            if time.monotonic() - last[0] > _SIGN_SECONDS:
                last[0] = time.monotonic()
                connection.send(("sign", None))

    def send(kind: str, told: Any = None) -> None:
        with lock:
            connection.send((kind, told))

    try:
        act = start(setup, hurried, sign)
    except Exception as error:  # noqa: BLE001 (it is told)
        send("failed", as_told(error))
        return
    turns = Turns(act)
    threading.Thread(target=_take, args=(connection, turns), name="tasks", daemon=True).start()
    send("ready")
    while True:
        try:
            told = turns.next()
        except EOFError:
            return
        except Exception as error:  # noqa: BLE001 (it is told)
            send("failed", as_told(error))
        else:
            send("done", told)


def _take(connection: Connection, turns: Turns[Any]) -> None:
    """Take what is given as it comes, also while a task is at work."""
    try:
        while True:
            turns.take(connection.recv())
    except (EOFError, OSError):
        turns.end()


def as_told(error: Exception) -> ProloraError:
    """An error that can travel."""
    if isinstance(error, ProloraError):
        return error
    return ProloraError(
        f"internal error, please report it: {type(error).__name__}: {error}", code=Refusal.INTERNAL
    )


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = next((one.name for one in signal.Signals if one.value == -code), str(-code))
    return f"signal {name}" + ", perhaps for want of memory" * (code == -signal.SIGKILL)
