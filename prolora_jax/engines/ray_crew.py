"""A crew on the hosts of a Ray cluster: an actor for each host, or for each of its accelerators.

Ray places actors, carries what they are told and tells what became of them; it decides nothing.
Nothing is restarted or retried by it: a task whose actor is gone is told of, and given out anew by
who knows what it may have done. An actor is asked for on each host that is there, and gets work
when it has answered; one that cannot be placed (its cores belong to others) holds up nobody.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    OutOfMemoryError,
    RayError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prolora_jax.engines.crew import Event, Start
from prolora_jax.engines.ray_worker import HostFacts, RayWorker, host_facts, tpu_environment
from prolora_jax.errors import ProloraError, Refusal, UsageError

Task = TypeVar("Task")
_log = logging.getLogger(__name__)

PATIENCE = 300.0
"""Seconds without any host that has a worker, after which there is no hope of one."""

_LOOK_SECONDS = 2.0
"""How often hosts are looked for, and signs of life."""

_ENDS = 3
"""Workers of a host that end before they are ready, one after the other, before it gets no more."""

_TALK, _TAKE = "talk", "take"
_GROUPS = {"silent": _TALK, "hurry": _TALK, "take": _TAKE}
"""What is asked of an actor while it is at a task, and the threads that see to it."""


class RayCluster(NamedTuple):
    """Which cluster, and what is taken of it.

    Attributes:
        address: `auto` for the one that this host belongs to, or host:port of its head.
        each: workers of a host that has no accelerator, each with a core.
        patience: seconds without any host that has a worker, after which `events` gives up.
    """

    address: str
    each: int = 1
    patience: float = PATIENCE


@dataclass
class _Asked:
    """An actor that was asked for."""

    handle: Any
    node: str
    host: str
    here: bool = False
    ready: bool = False


class RayCrew(Generic[Task]):
    """Workers on the hosts of a cluster (see `AnyCrew`); connects to it.

    Args:
        start: of a module's top level; called in each worker (see `Crew`).
        setup: for `start`; travels by pickle.
        cluster: which one, and what is taken of it.
        usual: environment of each worker, where its host has not said otherwise.

    Raises:
        UsageError: there is no such cluster, or this host has another version of Ray or Python.
    """

    def __init__(self, start: Start[Task], setup: Any, cluster: RayCluster, usual: dict[str, str]):
        self._start, self._setup, self._usual = start, setup, usual
        self._cluster, self._ours = cluster, ExitStack()
        self._members: dict[int, _Asked] = {}
        self._refs: dict[Any, tuple[int, str]] = {}
        self._signs: dict[int, float] = {}
        self._told: list[Event] = []
        self._ends = Counter[str]()
        self._spent = set[str]()
        self._next, self._looked, self._closed, self._any_ready = 0, 0.0, False, False
        self._ours.enter_context(_connected(cluster.address))
        as_actor: Any = ray.remote  # whose types know no groups
        self._actor = as_actor(concurrency_groups={_TALK: 1, _TAKE: 1})(RayWorker)
        self._since = time.monotonic()

    @property
    def workers(self) -> list[int]:
        """Numbers of the workers that have not ended, as far as was heard; some wait for a host."""
        return list(self._members)

    def fill(self) -> None:
        """Ask for workers on hosts that have too few; `events` does so, too, as hosts come."""
        have = Counter(member.node for member in self._members.values())
        for node in ray.nodes():
            name, free = node["NodeID"], node["Resources"]
            if not node["Alive"] or name in self._spent or self._closed:
                continue
            count, needs = _wanted(free, self._cluster.each)
            for _ in range(count - have[name]):
                self._add(name, node["NodeManagerHostname"], needs)

    def _add(self, node: str, host: str, needs: dict[str, Any]) -> None:
        place = NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"scheduling_strategy": place, "max_restarts": 0, "max_task_retries": 0}
        handle = self._actor.options(**options, **needs).remote()
        number, self._next = self._next, self._next + 1
        chips = int(needs.get("resources", {}).get("TPU", 0))
        self._members[number] = _Asked(handle, node, host)
        self._signs[number] = time.monotonic()
        self._ask(number, "enter", self._usual, tpu_environment(chips))

    def _ask(self, worker: int, what: str, *given: Any) -> None:
        method = getattr(self._members[worker].handle, what)
        if what in _GROUPS:
            method = method.options(concurrency_group=_GROUPS[what])
        ref = method.remote(*given)
        self._refs[ref] = worker, what

    def give(self, worker: int, task: Task) -> None:
        """Give a worker that is ready a task (see `AnyCrew`)."""
        if (worker, "act") not in self._refs.values():  # else its silence is of what it is at
            self._signs[worker] = time.monotonic()
        if worker in self._members:
            self._ask(worker, "take", task)
            self._ask(worker, "act")

    def silent(self, worker: int) -> float:
        """Seconds since a sign of a worker (see `AnyCrew`); 0 while it has no host."""
        return time.monotonic() - self._signs[worker] if self._members[worker].here else 0.0

    def events(self, seconds: float) -> list[Event]:
        """What was heard, at the latest after so many seconds.

        Args:
            seconds: to wait for something to be heard.

        Raises:
            ProloraError: no host has had a worker for too long.
        """
        self._look()
        refs = list(self._refs)
        if not refs and not self._told:
            time.sleep(seconds)
        elif refs and ray.wait(refs, timeout=0 if self._told else seconds)[0]:
            # In the order in which they were asked for: a task was done before the next was begun.
            for ref in ray.wait(refs, num_returns=len(refs), timeout=0)[0]:
                if ref in self._refs:  # or its worker has gone meanwhile
                    self._heard(*self._refs.pop(ref), ref)
        told, self._told = self._told, []
        return told

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        self.fill()
        asked = {worker for worker, what in self._refs.values() if what == "silent"}
        here = [worker for worker, member in self._members.items() if member.here]
        for worker in here:
            if worker not in asked:
                self._ask(worker, "silent")
        if here or self._closed:
            self._since = now
        elif now - self._since > self._cluster.patience:
            raise ProloraError(
                f"--ray {self._cluster.address}: no host has taken a worker for "
                f"{self._cluster.patience:g} s ({len(self._members)} were asked for); expected a "
                "host with a core, or an accelerator, that nothing else has; see ray status, and "
                "run the same command again: what is done stays done",
                code=Refusal.WORKER_ENDED,
            )

    def _heard(self, worker: int, what: str, ref: Any) -> None:
        try:
            self._answered(worker, what, ray.get(ref))
        except RayError as error:
            self._gone(worker, error)

    def _answered(self, worker: int, what: str, told: Any) -> None:
        member = self._members[worker]
        if what == "silent":
            self._signs[worker] = max(self._signs[worker], time.monotonic() - told)
            return
        if what == "take":
            return
        self._signs[worker] = time.monotonic()
        if what == "enter":
            member.here, member.host = True, told.host
            ours = host_facts()
            if told[:2] == ours[:2]:
                self._ask(worker, "begin", self._start, self._setup)
            else:
                self._unfit(worker, _others(told, ours))
        elif what == "begin" and isinstance(told, ProloraError):
            message = f"host {member.host}: {told}"
            self._unfit(worker, type(told)(message, code=told.code))
        elif what == "begin":
            member.ready = self._any_ready = True
            self._ends[member.node] = 0
            self._told.append(Event(worker, "ready"))
        elif what == "act":
            self._told.append(Event(worker, "done" if told[0] else "failed", told[1]))

    def _gone(self, worker: int, error: RayError) -> None:
        """A worker, and why: Ray's words are many, and none of them names a signal."""
        member = self._members[worker]
        if missing := _missing(error):
            self._unfit(worker, _without(member.host, missing))
            return
        kind, how = what_ended(error)
        if kind == "ended" and not _is_alive(member.node):
            kind, how = "lost", "its host is gone"
        if kind == "ended" and not member.ready:
            self._ends[member.node] += 1
            if self._ends[member.node] >= _ENDS:
                self._spent.add(member.node)
        self._end(worker, kind, f"{how}, on host {member.host}")

    def _unfit(self, worker: int, error: ProloraError) -> None:
        """A host that cannot work: an error, as long as there is no other that can."""
        self._spent.add(self._members[worker].node)
        if self._any_ready:
            _log.warning("a host is left out: %s", error)
            self._end(worker, "lost", str(error))
        else:
            self._told.append(Event(worker, "failed", error))

    def _end(self, worker: int, kind: Any, how: str) -> None:
        member = self._members.pop(worker)
        ray.kill(member.handle)
        self._refs = {ref: asked for ref, asked in self._refs.items() if asked[0] != worker}
        self._told.append(Event(worker, kind, how))

    def kill(self, worker: int) -> None:
        """End a worker at once; `events` tells that it has ended."""
        self._end(worker, "ended", f"was ended for its silence, on {self._members[worker].host}")

    def dismiss(self, worker: int) -> None:
        """The same, of one whose host gets no other."""
        self._spent.add(self._members[worker].node)
        self.kill(worker)

    def hurry(self) -> None:
        """Ask all workers to end their tasks early, with what they have done."""
        self._closed = True
        for member in self._members.values():
            member.handle.hurry.options(concurrency_group=_GROUPS["hurry"]).remote()

    def close(self) -> None:
        """End all workers at once, and leave the cluster."""
        self._closed = True
        for member in self._members.values():
            ray.kill(member.handle)
        self._members.clear()
        self._refs.clear()
        self._ours.close()


