"""Many adapter files through the engine: read ahead, migrate in batches, write behind.

One thread reads and plans the next batch while the device works on this one, another writes the
last one. A batch is as many files as fill the engine's blocks (`BATCH_ROWS` rank columns) and fit
`BATCH_BYTES`; files of like rank come together. What concerns one file only, a refusal or a full
disk, is that file's outcome, and the rest goes on.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import NamedTuple, TypeVar

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.engines.prefetch import prefetch
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import BaseModelError, ProloraError
from prolora_jax.io.adapters.files import writes_folder
from prolora_jax.io.adapters.inputs import likely_rank
from prolora_jax.io.containers.header_tables import HeaderTables
from prolora_jax.method.encoding import rank_class
from prolora_jax.migration.execute import Results, Work, move_all, norm_of
from prolora_jax.migration.files import (
    Writing,
    as_written,
    clear_folder,
    read_fitted,
    refuse_outputs,
    require_room_for,
    write_migrated,
)
from prolora_jax.migration.jobs import FileJob, FileOutcome, as_outcome, for_job, unexpected
from prolora_jax.migration.lane.lane import Lane, LaneBatch, open_lane, table_name
from prolora_jax.migration.lane.reading import Read
from prolora_jax.migration.lane.writing import write
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.placing import OperatorsOnDevices
from prolora_jax.migration.single import AdapterHeader, encode, plan_fitted
from prolora_jax.plans.folder_report import FileReport
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import MigrationPlan

BATCH_ROWS = 512
"""Rank columns of a batch per module: one wide block (`blocks.WIDTHS`)."""

BATCH_BYTES = 3 * 2**28
"""Of a batch's input: enough for a wide block of attention layers of SDXL's size at rank 16.

