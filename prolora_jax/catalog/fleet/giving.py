"""One run: the work given out to a crew, wherever its workers are, and what becomes of it.

An input that ends its worker costs itself alone. A worker that is lost with its host costs nothing
but time, and so does one that is slow: who has nothing to do takes a second copy of its chunk.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from prolora_jax.catalog.fleet import receipts
from prolora_jax.catalog.fleet.chunk import ChunkDone, ChunkWork
from prolora_jax.catalog.fleet.dispatch import LOSSES, TRIES, Chunk, Dispatch
from prolora_jax.catalog.fleet.holding import Holding
from prolora_jax.catalog.fleet.inputs import FleetInput, Unit
from prolora_jax.catalog.fleet.receipts import Known, Receipt
from prolora_jax.catalog.fleet.share import SILENCE, RunShare
from prolora_jax.engines.crew import AnyCrew, Event
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import OutputError, ProloraError, Refusal
from prolora_jax.io.places.place import FilePlace
from prolora_jax.plans.catalog_record import CatalogRecord

STRIKES, LAST_STRIKES = 3, 16
"""Chunks in a row that fail at once for a host's own trouble before it gets no more; all but the
first are single inputs from anywhere, as what lies together may fail together. The last host is
asked for longer: without it there is no run, and chance may have found what nobody can write."""

_NEVER_READY = 3
"""Workers in a row that end before they are ready: no input can be to blame for that."""

_LAST_SECONDS = 25.0
"""What a preempted host has left is 30 seconds."""


def is_settled(unit: Unit, known: Mapping[str, Known]) -> bool:
    """Whether every input of a unit has a receipt that settles it."""
    return all(_settles(one, known.get(one.name)) for one in unit)


def _settles(one: FleetInput, known: Known | None) -> bool:
    return known is not None and known.receipt.settles(one)


class FleetRun:
    """One run: who has what, and what became of it.

    Args:
        todo: units to be done.
        before: receipts of earlier runs, by names.
        out: place of the outputs.
        share: how it is done.
        progress: called with ("files", done, total).
        together: whether receipts of a chunk are one object.
    """

    def __init__(
        self,
        todo: list[Unit],
        before: Mapping[str, Known],
        out: FilePlace,
        share: RunShare,
        progress: Progress | None,
        together: bool,
    ):
        self.out, self.share, self.before = out, share, before
        self.progress, self.together = progress, together
        self.workers = max(1, min(share.workers, len(todo)))
        self.dispatch = Dispatch(todo, self.workers)
        self.total = sum(map(len, todo))
        self.names = {one.name for unit in todo for one in unit}
        self.settled = set[str]()
        self.done, self.states = 0, dict[str, int]()
        self.stop = threading.Event()
        self.busy = Holding()
        self.idle: list[int] = []
        self.strikes = Counter[int]()
        self.dismissed, self.leaving = set[int](), set[int]()
        self.troubled = set[str]()
        self.never_ready = 0
        # One input goes ahead: what it needs of the base models would else be computed by all.
        self.warm = self.workers == 1
        self.trouble: str | None = None

    def run(self, hire: Callable[[], AnyCrew[ChunkWork]]) -> None:
        """Give out the work until there is none, or the run is to stop.

        Args:
            hire: makes the crew, which is closed in the end.

        Raises:
            ProloraError: no worker gets ready, or what is wrong is no input's fault.
        """
        self.crew = hire()
        try:
            self.crew.fill()
            while not self.stop.is_set() and (self.dispatch.left or self.busy.at_work):
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
        if not self.stop.is_set():
            self._give_out()

    def _give_out(self) -> None:
        """First to who has nothing; then what others may go on with."""
        while self.idle and (self.warm or not self.busy):
            struck = self.strikes[self.idle[-1]] > 0
            chunk = self.dispatch.probe() if struck else self.dispatch.next(one=not self.warm)
            chunk = chunk or self.busy.second_copy()
            if chunk is None:
                return
            self._give(self.idle.pop(), chunk)
        for worker, at in self.busy.with_room() if self.warm else ():
            # Of two chunks it would not be certain which one a host, or an input, is to blame for.
            if not (self.strikes[worker] or self.dispatch.is_apart(at)):
                chunk = self.dispatch.ahead()
                if chunk is not None:
                    self._give(worker, chunk)

    def _give(self, worker: int, chunk: Chunk) -> None:
        self.busy.add(worker, chunk, self.strikes[worker])
        self.crew.give(worker, self._work(chunk))

    def _may_rest(self, worker: int) -> None:
        """It has done what it was at: it goes on with what it has, or has nothing."""
        if worker not in self.busy:
            self.idle.append(worker)

    def _work(self, chunk: Chunk) -> ChunkWork:
        inputs = tuple(one for unit in chunk for one in unit)
        before = {one.name: self.before[one.name] for one in inputs if one.name in self.before}
        return ChunkWork(inputs, before, self.together and len(inputs) > 1)

    def _finish_early(self) -> None:
        self.crew.hurry()
        end = time.monotonic() + _LAST_SECONDS
        while self.busy.at_work and time.monotonic() < end:
            self._step(0.2)

    def _heard(self, event: Event) -> None:
        if event.kind == "ready":
            self.never_ready = 0
            self.idle.append(event.worker)
            self.dispatch.workers = max(self.dispatch.workers, len(self.idle) + len(self.busy))
        elif event.worker in self.leaving and event.kind in ("done", "failed"):
            return  # of what was taken from it
        elif event.kind == "done":
            self._noted(event.worker, event.told)
        elif event.kind == "failed":
            self._failed(event.worker, event.told)
        elif event.kind == "lost":
            self._lost(event.worker, event.told)
        else:
            self._ended(event.worker, event.told)

    def _noted(self, worker: int, done: ChunkDone) -> None:
        """What a worker has done of its chunk; the rest goes to another, if this host can."""
        held, self.warm = self.busy.take(worker, done=not done.left), True
        chunk = held.chunk
        for name, state in done.states.items() if chunk else ():
            self._has_receipt(name, state)
        if done.trouble is None and "done" in done.states.values():
            self.strikes[worker] = 0
        left = [unit for unit in chunk if any(one.name in done.left for one in unit)]
        if done.trouble is None:
            self.dispatch.hand_back(left)
        else:
            self._note_trouble(worker, left, done, held.strikes)
        if self._has_trouble(worker):
            self._dismiss(worker)
        elif done.left and done.trouble is None and not self.stop.is_set():
            self._replace(worker)
        else:
            self._may_rest(worker)

    def _note_trouble(self, worker: int, left: list[Unit], done: ChunkDone, strikes: int) -> None:
        assert done.trouble is not None
        self.trouble, names = done.trouble, {unit[0].name for unit in left}
        if "done" in done.states.values():
            self.strikes[worker] = 0
        elif self.strikes[worker] == strikes:
            # What has failed before says nothing new of the host, and nothing what was given to it
            # together with what has failed.
            self.strikes[worker] += not names <= self.troubled
        self.troubled |= names
        for unit in self.dispatch.troubled(left):
            self._given_up([one for one in unit if one.name in done.left], done.trouble)

    def _has_trouble(self, worker: int) -> bool:
        others = set(self.crew.workers) - self.dismissed - {worker}
        return self.strikes[worker] >= (STRIKES if others else LAST_STRIKES)

    def _dismiss(self, worker: int) -> None:
        self.dismissed.add(worker)
        self._unbegun(worker)
        self.crew.dismiss(worker)

    def _replace(self, worker: int) -> None:
        """Somebody else has told it to end early (SIGTERM): it would give back whatever it gets."""
        self.leaving.add(worker)
        self._unbegun(worker)
        self.crew.kill(worker)

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
        self._died(self.busy.take(worker).chunk, str(error))
        self._may_rest(worker)

    def _ended(self, worker: int, how: str) -> None:
        """A worker is gone: by what it was at, by its host's trouble, or before it was ready."""
        if worker in self.busy:
            at = self.busy.take(worker).chunk
            self._died(at, how, more=self._unbegun(worker))
        elif worker in self.idle:
            self.idle.remove(worker)
        elif worker in self.leaving:
            self.leaving.remove(worker)
        elif worker in self.dismissed:
            if not self.crew.workers:
                raise self._no_room()
            return
        else:
            self.never_ready += 1
            if self.never_ready >= _NEVER_READY:
                self._require_others(how)
                return
        if not self.stop.is_set():
            self.crew.fill()

    def _require_others(self, how: str) -> None:
        """Who gets ready nowhere is missed only where nobody is."""
        if not (self.idle or self.busy):
            raise ProloraError(
                f"{self.never_ready} workers in a row ended before they were ready ({how}); "
                "expected one that starts; use fewer (--local), or a machine with more memory",
                code=Refusal.WORKER_ENDED,
            )

    def _lost(self, worker: int, how: str) -> None:
        """A worker is gone, with its host, and what it was at is not to blame."""
        if worker in self.idle:
            self.idle.remove(worker)
        if worker in self.busy:
            left = self._left_of(self.busy.take(worker).chunk)
            self._unbegun(worker)
            for unit in self.dispatch.lost(left):
                for one in unit:
                    self._quarantine(one, how, LOSSES)
        if not self.stop.is_set():
            self.crew.fill()

    def _unbegun(self, worker: int) -> bool:
        """Hand back what a worker that is gone had not begun; whether there was any."""
        more = worker in self.busy
        for chunk in self.busy.unbegun(worker):
            self.dispatch.hand_back(chunk)
        return more

    def _died(self, chunk: Chunk, how: str, *, more: bool = False) -> None:
        self.warm = True
        if not chunk:
            return
        for unit in self.dispatch.died(chunk, self._left_of(chunk), more=more):
            for one in unit:
                self._quarantine(one, how, TRIES)

    def _left_of(self, chunk: Chunk) -> list[Unit]:
        """What has no receipt of a chunk whose worker is gone; the rest is noted as done."""
        left = []
        for unit in chunk:
            found = {one.name: receipts.read_one(self.out, one.name) for one in unit}
            if not is_settled(unit, {name: known for name, known in found.items() if known}):
                left.append(unit)
                continue
            for name, known in found.items():
                assert known is not None
                self._has_receipt(name, known.receipt.state)
        return left

    def _quarantine(self, one: FleetInput, how: str, times: int) -> None:
        message = (
            f"{one.name}: {times} workers that had nothing else to do have ended over it ({how}); "
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