def _wanted(has: dict[str, float], each: int) -> tuple[int, dict[str, Any]]:
    """How many workers a host gets, and what each of them takes."""
    if has.get("TPU"):
        return 1, {"num_cpus": 1, "resources": {"TPU": has["TPU"]}}
    if has.get("GPU"):
        return int(has["GPU"]), {"num_cpus": 1, "num_gpus": 1}
    return min(each, int(has.get("CPU", 0))), {"num_cpus": 1}


def what_ended(error: RayError) -> tuple[str, str]:
    """Whether a worker is `lost`, whatever it was at, or has `ended`, perhaps over it; and how.

    Args:
        error: that Ray has for what was asked of the worker.
    """
    if isinstance(error, ActorUnavailableError):
        return "lost", "it does not answer"
    if isinstance(error, ActorUnschedulableError):
        return "lost", "its host is gone"
    if isinstance(error, OutOfMemoryError):
        return "lost", "its host had no memory left"
    text = str(error)
    if isinstance(error, ActorDiedError):
        if error.preempted or "node has died" in text or "node was terminated" in text:
            return "lost", "its host is gone"
        if "NODE_OUT_OF_MEMORY" in text:
            return "lost", "its host had no memory left"
        return "ended", "by a signal such as SIGSEGV, or for want of memory"
    return "ended", text.strip().splitlines()[-1]


