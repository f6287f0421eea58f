"""A run by worker processes of this host.

An input that ends its process costs itself alone. What is true stays in the place of the outputs:
a driver that is killed is started again with the same command, and so are two at once.
"""

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

from prolora_jax.catalog.fleet import receipts
from prolora_jax.catalog.fleet.dispatch import TRIES, Chunk, Dispatch
from prolora_jax.catalog.fleet.ending import end_run
from prolora_jax.catalog.fleet.inputs import FleetInput, Unit, find_inputs, units_of
from prolora_jax.catalog.fleet.job import FleetJob, require_apart, require_same_job
from prolora_jax.catalog.fleet.receipts import Known, Receipt
from prolora_jax.catalog.fleet.standing import standing
from prolora_jax.catalog.fleet.worker import ChunkDone, ChunkWork, start_worker
from prolora_jax.engines.crew import Crew, Event
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import OutputError, ProloraError, Refusal
from prolora_jax.io.places.opening import open_place, require_conditions
from prolora_jax.io.places.place import FilePlace
from prolora_jax.plans.catalog_record import CatalogRecord

SILENCE = 600.0
"""Seconds without a sign of life after which a worker is ended; its input is to blame for it."""

STRIKES = 3
"""Chunks in a row that fail at once for a host's own trouble before it gets no more; all but the
first are single inputs from anywhere, as what lies together may fail together."""

_NEVER_READY = 3
"""Workers in a row that end before they are ready: no input can be to blame for that."""

_LAST_SECONDS = 25.0
"""What a preempted host has left is 30 seconds."""


@dataclass(frozen=True)
class RunShare:
    """Which part of a catalog a run does, and how.

    Attributes:
        workers: processes.
        shard: number of this part, from 0.
        shards: number of parts.
        silence: seconds without a sign of life after which a worker is ended.
    """

    workers: int = 1
    shard: int = 0
    shards: int = 1
    silence: float = SILENCE

    def has(self, unit: Unit) -> bool:
        """Whether a unit is in this part, which depends on its name alone."""
        digest = sha256(unit[0].name.encode()).digest()
        return int.from_bytes(digest[:8]) % self.shards == self.shard


@dataclass(frozen=True)
class RunResult:
    """What a run has come to.

    Attributes:
        done: inputs that have got a receipt in this run.
        found: of these, by state.
        left: inputs of this part without a receipt that settles them; when it was told to end
            early, as far as it knows.
        stopped: whether it was told to end early.
        complete: whether every input of the catalog has its receipt.
    """

    done: int
    found: dict[str, int]
    left: int
    stopped: bool
    complete: bool


def run_here(job: FleetJob, share: RunShare, progress: Progress | None = None) -> RunResult:
    """Do a catalog, or a part of it, with worker processes of this host.

    SIGTERM ends it early: what is at work is finished or dropped within half a minute.

    Args:
        job: what is to be done.
        share: which part of it, and with how many processes.
        progress: called with ("files", done, total).

    Returns:
        What it has come to; the receipts say the rest.

    Raises:
        UsageError: an input is not there, the outputs' place has another job or cannot be trusted,
            or files of this one might be replaced.
        BaseModelError: a base model cannot be used.
        OutputError: a place does not answer, or this host has trouble.
        ProloraError: no worker gets ready.
    """
    require_apart(job)
    inputs, out = open_place(job.inputs), open_place(job.out)
    found = find_inputs(inputs, out, previews=job.writing.sidecars)
    require_conditions(out)
    require_same_job(out, job)
    units = units_of(found)
    before = standing(out, units)
    todo = [unit for unit in units if share.has(unit) and not before.settles(unit)]
    run = _Run(job, out, todo, before.kept, share, progress, len(found) > receipts.MANY)
    if todo:
        with _sigterm_stops(run.stop):
            run.run()
    if run.stop.is_set():  # there is no time to read all receipts again
        left = sum(not run.has_settled(unit) for unit in todo)
        return RunResult(run.done, run.states, left, True, False)
    now = standing(out, units)
    left = sum(share.has(unit) and not now.settles(unit) for unit in units)
    complete = all(one.name in now.rounds for one in found)
    if complete:
        end_run(out)
    return RunResult(run.done, run.states, left, False, complete)


