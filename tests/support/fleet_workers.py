"""Workers of a fleet that do nothing with tensors: what is tested is who does what, and what stays.

All but the engine is as it is: inputs are fetched, outputs published, receipts written. An output
is its input's bytes, the other way round. By their names inputs end their worker: `segv`, `killed`,
`endless`; `stopped` does so to the first that gets it; `trouble` is this host's, `broken` is an
error of ours; `slow` takes longer. Content `bad` is refused.
"""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from prolora_jax.catalog.fleet.chunk import ChunkDone, ChunkWork
from prolora_jax.catalog.fleet.job import FleetJob, JobNote, claim
from prolora_jax.catalog.fleet.local_run import start_worker
from prolora_jax.catalog.fleet.publishing import Publisher
from prolora_jax.catalog.fleet.worker import Worker
from prolora_jax.errors import OutputError, Refusal
from prolora_jax.io.adapters.inputs import Input
from prolora_jax.io.outputs.manifest import ManifestRow, Proof
from prolora_jax.io.outputs.reports import report_path
from prolora_jax.io.places.opening import open_place
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.plans.catalog_record import CatalogRecord

SECONDS = 0.01
"""Of each file."""


class ToyWorker(Worker):
    """A worker without an engine."""

    def __init__(self, job: FleetJob, hurried: threading.Event, sign: Callable[[], None]):
        self.job, self._hurried, self._sign = job, hurried, sign
        self.inputs, self.out = open_place(job.inputs), open_place(job.out)
        self._shown, self._told, self._writing = {}, set(), job.writing
        self._store = FolderStore(job.store, noted=False)
        note = JobNote(1, job.asked, "no bases", job.inputs, "source", "target", {})
        self._publisher = Publisher(self.out, claim(self.out, note).digest, job.writing.overwrite)

    def _migrated(self, items: Sequence[Input], folder: Path) -> list[ManifestRow]:
        rows = []
        for item in items:
            if self._hurried.is_set():
                rows.append(row(item, "planned"))
                continue
            fate(item.path.name)
            time.sleep(SECONDS)
            self._sign()
            rows.append(row(item, "migrated"))
            if rows[-1].record.output is None:
                continue
            output = folder / item.relative
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_bytes(item.path.read_bytes()[::-1])
            report_path(output).write_bytes(b"{}")
        return rows

    def _relocate(self, output: Path) -> None: ...

    def _tell_pair(self) -> None: ...


def row(item: Input, state) -> ManifestRow:
    name = item.relative.as_posix()
    if "trouble" in name:
        why = str(Refusal.CANNOT_WRITE), f"{item.path}: cannot be written (disk full)"
        return ManifestRow(CatalogRecord(name, name, "refused", "failed", *why), Proof())
    if item.path.read_bytes() == b"bad":
        why = str(Refusal.NOT_AN_ADAPTER), f"{item.path}: is bad"
        return ManifestRow(CatalogRecord(name, None, "refused", "refused", *why), Proof())
    return ManifestRow(CatalogRecord(name, name, "ok", state), Proof("plan"))


def fate(name: str) -> None:
    """What a file does to its worker."""
    if "segv" in name:
        os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(600)  # Ray's handler, in another thread, takes its time
    if "killed" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "endless" in name:
        time.sleep(600)
    if "slow" in name:
        time.sleep(0.25)
    mark = Path(tempfile.gettempdir(), f"{name}.mark")
    if "stopped" in name and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    if "broken" in name:
        raise RuntimeError("made")


def start_toy(
    job: FleetJob, hurried: threading.Event, sign: Callable[[], None]
) -> Callable[[ChunkWork], ChunkDone]:
    return ToyWorker(job, hurried, sign)


def start_never(job: FleetJob, hurried: threading.Event, sign: Callable[[], None]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def start_endless(job: FleetJob, hurried: threading.Event, sign: Callable[[], None]) -> None:
    time.sleep(600)


def start_refused(job: FleetJob, hurried: threading.Event, sign: Callable[[], None]) -> None:
    raise OutputError("the place is gone", code=Refusal.CANNOT_WRITE)


def start_stuck(
    job: FleetJob, hurried: threading.Event, sign: Callable[[], None]
) -> Callable[[ChunkWork], ChunkDone]:
    """A real worker that does one chunk and then no other."""
    work, given = start_worker(job, hurried, sign), []

    def once(chunk: ChunkWork) -> ChunkDone:
        if given:
            time.sleep(600)
        given.append(chunk)
        return work(chunk)

    return once


MAIN = """
import sys
import fleet_workers
from pathlib import Path
from prolora_jax.catalog.fleet import local_run
from prolora_jax.catalog.fleet.job import FleetJob
from prolora_jax.catalog.fleet.local_run import RunShare

if __name__ == "__main__":
    local_run.start_worker = fleet_workers.start_toy
    job = FleetJob(sys.argv[1], sys.argv[2], "source", "target")
    share = RunShare(2, *map(int, sys.argv[3:5]))
    found = local_run.run_here(job, share)
    print(found.left, found.stopped, flush=True)
"""
"""A driver in a process of its own: inputs, outputs, shard, shards."""
