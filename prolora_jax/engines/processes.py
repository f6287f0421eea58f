"""Worker processes for NumPy work: one BLAS thread each, over independent tasks."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

from prolora_jax.errors import ProloraError, Refusal

Task = TypeVar("Task")
Result = TypeVar("Result")
_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""How often a worker looks whether its parent is still there."""


def run_in_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[Task, Result]]:
    """Results in the order in which they are ready.

    When the system ends a worker, which it does to the largest where memory runs out, what is not
    done yet is tried once more by half as many.

    Args:
        function: of a module's top level, so that a spawned process can import it.
        tasks: started in this order; give the largest first.
        workers: processes. A script that asks for them needs the usual
            `if __name__ == "__main__":`. They end when this process does, however it does.

    Yields:
        (task, its result), each once.

    Raises:
        ProloraError: a worker was ended again.
    """
    left = dict(enumerate(tasks))
    for count in (workers, max(workers // 2, 1)):
        try:
            yield from _run(function, left, count)
            return
        except BrokenProcessPool:
            _log.warning(
                "a worker process was ended by the system, perhaps for want of memory; %d of %d "
                "tasks are tried once more, by fewer workers",
                len(left),
                len(tasks),
            )
    raise ProloraError(
        f"{len(left)} of {len(tasks)} tasks: a worker process was ended by the system twice, "
        "perhaps for want of memory; expected one that finishes; use fewer (--workers 1), or a "
        "machine with more memory. What was done is kept. (A script that asks for workers needs "
        '`if __name__ == "__main__":`.)',
        code=Refusal.WORKER_ENDED,
    )


def _run(
    function: Callable[[Task], Result], left: dict[int, Task], workers: int
) -> Iterator[tuple[Task, Result]]:
    """Results of tasks, which are taken out of `left` as they are done."""
    spawn = get_context("spawn")
    with (
        one_thread_each(),
        ProcessPoolExecutor(workers, spawn, end_with, (os.getpid(),)) as pool,
    ):
        try:
            waiting = {pool.submit(function, task): place for place, task in left.items()}
            for future in as_completed(waiting):
                result = future.result()
                yield left.pop(waiting.pop(future)), result
        finally:
            pool.shutdown(cancel_futures=True)


def end_with(parent: int) -> None:
    """Have this process end when its parent is gone, which may have been killed and told nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)  # not waiting for the work, which nobody will fetch

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Environment of child processes: BLAS threads of several processes would fight for cores."""
    names = [f"{library}_NUM_THREADS" for library in ("OPENBLAS", "OMP", "MKL")]
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
