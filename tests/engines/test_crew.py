"""Tasks of a worker in their order, the next made ready meanwhile; whose signs of life count."""

import threading
from collections.abc import Iterator
from multiprocessing import get_context

import pytest

from prolora_jax.engines.crew import Crew, _Giver, _Member, _take
from prolora_jax.engines.turns import Turns


class Act:
    """Does a task when it is told to, and has the next staged before that."""

    def __init__(self):
        self.staged, self.go = [], threading.Semaphore(0)

    def stage(self, task: str) -> str:
        self.staged.append(task)
        self.go.release()
        if task == "bad":
            raise RuntimeError("cannot be staged")
        return f"{task}, ready"

    def __call__(self, task: str) -> str:
        if task.startswith("first"):
            assert self.go.acquire(timeout=60)  # its own
            assert self.go.acquire(timeout=60)  # the next one's, while this is at work
        return task


@pytest.fixture
def ends() -> Iterator[tuple]:
    here, there = get_context("spawn").Pipe()
    yield here, there
    here.close()
    there.close()


def test_the_next_task_is_staged_while_one_is_at_work(ends: tuple):
    """What cannot be staged is given on as it came: it fails in its turn, or does not."""
    here, there = ends
    act = Act()
    turns = Turns(act)
    thread = threading.Thread(target=_take, args=(there, turns), daemon=True)
    thread.start()
    for task in ("first", "second", "bad"):
        here.send(task)
    assert [turns.next() for _ in range(3)] == ["first, ready", "second, ready", "bad"]
    assert act.staged == ["first", "second", "bad"]
    here.close()
    with pytest.raises(EOFError):
        turns.next()
    thread.join()


def test_without_staging_tasks_are_as_they_came():
    turns = Turns[str](str.upper)
    for task in ("a", "b"):
        turns.take(task)
    assert [turns.next(), turns.next()] == ["A", "B"]


def test_what_is_given_ahead_is_no_sign_of_life(ends: tuple):
    """A time limit is that of what a worker is at; what follows has its own from its beginning."""
    here, there = ends
    crew = Crew[str](lambda *_: lambda _: None, None, 0)
    crew._members[0] = _Member(get_context("spawn").Process(), here, _Giver(here))
    crew._signs[0] = -1000.0
    crew.give(0, "first")
    crew._signs[0] -= 100
    before = crew.silent(0)
    assert before >= 100
    crew.give(0, "second")
    assert crew.silent(0) >= before
    there.send(("done", None))
    assert [event.kind for event in crew.events(0)] == ["done"]
    assert crew.silent(0) < 100
    crew._signs[0] -= 100
    crew.give(0, "third")
    assert crew.silent(0) >= 100  # the second is at work


def test_who_takes_no_tasks_holds_up_nobody(ends: tuple):
    """A worker is stopped, or fetches what it has: a task larger than what a pipe holds waits."""
    here, there = ends
    crew, task = Crew[bytes](lambda *_: lambda _: None, None, 0), bytes(2**22)
    crew._members[0] = _Member(get_context("spawn").Process(), here, _Giver(here))
    crew._signs[0] = 0.0
    given = threading.Thread(target=crew.give, args=(0, task), daemon=True)
    given.start()
    given.join(10)
    assert not given.is_alive()
    assert there.recv() == task
