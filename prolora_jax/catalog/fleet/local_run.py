"""A run, by worker processes of this host or by the hosts of a Ray cluster.

What is true stays in the place of the outputs: a driver that is killed is started again with the
same command, and so are two at once.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prolora_jax.catalog.fleet import receipts
from prolora_jax.catalog.fleet.chunk import ChunkDone, ChunkWork
from prolora_jax.catalog.fleet.elsewhere import hire_on_ray
from prolora_jax.catalog.fleet.ending import end_run
from prolora_jax.catalog.fleet.giving import FleetRun
from prolora_jax.catalog.fleet.inputs import Unit, find_inputs, units_of
from prolora_jax.catalog.fleet.job import FleetJob, require_apart, require_same_job
from prolora_jax.catalog.fleet.share import RunShare
from prolora_jax.catalog.fleet.standing import standing
from prolora_jax.engines.crew import AnyCrew, Crew
from prolora_jax.engines.progress import Progress
from prolora_jax.io.places.opening import is_url, open_place, require_conditions
from prolora_jax.io.places.place import FilePlace
from prolora_jax.io.places.scratch import sweep
from prolora_jax.io.stores.basis_store import FolderStore


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
    """Do a catalog, or a part of it, and wait for it here.

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
    _require_answers(job)
    units = units_of(found)
    before = standing(out, units)
    todo = [unit for unit in units if share.has(unit) and not before.settles(unit)]
    together = len(found) > receipts.MANY
    run = FleetRun(todo, before.kept, out, share, progress, together)
    if todo:
        with _sigterm_stops(run.stop):
            try:
                run.run(lambda: _hire(job, share, todo, out))
            finally:  # who had what another has done was ended over it
                sweep()
    if run.stop.is_set():  # there is no time to read all receipts again
        left = sum(not run.has_settled(unit) for unit in todo)
        return RunResult(run.done, run.states, left, True, False)
    now = standing(out, units)
    left = sum(share.has(unit) and not now.settles(unit) for unit in units)
    complete = all(one.name in now.rounds for one in found)
    if complete:
        end_run(out)
    return RunResult(run.done, run.states, left, False, complete)


def _require_answers(job: FleetJob) -> None:
    """Ask all places that workers alone would ask, who then wait for what may not be there."""
    FolderStore(job.store, shared=job.shared).begin()
    for base in (job.source, job.target):
        if is_url(base):
            next(iter(open_place(base).list()), None)


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


def _hire(job: FleetJob, share: RunShare, todo: list[Unit], out: FilePlace) -> AnyCrew[ChunkWork]:
    if share.ray is not None:
        return hire_on_ray(start_worker, job, share, todo[0][0].name, out)
    return Crew(start_worker, job, min(share.workers, len(todo)))


def start_worker(
    job: FleetJob, hurried: threading.Event, sign: Callable[[], None]
) -> Callable[[ChunkWork], ChunkDone]:
    """A worker in a process of its own (see `Worker`)."""
    from prolora_jax.catalog.fleet.worker import Worker

    return Worker(job, hurried, sign)
