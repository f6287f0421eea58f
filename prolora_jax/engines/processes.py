"""Worker processes for NumPy work: one BLAS thread each, over independent tasks."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_in_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[Task, Result]]:
    """Results in the order in which they are ready.

    Args:
        function: of a module's top level, so that a spawned process can import it.
        tasks: started in this order; give the largest first.
        workers: processes. A script that asks for them needs the usual
            `if __name__ == "__main__":`.

    Yields:
        (task, its result).
    """
    with _one_thread_each(), ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        waiting = {pool.submit(function, task): task for task in tasks}
        try:
            for future in as_completed(waiting):
                yield waiting.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
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
