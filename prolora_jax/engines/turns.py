"""A worker's tasks, one after the other: the next is made ready while one is at work."""

from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

Task = TypeVar("Task")


@runtime_checkable
class Stager(Protocol):
    """What does tasks, and can do something for one while another is at work."""

    def stage(self, task: Any) -> Any:
        """Make a task ready, in another thread than that of the tasks.

        Args:
            task: as it was given.

        Returns:
            What is called for instead of it.
        """
        ...


class Turns(Generic[Task]):
    """Tasks that were given and not begun.

    Args:
        act: does the tasks; one that `Stager` has them made ready before.
    """

    def __init__(self, act: Callable[[Any], Any]):
        self._act, self._ready = act, SimpleQueue[Callable[[], Any] | None]()

    def take(self, task: Task) -> None:
        """Make a task ready, and put it behind the others; of one thread, which is no other's."""
        ready: Any = task
        if isinstance(self._act, Stager):
            try:
                ready = self._act.stage(task)
            except Exception:  # noqa: BLE001 (when its turn comes it fails again, and is told)
                ready = task
        self._ready.put(lambda: self._act(ready))

    def end(self) -> None:
        """Say that no more will come."""
        self._ready.put(None)

    def next(self) -> Any:
        """Do the next task, in the thread that does them all; waits for one.

        Returns:
            What came of it.

        Raises:
            EOFError: no more will come.
            Exception: that the task has raised.
        """
        turn = self._ready.get()
        if turn is None:
            raise EOFError
        return turn()
