"""Many adapter files through the engine: read ahead, migrate in batches, write behind.

One thread reads and plans the next batch while the device works on this one, another writes the
last one. A batch is as many files as fill the engine's blocks (`BATCH_ROWS` rank columns) and fit
`BATCH_BYTES`; files of like rank come together. What concerns one file only, a refusal or a full
disk, is that file's outcome, and the rest goes on.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from prolora_jax.bases import Progress
from prolora_jax.blocks import rank_class
from prolora_jax.detection import check_base
from prolora_jax.errors import BaseModelError, ProloraError
from prolora_jax.execute import Results, Work, move_all
from prolora_jax.formats import concrete_format, resolve
from prolora_jax.io.adapters import load_adapter, refuse_existing, save_adapter, writes_folder
from prolora_jax.io.inputs import likely_rank
from prolora_jax.io.reports import report_path, write_report
from prolora_jax.migrate import Header, encode, make_plan
from prolora_jax.options import MigrationOptions
from prolora_jax.pair import BasePair
from prolora_jax.plan import MigrationPlan
from prolora_jax.prefetch import prefetch
from prolora_jax.report import MigrationReport

BATCH_ROWS = 512
"""Rank columns of a batch per module: one wide block (`blocks.WIDTHS`)."""

BATCH_BYTES = 3 * 2**28
"""Of a batch's input: enough for a wide block of attention layers of SDXL's size at rank 16.

Up to four times as much is held at once: this batch's input or output, the next one's input, and
the output of the one that is being written, which may have twice the input's rank.
"""


class FileJob(NamedTuple):
    """One adapter file (or folder) and where its output goes."""

    source: Path
    output: Path


class Writing(NamedTuple):
    """How files are read and written."""

    format: str = "same"
    strip_metadata: bool = False
    overwrite: bool = False
    allow_pickle: bool = False


class Outcome(NamedTuple):
    """What became of one file: a report, or an error."""

    job: FileJob
    report: MigrationReport | None = None
    error: ProloraError | None = None


class Prepared(NamedTuple):
    """One adapter read and planned: what `move_all` and `write_job` need of it."""

    job: FileJob
    header: Header
    plan: MigrationPlan
    work: Work
    rows: int
    size: int


def migrate_files(
    jobs: Sequence[FileJob],
    pair: BasePair,
    options: MigrationOptions,
    writing: Writing | None = None,
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Migrate files; each one's output and report are on the disk when its outcome comes.

    Args:
        jobs: what to do.
        pair: source and target.
        options: of every migration.
        writing: formats, and what may be overwritten.
        progress: called with ("files", done, total), and by the stages of the first batches.

    Yields:
        One outcome per job, in the order in which they are done.

    Raises:
        BaseModelError: a base model cannot be read; nothing can be migrated then.
    """
    writing = writing or Writing()
    done = 0
    ordered = sorted(jobs, key=lambda job: rank_class(likely_rank(job.source)))
    batches = prefetch(_batches(ordered, pair, options, writing, progress))
    with ThreadPoolExecutor(1, "write") as writer:
        written: list[Future[Outcome]] = []

        def outcomes() -> Iterator[Outcome]:
            nonlocal done
            for future in written:
                done += 1
                if progress is not None:
                    progress("files", done, len(jobs))
                yield future.result()
            written.clear()

        for batch in batches:
            prepared = [item for item in batch if isinstance(item, Prepared)]
            results = move_all([item.work for item in prepared], pair, options)
            # The batch before this one has had the time of a whole batch to be written.
            yield from outcomes()
            written += [writer.submit(_same, item) for item in batch if isinstance(item, Outcome)]
            written += [
                writer.submit(write_job, item, result, pair, writing)
                for item, result in zip(prepared, results, strict=True)
            ]
            del batch, prepared, results
        yield from outcomes()


def _same(outcome: Outcome) -> Outcome:
    return outcome


def _batches(
    jobs: Sequence[FileJob],
    pair: BasePair,
    options: MigrationOptions,
    writing: Writing,
    progress: Progress | None,
) -> Iterator[list[Prepared | Outcome]]:
    batch: list[Prepared | Outcome] = []
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


def _isolated(job: FileJob, run: Callable[[], T]) -> T | Outcome:
    """The result, or the error as this file's outcome; a bad base model ends the whole run."""
    try:
        return run()
    except BaseModelError:
        raise
    except ProloraError as error:
        return Outcome(job, error=error)


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
    refuse_existing(job.output, writing.overwrite, folder=_is_folder(job, writing))
    refuse_existing(report_path(job.output), writing.overwrite)
    adapter = load_adapter(
        job.source.resolve(), alpha_zero=options.alpha_zero, allow_pickle=writing.allow_pickle
    )
    check_base(adapter, pair.source.spec, options.assume_base)
    adapter = resolve(adapter, pair.source.spec)
    plan = make_plan(adapter, pair, options, progress)
    rows = max(map(rank_class, adapter.ranks), default=0)
    work = Work.of(adapter, plan)
    size = sum(m.up.nbytes + m.down.nbytes for m in work.modules.values())
    return Prepared(job, Header.of(adapter), plan, work, rows, size)


def _is_folder(job: FileJob, writing: Writing) -> bool:
    same = job.source.is_dir() and writing.format == "same"
    return writes_folder(job.output, "peft" if same else writing.format)


def write_job(item: Prepared, results: Results, pair: BasePair, writing: Writing) -> Outcome:
    """Write one adapter and its report; an error is its outcome."""

    def run() -> Outcome:
        migrated, report = encode(item.header, item.plan, results, pair)
        save_adapter(
            migrated,
            item.job.output,
            format=concrete_format(writing.format, pair.target.spec),
            base=pair.target.spec,
            strip_metadata=writing.strip_metadata,
            overwrite=writing.overwrite,
        )
        write_report(item.job.output, report)
        return Outcome(item.job, report)

    return _isolated(item.job, run)
