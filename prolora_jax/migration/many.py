"""Many adapter files through the engine: read ahead, migrate in batches, write behind.

One thread reads and plans the next batch while the device works on this one, another writes the
last one. A batch is as many files as fill the engine's blocks (`BATCH_ROWS` rank columns) and fit
`BATCH_BYTES`; files of like rank come together. What concerns one file only, a refusal or a full
disk, is that file's outcome, and the rest goes on.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.adapters.detection import check_base
from prolora_jax.adapters.formats.dumping import concrete_format
from prolora_jax.adapters.formats.resolution import resolve
from prolora_jax.engines.prefetch import prefetch
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import BaseModelError, ProloraError, Refusal, UsageError
from prolora_jax.io.adapters.files import load_adapter, refuse_existing, save_adapter, writes_folder
from prolora_jax.io.adapters.inputs import likely_rank
from prolora_jax.io.outputs.catalog_files import remove_output
from prolora_jax.io.outputs.reports import report_path, write_report
from prolora_jax.migration.blocks import rank_class
from prolora_jax.migration.execute import Results, Work, move_all
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.single import AdapterHeader, encode, make_plan
from prolora_jax.plans.folder_report import FileReport
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import MigrationPlan
from prolora_jax.plans.report import MigrationReport

BATCH_ROWS = 512
"""Rank columns of a batch per module: one wide block (`blocks.WIDTHS`)."""

BATCH_BYTES = 3 * 2**28
"""Of a batch's input: enough for a wide block of attention layers of SDXL's size at rank 16.

