"""The next items of an iterable, made in a thread while the present one is worked on."""

from collections.abc import Generator, Iterable
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class _End(NamedTuple):
    """The iterable is over: by itself, or by an error."""

    error: BaseException | None


def prefetch(items: Iterable[T], depth: int = 1) -> Generator[T]:
    """Items in their order, up to `depth` of them made ahead by one daemon thread.

    The thread starts with the first `next`. It ends before this iterator does: when the items are
    over, when making one fails, and when the consumer stops early (`close`, or dropping the
    iterator), which waits for the item in the making. Neither it nor this iterator holds on to an
    item that the consumer has.

    Args:
        items: where the items come from, used by the thread alone; a generator is closed there.
        depth: how many items may be ready or in the making, at least 1, beside the consumer's.

    Yields:
        The items.

    Raises:
        ValueError: when `depth` is below 1.
        BaseException: whatever making an item raised, after all items that came before it.
    """
    if depth < 1:
        raise ValueError(f"prefetch: depth {depth}; expected 1 or more")
    made: SimpleQueue[list[T] | _End] = SimpleQueue()
    room = Semaphore(depth)
    stopped = False

    def make() -> None:
        error = None
        try:
            source = iter(items)
            while room.acquire() and not stopped:
                try:
                    made.put([next(source)])
                except StopIteration:
                    break
            if isinstance(items, Generator):
                items.close()
        except BaseException as caught:  # noqa: BLE001 (raised again in the consumer)
            error = caught
        made.put(_End(error))

    thread = Thread(target=make, name="prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(found := made.get(), _End):
            room.release()
            yield found.pop()
        if found.error is not None:
            raise found.error
    finally:
        stopped = True
        room.release()
        thread.join()
