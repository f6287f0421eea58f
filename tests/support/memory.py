"""The memory of the processes that run the tests: given back between files, and held to a limit."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

GIGABYTE = 1 << 30
MOST = 2 * GIGABYTE
"""No process of tests may ever be larger: a laptop runs them beside its owner's work."""

WORTH_CLEARING = 3 * GIGABYTE // 4
"""Programs that one file compiled serve the next, too: they go when a process has become large."""

TOO_MUCH_FOR_ONE = 5 * GIGABYTE // 4
"""From here on programs go after a test, though the file's next test may want them again."""

MUCH_TOO_MUCH = 7 * GIGABYTE // 5
"""From here on they go after each test, whatever it has brought."""

WORTH_LOOKING = GIGABYTE // 10
"""Growth since programs went: with the oracles' libraries a process may be large without any, and
looking for garbage takes a quarter of a second there."""


_left = [0]  # bytes of this process after programs went


def resident(field: str) -> int:
    """Bytes of this process in memory: now (`VmRSS`) or at its largest (`VmHWM`); 0 off Linux."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(found[0]) if found else 0


@pytest.fixture(scope="module", autouse=True)
def memory_given_back() -> Iterator[None]:
    """After a file of tests: what JAX has compiled, nets in caches, pages that nobody uses."""
    yield
    if resident("VmRSS") >= WORTH_CLEARING:
        forget_cached()
        give_back()


@pytest.fixture(autouse=True)
def memory_given_back_within() -> Iterator[None]:
    """After a test of a file that compiles very much."""
    yield
    large = resident("VmRSS")
    if large >= min(MUCH_TOO_MUCH, max(TOO_MUCH_FOR_ONE, _left[0] + WORTH_LOOKING)):
        give_back()


def give_back() -> None:
    """What JAX has compiled goes, and so do pages that nobody uses."""
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    _left[0] = resident("VmRSS")


def forget_cached() -> None:
    """Empty what `functools.cache` keeps for the functions of test files and their helpers."""
    tests = Path(__file__).parents[1]
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file is None or tests not in Path(file).parents:
            continue
        for value in list(vars(module).values()):
            if hasattr(value, "cache_clear") and value.__module__ == module.__name__:
                value.cache_clear()


class PeakMemory:
    """A plug-in: each process says how large it was, and one that was too large fails the run."""

    def __init__(self, most: int = MOST):
        self.most = most
        self.peaks: dict[str, int] = {}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker of xdist has ended and left its peak (`pytest_sessionfinish`, in the worker)."""
        output = getattr(node, "workeroutput", {})
        if "peak" in output:
            self.peaks[node.workerinput["workerid"]] = output["peak"]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Hand over the peak in a worker; elsewhere judge all peaks."""
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["peak"] = resident("VmHWM")
            return
        self.peaks["this process"] = resident("VmHWM")
        if self.too_large() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def too_large(self) -> list[str]:
        """The processes that were larger than they may be."""
        return [name for name, peak in self.peaks.items() if peak > self.most]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """One line with the peaks, and one for each process that was too large."""
        peaks = [f"{name} {peak / GIGABYTE:.2f}" for name, peak in sorted(self.peaks.items())]
        terminalreporter.write_line(f"peak memory, GiB: {', '.join(peaks)}")
        for name in self.too_large():
            terminalreporter.write_line(
                f"FAILED: memory of {name}: {self.peaks[name] / GIGABYTE:.2f} GiB; expected at "
                f"most {self.most / GIGABYTE:.0f}. Make nets smaller, or let them go after a test.",
                red=True,
            )