Up to four times as much is held at once: this batch's input or output, the next one's input, and
the output of the one that is being written, which may have twice the input's rank.
"""


class Prepared(NamedTuple):
    """One adapter read and planned: what `move_all` and `write_job` need of it."""

    job: FileJob
    header: AdapterHeader
    plan: MigrationPlan
    work: Work
    rows: int
    size: int
    energy: tuple[float, float]
    seconds: float


class _Moved(NamedTuple):
    """One adapter that has moved, and is to be written."""

    item: Prepared
    results: Results


class _OnLane(NamedTuple):
    """One file of a lane that has moved, and is to be written."""

    batch: LaneBatch
    read: Read
    seconds: float


def migrate_files(
    jobs: Sequence[FileJob],
    pair: BasePair,
    options: MigrationOptions,
    writing: Writing | None = None,
    progress: Progress | None = None,
    finish: Callable[[FileOutcome], None] | None = None,
) -> Iterator[FileOutcome]:
    """Migrate files; each one's output and report are on the disk when its outcome comes.

    Args:
        jobs: what to do.
        pair: source and target.
        options: of every migration.
        writing: formats, and what may be overwritten.
        progress: called with ("files", done, total), and by the stages of the first batches.
        finish: called in the writing thread with each outcome, as soon as its files are on the
            disk; outcomes are yielded up to two batches later.

    Yields:
        One outcome per job, in the order in which they are done.

    Raises:
        BaseModelError: a base model cannot be read; nothing can be migrated then.
    """
    pipeline = _Pipeline(jobs, pair, options, writing or Writing(), progress, finish)
    try:
        yield from pipeline.outcomes()
    finally:
        # An interrupt, or a consumer that stops, waits for one file and not for a whole batch.
        pipeline.close()


_Batch = list[Prepared | FileOutcome]


class _Pipeline:
    """Three stages at once: one batch is read ahead, one moves, one is written.

    A batch is in one place at a time: read ahead, `moved`, or the writing thread's queue. It is
    named only inside of methods that end before the next one runs, and so is not held meanwhile.
    """

    def __init__(
        self,
        jobs: Sequence[FileJob],
        pair: BasePair,
        options: MigrationOptions,
        writing: Writing,
        progress: Progress | None,
        finish: Callable[[FileOutcome], None] | None,
    ):
        self.pair, self.options, self.writing = pair, options, writing
        self.progress, self.finish = progress, finish
        self.done, self.total = 0, len(jobs)
        self.placed = OperatorsOnDevices(pair, options)
        self.odd: list[FileJob] = []
        self.closed = False
        self.lane: Lane | None = None
        self.read = prefetch(self._batches(jobs))
        self.moved: deque[FileOutcome | _Moved | _OnLane] = deque()
        self.written: list[Future[FileOutcome]] = []
        self.writer = ThreadPoolExecutor(1, "write")

    def close(self) -> None:
        """End all threads; a batch that nobody wants is not waited for."""
        self.closed = True
        if self.lane is not None:
            self.lane.rooms.close()
        self.read.close()
        self.writer.shutdown(cancel_futures=True)

    def outcomes(self) -> Iterator[FileOutcome]:
        """Run all batches; yield what became of their files."""
        yield from self._run()
        if self.odd:
            self.read = prefetch(self._alone(self.odd))
            yield from self._run()

    def _run(self) -> Iterator[FileOutcome]:
        while self._move_next():
            # The batch before this one has had the time of a whole batch to be written.
            yield from self._take_written()
            self._hand_to_writer()
        yield from self._take_written()

    def _batches(self, jobs: Sequence[FileJob]) -> Iterator[_Batch | LaneBatch]:
        """Batches of all jobs: files of one table together, where there are enough of them."""
        alone: list[FileJob] = []
        headers = HeaderTables()
        named = sorted(_named(jobs, headers), key=_place)
        for (_, name), group in groupby(named, key=_place):
            if self.closed:
                return
            same = [job for *_, job in group]
            lane = None
            if name:
                given = self.pair, self.options, self.writing, BATCH_BYTES, headers, self.progress
                lane = open_lane(same, *given)
            if lane is None:
                alone += same
                continue
            self.lane = lane
            yield from lane.batches(same)
        yield from self._alone(alone)

    def _alone(self, jobs: Sequence[FileJob]) -> Iterator[_Batch]:
        """Batches of files that are read one by one, whatever is in them."""
        batch: _Batch = []
        rows = size = 0
        for job in jobs:
            given = self.pair, self.options, self.writing, self.progress
            item = _isolated(job, lambda job=job, given=given: read_job(job, *given))
            more = (item.rows, item.size) if isinstance(item, Prepared) else (0, 0)
            if rows and (rows + more[0] > BATCH_ROWS or size + more[1] > BATCH_BYTES):
                yield batch
                batch, rows, size = [], 0, 0
            batch.append(item)
            rows, size = rows + more[0], size + more[1]
        if batch:
            yield batch

    def _move_next(self) -> bool:
        """Move the next batch into `moved`; False when there is none."""
        batch = next(self.read, None)
        if batch is None:
            return False
        if isinstance(batch, LaneBatch):
            self._move_lane(batch)
            return True
        prepared = [item for item in batch if isinstance(item, Prepared)]
        self.moved.extend(item for item in batch if isinstance(item, FileOutcome))
        started = time.perf_counter()
        results = self._results(prepared)
        share = (time.perf_counter() - started) / max(len(prepared), 1)
        for item, result in zip(prepared, results, strict=True):
            if isinstance(result, FileOutcome):
                self.moved.append(result)
            else:
                self.moved.append(_Moved(item._replace(seconds=item.seconds + share), result))
        return True

    def _move_lane(self, batch: LaneBatch) -> None:
        try:
            good = batch.move(self.placed)
        except BaseModelError:
            raise
        except Exception as error:  # noqa: BLE001 (the next batch may do better)
            failed = error if isinstance(error, ProloraError) else unexpected(error, "its batch")
            self.moved.extend(FileOutcome(job, error=failed) for job in batch.jobs)
            return
        self.moved.extend(_OnLane(batch, read, share) for read, share in good)
        self.odd += batch.odd

    def _results(self, prepared: Sequence[Prepared]) -> Sequence[Results | FileOutcome]:
        """Results of a batch; what fails in it fails for each of its files, and for no other."""
        works = [item.work for item in prepared]
        try:
            return move_all(works, self.pair, self.options, placed=self.placed)
        except BaseModelError:
            raise
        except Exception as error:  # noqa: BLE001 (the next batch may do better)
            failed = error if isinstance(error, ProloraError) else unexpected(error, "its batch")
            return [FileOutcome(item.job, error=failed) for item in prepared]

    def _hand_to_writer(self) -> None:
        while self.moved:
            self.written.append(self.writer.submit(self._finish, self.moved.popleft()))

    def _finish(self, moved: "FileOutcome | _Moved | _OnLane") -> FileOutcome:
        """Write one file and say so; runs in the writing thread."""
        if isinstance(moved, _Moved):
            outcome = write_job(moved.item, moved.results, self.pair, self.writing)
        elif isinstance(moved, _OnLane):
            outcome = self._write_on_lane(moved)
        else:
            outcome = moved
        if self.finish is not None:
            self.finish(outcome)
        return outcome

    def _write_on_lane(self, moved: _OnLane) -> FileOutcome:
        on_lane, read = moved.batch, moved.read
        assert on_lane.batch is not None  # it has moved
        output = on_lane.batch.outputs.get(read.file, on_lane.lane.output)
        given = on_lane.batch, read, output, self.pair, self.writing, moved.seconds
        try:
            return _isolated(read.job, lambda: write(*given))
        finally:
            on_lane.one_written()

    def _take_written(self) -> Iterator[FileOutcome]:
        """Outcomes of what was handed to the writing thread, when they are there."""
        for future in self.written:
            self.done += 1
            if self.progress is not None:
                self.progress("files", self.done, self.total)
            yield future.result()
        self.written.clear()


def _named(jobs: Sequence[FileJob], headers: HeaderTables) -> Iterator[tuple[int, str, FileJob]]:
    """Jobs with the class of their rank and the name of their table, which may be empty."""
    ranks: dict[str, int] = {}
    for job in jobs:
        name, rank = table_name(job, headers) or "", job.rank
        if rank is None:
            rank = ranks.get(name) if name else None
        if rank is None:
            rank = ranks[name] = likely_rank(job.source)
        yield rank_class(rank), name, job


def _place(named: tuple[int, str, FileJob]) -> tuple[int, str]:
    return named[:2]


T = TypeVar("T")


def _isolated(job: FileJob, run: Callable[[], T]) -> T | FileOutcome:
    """The result, or the error as this file's outcome; a bad base model ends the whole run."""
    try:
        return run()
    except BaseModelError:
        raise
    except Exception as error:  # noqa: BLE001 (thousands of files wait behind this one)
        return FileOutcome(job, error=as_outcome(error, job.source))


