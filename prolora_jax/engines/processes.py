"""Worker processes for NumPy work: one BLAS thread each, over independent tasks."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

from prolora_jax.errors import ProloraError, Refusal

Task = TypeVar("Task")
Result = TypeVar("Result")
_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""How often a worker looks whether its parent is still there, and that for a worker's signs."""

_signed: Any = None
"""Of a worker process: when it gave its last sign of life, which its parent sees."""


def run_in_processes(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    heard: Callable[[], object] | None = None,
) -> Iterator[tuple[Task, Result]]:
    """Results in the order in which they are ready.

    When the system ends a worker, which it does to the largest where memory runs out, what is not
    done yet is tried once more by half as many.

    Args:
        function: of a module's top level, so that a spawned process can import it.
        tasks: started in this order; give the largest first.
        workers: processes. A script that asks for them needs the usual
            `if __name__ == "__main__":`. They end when this process does, however it does.
        heard: called when a worker has given a sign of life (`give_sign`).

    Yields:
        (task, its result), each once.

    Raises:
        ProloraError: a worker was ended again.
    """
    left = dict(enumerate(tasks))
    for count in (workers, max(workers // 2, 1)):
        try:
            yield from _run(function, left, count, heard)
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
    function: Callable[[Task], Result],
    left: dict[int, Task],
    workers: int,
    heard: Callable[[], object] | None,
) -> Iterator[tuple[Task, Result]]:
    """Results of tasks, which are taken out of `left` as they are done."""
    spawn = get_context("spawn")
    # Without a lock, which a worker that is killed would hold for ever.
    signed, last = spawn.RawValue("d", 0.0), 0.0
    with (
        one_thread_each(),
        ProcessPoolExecutor(workers, spawn, _begin, (os.getpid(), signed)) as pool,
    ):
        try:
            waiting = {pool.submit(function, task): place for place, task in left.items()}
            while waiting:
                ready, _ = wait(waiting, _LOOK_SECONDS, FIRST_COMPLETED)
                if heard is not None and signed.value != last:
                    last = signed.value
                    heard()
                for future in ready:
                    result = future.result()
                    yield left.pop(waiting.pop(future)), result
        finally:
            pool.shutdown(cancel_futures=True)


def give_sign() -> None:
    """Have the process that this one works for know that it waits, and is not stuck."""
    if _signed is not None:
        _signed.value = time.monotonic()


def _begin(parent: int, signed: Any) -> None:
    global _signed
    _signed = signed
    end_with(parent)


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
