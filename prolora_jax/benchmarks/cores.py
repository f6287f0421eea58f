"""Cores and messages of a measuring process; standard library only: `pin` comes before NumPy."""

import os
import sys

QUIET = "PROLORA_BENCHMARK_QUIET"

_cores = (
    os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
)


def all_cores() -> set[int]:
    """The cores that this process could use when it started."""
    return set(_cores)


def pin() -> None:
    """Keep this process, and the threads it starts from here on, to the last usable core.

    The first one takes most interrupts. Where a system cannot pin, the thread settings have to do.
    """
    _keep_to({max(_cores)})


def unpin() -> None:
    """Let this process, and those it starts from here on, use all its cores again."""
    _keep_to(_cores)


def progress(text: str) -> None:
    """One line about where a long measurement is."""
    if not os.environ.get(QUIET):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _keep_to(cores: set[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