def _settled(unit: Unit, known: Mapping[str, Known]) -> bool:
    return all(_is_settled(one, known.get(one.name)) for one in unit)


def _is_settled(one: FleetInput, known: Known | None) -> bool:
    return known is not None and known.receipt.settles(one)


@contextmanager
def _sigterm_stops(stop: threading.Event) -> Iterator[None]:
    """Have SIGTERM set an event while the block runs, where this thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)


class _Run:
    """One run: the crew, who has what, and what became of it."""

    def __init__(
        self,
        job: FleetJob,
        out: FilePlace,
        todo: list[Unit],
        before: Mapping[str, Known],
        share: RunShare,
        progress: Progress | None,
        together: bool,
    ):
        self.job, self.out, self.share, self.before = job, out, share, before
        self.progress, self.together = progress, together
        self.workers = max(1, min(share.workers, len(todo)))
        self.dispatch = Dispatch(todo, self.workers)
        self.total = sum(map(len, todo))
        self.names = {one.name for unit in todo for one in unit}
        self.settled = set[str]()
        self.done, self.states = 0, dict[str, int]()
        self.stop = threading.Event()
        self.busy: dict[int, Chunk] = {}
        self.idle: list[int] = []
        self.strikes = Counter[int]()
        self.troubled = set[str]()
        self.never_ready = 0
        # One input goes ahead: what it needs of the base models would else be computed by all.
        self.warm = self.workers == 1
        self.trouble: str | None = None

    def run(self) -> None:
        """Give out the work until there is none, or the run is to stop."""
        self.crew: Crew[ChunkWork] = Crew(start_worker, self.job)
        try:
            for _ in range(self.workers):
                self.crew.add()
            while not self.stop.is_set() and (self.dispatch.left or self.busy):
                self._step(1.0)
            if self.stop.is_set():
                self._finish_early()
        finally:
            self.crew.close()

    def _step(self, seconds: float) -> None:
        for event in self.crew.events(seconds):
            self._heard(event)
        for worker in set(self.crew.workers).difference(self.idle):
            # What opens base models may be silent for longer than what is at an adapter.
            longest = (
                self.share.silence if worker in self.busy else max(self.share.silence, SILENCE)
            )
            if self.crew.silent(worker) > longest:
                self.crew.kill(worker)
        while self.idle and not self.stop.is_set():
            if not self.warm and self.busy:
                return
            worker = self.idle[-1]
            struck = self.strikes[worker] > 0
            chunk = self.dispatch.probe() if struck else self.dispatch.next(one=not self.warm)
            if chunk is None:
                return
            self.idle.pop()
            self.busy[worker] = chunk
            self.crew.give(worker, self._work(chunk))

    def _work(self, chunk: Chunk) -> ChunkWork:
        inputs = tuple(one for unit in chunk for one in unit)
        before = {one.name: self.before[one.name] for one in inputs if one.name in self.before}
        return ChunkWork(inputs, before, self.together and len(inputs) > 1)

    def _finish_early(self) -> None:
        self.crew.hurry()
        end = time.monotonic() + _LAST_SECONDS
        while self.busy and time.monotonic() < end:
            self._step(0.2)

    def _heard(self, event: Event) -> None:
        if event.kind == "ready":
            self.never_ready = 0
            self.idle.append(event.worker)
        elif event.kind == "done":
            self._noted(event.worker, event.told)
        elif event.kind == "failed":
            self._failed(event.worker, event.told)
        else:
            self._ended(event.worker, event.told)

    def _noted(self, worker: int, done: ChunkDone) -> None:
        """What a worker has done of its chunk; the rest goes to another, if this host can."""
        chunk, self.warm = self.busy.pop(worker), True
        for name, state in done.states.items():
            self._has_receipt(name, state)
        if done.trouble is None and "done" in done.states.values():
            self.strikes[worker] = 0
        left = [unit for unit in chunk if any(one.name in done.left for one in unit)]
        if done.trouble is None:
            self.dispatch.hand_back(left)
        else:
            self._note_trouble(worker, left, done)
        if self._has_trouble(worker):
            self.crew.kill(worker)
        else:
            self.idle.append(worker)

    def _note_trouble(self, worker: int, left: list[Unit], done: ChunkDone) -> None:
        assert done.trouble is not None
        self.trouble, names = done.trouble, {unit[0].name for unit in left}
        if "done" in done.states.values():
            self.strikes[worker] = 0
        else:
            # What has failed before says nothing new of the host.
            self.strikes[worker] += not names <= self.troubled
        self.troubled |= names
        for unit in self.dispatch.troubled(left):
            self._given_up([one for one in unit if one.name in done.left], done.trouble)

    def _has_trouble(self, worker: int) -> bool:
        return self.strikes[worker] >= STRIKES

    def _given_up(self, inputs: list[FleetInput], trouble: str) -> None:
        """What fails again and again is to blame itself, if this host can do others."""
        if not self.states.get("done"):
            raise self._no_room()
        for one in inputs:
            message = (
                f"{one.name}: cannot be written, in {TRIES} tries, where others can ({trouble}); "
                "expected an output that this host and the place have room for; see why, then run "
                "the same command again"
            )
            self._file(one, Refusal.CANNOT_WRITE, message)

    def _no_room(self) -> OutputError:
        return OutputError(
            f"this host has trouble that is no adapter's ({self.trouble}); expected room to work "
            "in; make some, and run the same command again",
            code=Refusal.CANNOT_WRITE,
        )

    def has_settled(self, unit: Unit) -> bool:
        """Whether a unit has got receipts in this run that settle it."""
        return all(one.name in self.settled for one in unit)

    def _has_receipt(self, name: str, state: str) -> None:
        self.states[state] = self.states.get(state, 0) + 1
        if state != "failed":
            self.settled.add(name)
        self.done += name in self.names
        if self.progress is not None:
            self.progress("files", self.done, self.total)

    def _failed(self, worker: int, error: ProloraError) -> None:
        """An error that is no input's: the place's, the base models', or ours."""
        if error.code != Refusal.INTERNAL or worker not in self.busy:
            raise error
        self._died(self.busy.pop(worker), str(error))
        self.idle.append(worker)

    def _ended(self, worker: int, code: int | None) -> None:
        """A worker is gone: by what it was at, by its host's trouble, or before it was ready."""
        chunk = self.busy.pop(worker, None)
        if worker in self.idle:
            self.idle.remove(worker)
        elif chunk is not None:
            self._died(chunk, _how(code))
        elif self._has_trouble(worker):
            if not self.crew.workers:
                raise self._no_room()
            return
        else:
            self.never_ready += 1
            if self.never_ready >= _NEVER_READY:
                raise ProloraError(
                    f"{self.never_ready} workers in a row ended before they were ready "
                    f"({_how(code)}); expected one that starts; use fewer (--local), or a machine "
                    "with more memory",
                    code=Refusal.WORKER_ENDED,
                )
        if not self.stop.is_set():
            self.crew.add()

    def _died(self, chunk: Chunk, how: str) -> None:
        self.warm = True
        left = []
        for unit in chunk:
            found = {one.name: receipts.read_one(self.out, one.name) for one in unit}
            if not _settled(unit, {name: known for name, known in found.items() if known}):
                left.append(unit)
                continue
            for name, known in found.items():
                assert known is not None
                self._has_receipt(name, known.receipt.state)
        for unit in self.dispatch.died(chunk, left):
            for one in unit:
                self._quarantine(one, how)

    def _quarantine(self, one: FleetInput, how: str) -> None:
        message = (
            f"{one.name}: {TRIES} workers that had nothing else to do have ended over it ({how}); "
            "expected one that finishes; see what is in it, then use prolora fleet retry "
            "--quarantined"
        )
        self._file(one, Refusal.WORKER_ENDED, message)

    def _file(self, one: FleetInput, code: Refusal, message: str) -> None:
        """Write the receipt of an input that no worker could write one of."""
        record = CatalogRecord(one.name, None, "refused", "failed", str(code), message)
        before = self.before.get(one.name)
        round_ = 0 if before is None else before.receipt.round + 1
        files = {} if before is None else before.receipt.files
        ended = code is Refusal.WORKER_ENDED
        receipt = Receipt(record, one.etag, None, files, quarantined=ended, round=round_)
        receipts.file_receipt(self.out, receipt, before)
        self._has_receipt(one.name, receipt.state)


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = next((one.name for one in signal.Signals if one.value == -code), str(-code))
    return f"signal {name}" + ", perhaps for want of memory" * (code == -signal.SIGKILL)
