"""What a worker on a host of a Ray cluster is, in its own process; knows nothing of Ray.

What it must have in common with its driver is asked before anything else is sent to it.
"""

import os
import platform
import socket
import threading
import time
from importlib.metadata import version
from typing import Any, NamedTuple

from prolora_jax.engines.crew import Start, as_told
from prolora_jax.engines.processes import end_with
from prolora_jax.engines.turns import Turns
from prolora_jax.errors import ProloraError

_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
"""How the TPU chips of one host lie, by their number."""


class HostFacts(NamedTuple):
    """What a host must have in common with the driver, and its name.

    Attributes:
        python: version without its last number.
        package: version of this package.
        host: its name.
    """

    python: str
    package: str
    host: str


def host_facts() -> HostFacts:
    """Those of this process."""
    python = ".".join(platform.python_version_tuple()[:2])
    return HostFacts(python, version("prolora_jax"), socket.gethostname())


def tpu_environment(chips: int) -> dict[str, str]:
    """Environment in which the TPU chips of one host are a world of their own.

    A process that has all chips of a host of a larger slice would wait for all the others.

    Args:
        chips: of the host.
    """
    if chips not in _BOUNDS:
        return {}
    alone, bounds = "1,1,1", _BOUNDS[chips]
    return {  # by their old names and by their new ones
        "TPU_HOST_BOUNDS": alone,
        "TPU_CHIPS_PER_HOST_BOUNDS": bounds,
        "TPU_PROCESS_BOUNDS": alone,
        "TPU_CHIPS_PER_PROCESS_BOUNDS": bounds,
    }


class RayWorker:
    """What an actor is; its tasks have a thread, and so have what comes next and what is asked."""

    def __init__(self):
        self._hurried, self._last = threading.Event(), time.monotonic()
        self._turns: Turns[Any] | None = None

    def enter(self, usual: dict[str, str], fixed: dict[str, str]) -> HostFacts:
        """Before anything else is imported: environment, and what this host has.

        Args:
            usual: environment, where nobody has said otherwise.
            fixed: environment that has to be.
        """
        end_with(os.getppid())  # Ray's own process on this host: it may be killed, and tell nobody
        for name, value in usual.items():
            os.environ.setdefault(name, value)
        os.environ.update(fixed)
        return host_facts()

    def begin(self, start: Start[Any], setup: Any) -> ProloraError | None:
        """Get ready; returns what is in the way."""
        self._sign()
        try:
            self._turns = Turns(start(setup, self._hurried, self._sign))
        except Exception as error:  # noqa: BLE001 (it is told)
            return as_told(error)
        return None

    def take(self, task: Any) -> None:
        """Make a task ready that `act` is asked for, too."""
        assert self._turns is not None
        self._turns.take(task)

    def act(self) -> tuple[bool, Any]:
        """Do the next task; returns whether it was done, and a result or an error."""
        assert self._turns is not None
        self._sign()
        try:
            return True, self._turns.next()
        except Exception as error:  # noqa: BLE001 (it is told)
            return False, as_told(error)

    def _sign(self) -> None:
        self._last = time.monotonic()

    def silent(self) -> float:
        """Seconds since the last sign of life of the task."""
        return time.monotonic() - self._last

    def hurry(self) -> None:
        """End the task early."""
        self._hurried.set()