Up to four times as much is held at once: this batch's input or output, the next one's input, and
the output of the one that is being written, which may have twice the input's rank.
"""


class FileJob(NamedTuple):
    """One adapter file (or folder) and where its output goes.

    Attributes:
        source: the input.
        output: the output.
        rank: the largest rank in it, where that is known; files of like rank come together.
        replace: an output that is there is an earlier one of this job, and may be replaced.
    """

    source: Path
    output: Path
    rank: int | None = None
    replace: bool = False


class Writing(NamedTuple):
    """How files are read and written.

    Attributes:
        format: one of `formats.FORMATS`, `same`, or `kohya`.
        strip_metadata: whether header strings are left out.
        overwrite: whether outputs that are there may be replaced.
        allow_pickle: whether pickles are read.
        sidecars: whether files beside an adapter go with its output.
        ignore_license: whether adapters are migrated whose licence forbids derivatives.
        pair: digest of the folder's `pair.report.json`: reports refer to it, and hold totals;
            None for whole reports.
    """

    format: str = "same"
    strip_metadata: bool = False
    overwrite: bool = False
    allow_pickle: bool = False
    sidecars: bool = False
    ignore_license: bool = False
    pair: str | None = None


class FileOutcome(NamedTuple):
    """What became of one file: a report, or an error.

    Attributes:
        job: what was to be done.
        report: what was done.
        error: why it was not.
        energy: squared norm of the input's update, and of the modules that move.
        seconds: of reading, planning and writing it, and its share of its batch.
    """

    job: FileJob
    report: MigrationReport | None = None
    error: ProloraError | None = None
    energy: tuple[float, float] | None = None
    seconds: float | None = None


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
    how = writing or Writing()
    done = 0
    ordered = sorted(jobs, key=_order)
    batches = prefetch(_batches(ordered, pair, options, how, progress))

    def finished(outcome: FileOutcome) -> FileOutcome:
        if finish is not None:
            finish(outcome)
        return outcome

    def write(item: Prepared, result: Results | FileOutcome) -> FileOutcome:
        return finished(_written(item, result, pair, how))

    writer = ThreadPoolExecutor(1, "write")
    try:
        written: list[Future[FileOutcome]] = []

        def outcomes() -> Iterator[FileOutcome]:
            nonlocal done
            for future in written:
                done += 1
                if progress is not None:
                    progress("files", done, len(jobs))
                yield future.result()
            written.clear()

        for batch in batches:
            prepared = [item for item in batch if isinstance(item, Prepared)]
            started = time.perf_counter()
            results = _moved(prepared, pair, options)
            share = (time.perf_counter() - started) / max(len(prepared), 1)
            # The batch before this one has had the time of a whole batch to be written.
            yield from outcomes()
            refused = [item for item in batch if isinstance(item, FileOutcome)]
            written += [writer.submit(finished, item) for item in refused]
            timed = (item._replace(seconds=item.seconds + share) for item in prepared)
            for moved in zip(timed, results, strict=True):
                written.append(writer.submit(write, *moved))
                del moved
            # Kept alive by names of the last turn, a batch would be held while the next one runs.
            del batch, prepared, results
        yield from outcomes()
    finally:
        # An interrupt, or a consumer that stops, waits for one file and not for a whole batch.
        writer.shutdown(cancel_futures=True)


def _order(job: FileJob) -> int:
    return rank_class(likely_rank(job.source) if job.rank is None else job.rank)


def _moved(
    prepared: Sequence[Prepared], pair: BasePair, options: MigrationOptions
) -> Sequence[Results | FileOutcome]:
    """Results of a batch; what fails in it fails for each of its files, and for no other."""
    try:
        return move_all([item.work for item in prepared], pair, options)
    except BaseModelError:
        raise
    except Exception as error:  # noqa: BLE001 (the next batch may do better)
        failed = error if isinstance(error, ProloraError) else _unexpected(error, "its batch")
        return [FileOutcome(item.job, error=failed) for item in prepared]


def _unexpected(error: Exception, where: object) -> ProloraError:
    return ProloraError(
        f"{where}: internal error, please report it: {type(error).__name__}: {error}",
        code=Refusal.INTERNAL,
    )


def _written(
    item: Prepared, result: Results | FileOutcome, pair: BasePair, writing: Writing
) -> FileOutcome:
    return result if isinstance(result, FileOutcome) else write_job(item, result, pair, writing)


def _batches(
    jobs: Sequence[FileJob],
    pair: BasePair,
    options: MigrationOptions,
    writing: Writing,
    progress: Progress | None,
) -> Iterator[list[Prepared | FileOutcome]]:
    batch: list[Prepared | FileOutcome] = []
    rows = size = 0
    for job in jobs:
        item = _isolated(job, lambda job=job: read_job(job, pair, options, writing, progress))
        more = (item.rows, item.size) if isinstance(item, Prepared) else (0, 0)
        if rows and (rows + more[0] > BATCH_ROWS or size + more[1] > BATCH_BYTES):
            yield batch
            batch, rows, size = [], 0, 0
        batch.append(item)
        rows, size = rows + more[0], size + more[1]
    if batch:
        yield batch


T = TypeVar("T")


def _isolated(job: FileJob, run: Callable[[], T]) -> T | FileOutcome:
    """The result, or the error as this file's outcome; a bad base model ends the whole run."""
    try:
        return run()
    except BaseModelError:
        raise
    except ProloraError as error:
        return FileOutcome(job, error=error)
    except OSError as error:
        message = f"{job.source}: cannot be read ({error.strerror or error}); check the disk"
        return FileOutcome(job, error=UsageError(message, code=Refusal.MISSING_FILE))
    except Exception as error:  # noqa: BLE001 (thousands of files wait behind this one)
        return FileOutcome(job, error=_unexpected(error, job.source))


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
    started, overwrite = time.perf_counter(), writing.overwrite or job.replace
    refuse_existing(job.output, overwrite, folder=_is_folder(job, writing))
    refuse_existing(report_path(job.output), overwrite)
    adapter = load_adapter(
        job.source.resolve(),
        alpha_zero=options.alpha_zero,
        allow_pickle=writing.allow_pickle,
        quiet=writing.pair is not None,
    )
    check_base(adapter, pair.source.spec, options.assume_base)
    adapter = resolve(adapter, pair.source.spec)
    plan = make_plan(adapter, pair, options, progress)
    rows = max(map(rank_class, adapter.ranks), default=0)
    work = Work.of(adapter, plan)
    size = sum(m.up.nbytes + m.down.nbytes for m in work.modules.values())
    energy = energy_that_moves(adapter, plan)
    seconds = time.perf_counter() - started
    return Prepared(job, AdapterHeader.of(adapter), plan, work, rows, size, energy, seconds)


def energy_that_moves(adapter: Adapter, plan: MigrationPlan) -> tuple[float, float]:
    """Squared norm of an adapter's update, and of its modules that a plan moves."""
    moving = {step.source_path for step in plan.steps}
    squares = {module.path: module.norm**2 for module in adapter.modules}
    return sum(squares.values()), sum(squares[path] for path in moving)


def _is_folder(job: FileJob, writing: Writing) -> bool:
    same = job.source.is_dir() and writing.format == "same"
    return writes_folder(job.output, "peft" if same else writing.format)


def write_job(item: Prepared, results: Results, pair: BasePair, writing: Writing) -> FileOutcome:
    """Write one adapter and its report; an error is its outcome."""

    def run() -> FileOutcome:
        started = time.perf_counter()
        migrated, report = encode(item.header, item.plan, results, pair)
        if item.job.replace and item.job.output.is_dir():
            remove_output(item.job.output)  # a folder that is new appears whole
        save_adapter(
            migrated,
            item.job.output,
            format=concrete_format(writing.format, migrated, pair.target.spec),
            base=pair.target.spec,
            strip_metadata=writing.strip_metadata,
            overwrite=writing.overwrite or item.job.replace,
        )
        brief = None if writing.pair is None else FileReport.of(report, item.energy, writing.pair)
        write_report(item.job.output, brief or report)
        seconds = item.seconds + time.perf_counter() - started
        return FileOutcome(item.job, report, energy=item.energy, seconds=seconds)

    return _isolated(item.job, run)