def _missing(error: RayError) -> str | None:
    """The module that a host lacks, of this package or beside it."""
    _, found, rest = str(error).partition("ModuleNotFoundError: No module named ")
    return rest.split()[0].strip("'\"") if found else None


def _without(host: str, module: str) -> UsageError:
    return UsageError(
        f"host {host}: found no module {module} for Ray's workers; expected what this host has; "
        "install prolora_jax[fleet] on every host, in the environment that ray start is run in",
        code=Refusal.MISSING_LIBRARY,
    )


def _others(found: HostFacts, ours: HostFacts) -> UsageError:
    return UsageError(
        f"host {found.host}: found Python {found.python} with prolora_jax {found.package}; "
        f"expected Python {ours.python} with {ours.package}, as here; install the same everywhere",
        code=Refusal.MISSING_LIBRARY,
    )


def _is_alive(node: str) -> bool:
    return any(one["Alive"] for one in ray.nodes() if one["NodeID"] == node)


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """A connection to a cluster, or the one that this process has."""
    if ray.is_initialized():
        yield
        return
    _require_head(address)
    main = threading.current_thread() is threading.main_thread()
    usual = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(address, str(error).strip().splitlines()[0]) from None
    if main:  # Ray has put its own there, which ends the process
        signal.signal(signal.SIGTERM, usual)
    # What Ray tells of workers that have ended, at the latest when it is left, is no result.
    with redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            ray.shutdown()


def _require_head(address: str) -> None:
    """Ray itself waits for minutes for a head that is not there."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 10).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, str(error)) from None


def _no_cluster(address: str, why: str) -> UsageError:
    # Ray's drivers look for a token only when they are told to, and its message does not say so.
    token = "" if "RAY_AUTH_MODE" in os.environ else ", with RAY_AUTH_MODE=token if it has a token"
    return UsageError(
        f"--ray {address}: found no Ray cluster that takes this host ({why}); expected auto on a "
        f"host of a cluster, or host:port of its head{token}; see ray status, or start one "
        "(docs/fleet.md)",
        code=Refusal.BAD_OPTION,
    )
