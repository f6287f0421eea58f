"""Items made ahead: order, how far ahead, errors, stopping early."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from prolora_jax.engines.prefetch import prefetch

PATIENCE = 60.0  # seconds; only a failing test waits for them


class Counted:
    """Counts up; remembers how far, in which thread, and whether it was closed."""

    def __init__(self, stop: int, fail_at: int = -1):
        self.made, self.closed, self.threads = 0, False, set()
        self._stop, self._fail_at = stop, fail_at

    def items(self) -> Iterator[int]:
        try:
            for i in range(self._stop):
                self.threads.add(threading.current_thread())
                if i == self._fail_at:
                    raise OSError("disk gone")
                self.made = i + 1
                yield i
        finally:
            self.closed = True


def eventually(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not holds() and time.monotonic() < end:
        time.sleep(0.002)
    return holds()


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "prefetch"]


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_all_items_in_order_by_another_thread(depth: int):
    counted = Counted(20)
    assert list(prefetch(counted.items(), depth)) == list(range(20))
    assert len(counted.threads) == 1
    assert threading.current_thread() not in counted.threads
    assert list(prefetch([], depth)) == []
    assert list(prefetch("ab", depth)) == ["a", "b"]
    assert threads() == []


@pytest.mark.parametrize("depth", [1, 3])
def test_runs_ahead_as_far_as_depth_and_no_further(depth: int):
    counted = Counted(20)
    ahead = prefetch(counted.items(), depth)
    assert counted.made == 0
    for taken in (1, 2, 3):
        next(ahead)
        assert eventually(lambda taken=taken: counted.made == taken + depth)
        time.sleep(0.02)
        assert counted.made == taken + depth
    assert list(ahead) == list(range(3, 20))


class Unwilling:
    def __iter__(self) -> Iterator[int]:
        raise TypeError("not before noon")


def test_error_comes_after_the_items_before_it():
    counted, seen = Counted(20, fail_at=3), []
    with pytest.raises(OSError, match="disk gone"):
        seen.extend(prefetch(counted.items(), 2))
    assert seen == [0, 1, 2]
    assert counted.closed
    assert threads() == []
    with pytest.raises(TypeError, match="not before noon"):
        next(prefetch(Unwilling()))  # fails in the thread
    with pytest.raises(ValueError, match="depth 0; expected 1 or more"):
        next(prefetch([1], 0))


def test_consumer_stops_early():
    counted = Counted(20)
    for item in prefetch(counted.items(), 2):
        if item == 4:
            break
    gc.collect()
    assert counted.closed
    assert counted.made <= 4 + 1 + 2
    assert threads() == []

    unused = Counted(3)
    prefetch(unused.items()).__iter__()
    assert (unused.made, threads()) == (0, [])


def test_what_the_consumer_drops_is_gone():
    class Big:
        pass

    ahead = prefetch((Big() for _ in range(3)), 1)
    gone = weakref.ref(next(ahead))
    assert eventually(lambda: gone() is None)
    assert len(list(ahead)) == 2
