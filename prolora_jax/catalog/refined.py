"""Adapters refined to files, one or a folder of them: what a pair's adapters share is made once."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from prolora_jax.catalog.catalog import catalog_status, inputs_of, run_catalog
from prolora_jax.catalog.run import CatalogJob
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import ProloraError, Refusal
from prolora_jax.io.adapters.leftovers import work_folder_of
from prolora_jax.io.outputs.reports import read_report
from prolora_jax.migration.files import refuse_outputs
from prolora_jax.migration.jobs import FileJob, FileOutcome
from prolora_jax.migration.one_file import is_one
from prolora_jax.migration.opening import open_pair
from prolora_jax.plans.catalog_record import FINISHED
from prolora_jax.plans.report import MigrationReport
from prolora_jax.refine.job.bases import DrawingBases
from prolora_jax.refine.job.files import FileRefinement, RefinedFile, RefineRequest
from prolora_jax.subspaces.store import BasisStore


@dataclass(frozen=True)
class RefinedFiles:
    """What came of the files of one command.

    Attributes:
        found: of each that was worked on, or refused.
        finished_before: outputs that were there, whole, from an earlier run.
        passed_over: what was left out on purpose, and why, by path.
    """

    found: tuple[RefinedFile, ...]
    finished_before: tuple[Path, ...]
    passed_over: dict[str, str]

    @property
    def refused(self) -> tuple[RefinedFile, ...]:
        """Those that were refused."""
        return tuple(one for one in self.found if one.report is None)


def refine_files(
    inputs: Sequence[str | Path],
    out: str | Path,
    bases: DrawingBases,
    request: RefineRequest,
    *,
    store: BasisStore | None = None,
    workers: int = 1,
    progress: Progress = lambda stage, done, total: None,
) -> RefinedFiles:
    """Refine adapters: a file to a file, or several, or folders of them, to a folder.

    What was done is kept beside the output (`OUT.refine-work`) until all is done: a run that was
    killed goes on where it was, and gives the same files. A folder has a manifest, as a migrated
    catalog has: what is finished is not done again, unless its input or what is asked is another.

    Args:
        inputs: adapter files, folders that peft wrote, or folders of adapters.
        out: the file of one adapter; the folder of several.
        bases: where both base models draw from.
        request: what is asked.
        store: where fingerprints of base models are found and kept.
        workers: processes for what has to be computed.
        progress: called with (what, done, total).

    Returns:
        What came of each.

    Raises:
        UsageError: an output exists, an input or a base model is not there, or another run writes
            to the folder.
        AdapterRefused: the one adapter cannot be refined; of several each is listed.
        BaseModelError: a base model cannot be used, or both speak of different latents.
        OutputError: an output or the manifest cannot be written.
    """
    given, out = tuple(Path(path) for path in inputs), Path(out)
    work = work_folder_of(out)
    many = None if is_one(given) else CatalogJob(given, out, request.options, retry=True)
    if many is not None:
        inputs_of(many)  # what is not there is said before anything is opened
    else:
        # What a run that was killed has left half done is its own.
        own = request.writing._replace(overwrite=request.writing.overwrite or work.is_dir())
        refuse_outputs(given[0], out, own, read=(*given, bases.source, bases.target))
    pair = open_pair(bases.source, bases.target, store, workers)
    may_write = replace(request, writing=request.writing._replace(overwrite=True))
    refinement = FileRefinement(bases, pair, may_write, work, progress)
    if many is None:
        (found,) = refinement.refine([(given[0], out)])
        if found.refusal is not None:
            raise found.refusal
        refinement.close()
        return RefinedFiles((found,), (), {})
    teaching = _TaughtFiles(refinement, progress)
    writing = refinement.request.writing._replace(overwrite=request.writing.overwrite)
    run_catalog(replace(many, writing=writing, teaching=teaching), pair, progress)
    refinement.close()
    return _accounted(many, teaching)


@dataclass
class _TaughtFiles:
    """A refinement as what makes a catalog's outputs; a `Teaching`.

    Attributes:
        refinement: of the pair.
        progress: called with ("files", done, total).
        reports: of what was made, by output.
    """

    refinement: FileRefinement
    progress: Progress
    reports: dict[Path, MigrationReport] = field(default_factory=dict)
    sentence: str | None = None

    @property
    def stamp(self) -> str:
        """Of pair, recipe and words."""
        return self.refinement.stamp

    @property
    def said(self) -> dict[str, object]:
        """The method, for people."""
        if self.refinement.request.decides:
            return {"method": "auto"}
        return {"method": "copy", "refine": True}

    def move(
        self, jobs: Sequence[FileJob], finish: Callable[[FileOutcome], None]
    ) -> Iterator[FileOutcome]:
        """Refine files, some at a time."""
        places = {job.output: job for job in jobs}
        self.progress("files", 0, len(jobs))
        began = time.perf_counter()
        for done, one in enumerate(
            self.refinement.refine([(job.source, job.output) for job in jobs]), 1
        ):
            now = time.perf_counter()
            outcome = FileOutcome(
                places[one.output], one.report, one.refusal, one.energy, now - began
            )
            began = now
            if one.report is not None:
                self.reports[one.output] = one.report
                self._note(one.report)
            finish(outcome)
            self.progress("files", done, len(jobs))
            yield outcome

    def is_same(self, path: Path, output: Path) -> bool:
        """Whether an output was made of this very file."""
        try:
            report = _report_of(output)
        except (ProloraError, OSError):
            return False
        self._note(report)
        return self.refinement.is_same(path, report)

    def _note(self, report: MigrationReport) -> None:
        if report.refined is not None:
            self.sentence = report.refined.sentence


def _accounted(job: CatalogJob, teaching: _TaughtFiles) -> RefinedFiles:
    """What the manifest says of each file."""
    paths = {item.relative.as_posix(): item.path for item in inputs_of(job)}
    records = {record.input: record for record in catalog_status(job.out)[1]}
    found, before, passed = [], [], {}
    for record in records.values():
        path = paths.get(record.input, Path(record.input))
        output = job.out / (record.output or record.input)
        first = records.get(record.duplicate_of or record.input, record)
        report = teaching.reports.get(job.out / str(first.output))
        if record.state == "ignored":
            passed[str(path)] = record.message or ""
        elif record.state not in FINISHED:
            code = Refusal(record.reason or Refusal.INTERNAL)
            refusal = ProloraError(record.message or "", code=code)
            found.append(RefinedFile(path, output, None, refusal))
        elif report is not None:
            found.append(RefinedFile(path, output, report))
        else:
            before.append(output)
    return RefinedFiles(tuple(found), tuple(before), passed)


def _report_of(output: Path) -> MigrationReport:
    told: Any = read_report(output)
    return msgspec.convert(told, MigrationReport)