def read_job(
    job: FileJob,
    pair: BasePair,
    options: MigrationOptions,
    writing: Writing,
    progress: Progress | None = None,
) -> Prepared:
    """Read one adapter and plan its migration.

    Args:
        job: what and where to.
        pair: source and target.
        options: of the migration.
        writing: whether there may be an output already.
        progress: called while bases are computed and compared.

    Raises:
        ProloraError: it cannot be migrated.
    """
    started = time.perf_counter()
    refuse_outputs(job.source, job.output, for_job(job, writing))
    # The scan of a catalog has looked at the licences of its files.
    folder = job.source.is_dir() and writes_folder(job.output, "peft")
    fitted = read_fitted(
        job.source, pair.source, options, writing, licence_seen=True, folder=folder
    )
    adapter, plan = fitted.adapter, plan_fitted(fitted, pair, options, progress)
    require_room_for(adapter, plan, pair.target.spec, writing, job.output)
    rows = max(map(rank_class, adapter.ranks), default=0)
    work = Work.of(adapter, plan)
    # A whole layer of a large vocabulary takes more than all pairs together.
    size = sum(m.nbytes for m in work.modules.values())
    size += sum(companion.array.nbytes for companion in adapter.companions)
    energy = energy_that_moves(adapter, plan)
    seconds = time.perf_counter() - started
    return Prepared(job, AdapterHeader.of(adapter), plan, work, rows, size, energy, seconds)


def energy_that_moves(adapter: Adapter, plan: MigrationPlan) -> tuple[float, float]:
    """Squared norm of an adapter's update, and of its modules that a plan moves."""
    moving = {step.source_path for step in plan.steps}
    # Not `** 2`, which is C's `pow` and rounds otherwise one time in a thousand: whole batches are
    # squared by products.
    norms = {module.path: norm_of(module) for module in adapter.modules}
    squares = {path: norm * norm for path, norm in norms.items()}
    # In the order of the file: sums depend on it, and reports are to be the same every time.
    return sum(squares.values()), sum(s for path, s in squares.items() if path in moving)


def write_job(item: Prepared, results: Results, pair: BasePair, writing: Writing) -> FileOutcome:
    """Write one adapter and its report; an error is its outcome."""

    def run() -> FileOutcome:
        started = time.perf_counter()
        migrated, report = encode(item.header, item.plan, results, pair)
        if item.job.replace:
            clear_folder(item.job.output)
        how, target = for_job(item.job, writing), pair.target.spec
        report = as_written(migrated, report, target, how)
        brief = None if writing.pair is None else FileReport.of(report, item.energy, writing.pair)
        write_migrated(migrated, brief or report, item.job.output, target, how)
        seconds = item.seconds + time.perf_counter() - started
        return FileOutcome(item.job, report, energy=item.energy, seconds=seconds)

    return _isolated(item.job, run)
