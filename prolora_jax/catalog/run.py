"""One run over the scanned files of a catalog: what is unfinished, done, and noted.

A row of the manifest says that an output is there only after it is.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from prolora_jax.catalog.outlook import Moving, Tally
from prolora_jax.catalog.scan import Scanned, duplicates
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import ProloraError, Refusal, UsageError
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.adapters.sidecars import Carried, Folders, carry
from prolora_jax.io.outputs.catalog_files import copy_output, file_hash, stamp
from prolora_jax.io.outputs.manifest import SAID, Manifest, ManifestRow, Proof
from prolora_jax.io.outputs.protected import Protected, with_content, would_replace
from prolora_jax.io.outputs.reports import read_any_report, report_path
from prolora_jax.migration.files import Writing
from prolora_jax.migration.jobs import FileJob, FileOutcome, as_outcome
from prolora_jax.migration.many import migrate_files
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.catalog_record import FINISHED, CatalogRecord, failed_record
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.report import MigrationReport

_DIGEST = 64
"""Letters of what a header said, in a stamp."""
FROM_ZERO = "from-zero"
"""Flag of a module that was learned from nothing, as it could not be copied."""


@runtime_checkable
class Teaching(Protocol):
    """What makes outputs of a catalog out of copies: a refinement."""

    @property
    def stamp(self) -> str:
        """A digest of all that outputs depend on, beside inputs and the copies' options."""
        ...

    @property
    def said(self) -> Mapping[str, object]:
        """What is asked, for the catalog's facts."""
        ...

    @property
    def sentence(self) -> str | None:
        """How the two base models relate, by their samples; None where none were drawn."""
        ...

    def move(
        self, jobs: Sequence[FileJob], finish: Callable[[FileOutcome], None]
    ) -> Iterator[FileOutcome]:
        """Do jobs, one outcome each: `finish` is called with each when its output is there."""
        ...

    def is_same(self, path: Path, output: Path) -> bool:
        """Whether a file that was touched is still the one that an output was made of."""
        ...


@dataclass(frozen=True)
class CatalogJob:
    """What is to be done with a catalog.

    Attributes:
        inputs: files and folders.
        out: the output folder; it gets the same tree.
        options: of every migration.
        writing: formats, and whether outputs of others may be replaced.
        retry: whether files that were refused or failed before are tried again.
        fail_fast: stop at the first file that is refused when it is read.
        teaching: what makes outputs, where copies are taught; None for a migration.

    Raises:
        UsageError: from the constructor, when the output folder is a file.
    """

    inputs: tuple[Path, ...]
    out: Path
    options: MigrationOptions = MigrationOptions()
    writing: Writing = Writing()
    retry: bool = False
    fail_fast: bool = False
    teaching: Teaching | None = None

    def __post_init__(self):
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(
                f"{self.out}: found a file; expected a folder for several outputs; choose another",
                code=Refusal.OUTPUT_EXISTS,
            )


class CatalogRun:
    """One run over scanned files."""

    def __init__(
        self,
        job: CatalogJob,
        manifest: Manifest,
        found: Sequence[Scanned],
        pair: BasePair,
        digest: str,
    ):
        self.job, self.manifest, self.pair = job, manifest, pair
        self.writing = job.writing._replace(pair=digest)
        self.found = {one.record.input: one for one in found}
        self.same = duplicates(found, job.options)
        self.known = {entry.record.input: entry for entry in manifest.entries()}
        self.todo: list[Scanned] = []

    def plan(self) -> None:
        """Decide what is unfinished, and note all of it before anything is written."""
        entries = []
        read = Protected((*(one.item.path for one in self.found.values()), *_locations(self.pair)))
        for name, one in self.found.items():
            known = self.known.get(name)
            if one.record.output is None:
                entries.append(ManifestRow(one.record, Proof(None, _read_stamp(one))))
                continue
            try:
                kept = None if known is None else self._kept(one, known)
            except Exception as error:  # noqa: BLE001 (thousands of files wait behind this one)
                told = as_outcome(error, one.item.path)
                failed = failed_record(one.record, told.code, str(told))
                entries.append(ManifestRow(failed, self._proof(one)))
                continue
            if kept is not None:
                entries.append(kept)
                continue
            output = self.job.out / one.record.output
            replaced = read.replaced_by(with_content(output))
            if replaced is not None:
                message = f"{output}: {would_replace(replaced)}"
                failed = failed_record(one.record, Refusal.OUTPUT_EXISTS, message)
                entries.append(ManifestRow(failed, Proof()))
                continue
            if not (_made(known, one) or self.job.writing.overwrite) and _exists(output):
                message = (
                    f"{output}: exists already and no run over this folder has made it; expected "
                    "no file there; use --overwrite, or name another folder"
                )
                entries.append(
                    ManifestRow(failed_record(one.record, Refusal.OUTPUT_EXISTS, message), Proof())
                )
                continue
            entries.append(ManifestRow(one.record, Proof()))
            self.todo.append(one)
        self.manifest.remove(self.known.keys() - self.found.keys())
        self.manifest.put(*entries)

    def _kept(self, one: Scanned, known: ManifestRow) -> ManifestRow | None:
        """The record of a file that is done; None when it has to be done (again)."""
        record, proof = known.record, known.proof
        if proof.job != one.outlook.job or record.output != one.record.output:
            return None
        touched, edited = _changes(one, proof)
        if edited or (touched and not self._same_content(one, record)):
            return None
        if record.state not in FINISHED:
            return None if self.job.retry or record.state == "planned" else known
        if record.duplicate_of != self.same.get(record.input):
            return None
        output = self.job.out / str(record.output)
        now = _stamp(output)
        if now is None or not _reported(output, record):
            return None
        if now != proof.output_stamp and file_hash(output) != record.output_hash:
            return None
        return ManifestRow(record, Proof(proof.job, _read_stamp(one), now))

    def _same_content(self, one: Scanned, record: CatalogRecord) -> bool:
        if self.job.teaching is not None:
            return self.job.teaching.is_same(one.item.path, self.job.out / str(record.output))
        try:
            adapter = load_adapter(
                one.item.path,
                self.pair.source.spec,
                alpha_zero=self.job.options.alpha_zero,
                allow_pickle=self.writing.allow_pickle,
                quiet=True,
                structured=True,
            )
        except (ProloraError, OSError):
            return False  # it is reported when it is read
        return adapter.fingerprint == record.input_hash

    def migrate(self, progress: Progress | None) -> None:
        """Migrate what is unfinished and no duplicate of another file."""
        places = {self.job.out / str(one.record.output): one for one in self.todo}
        jobs = [
            FileJob(one.item.path, output, one.outlook.rank, replace=True, table=one.table)
            for output, one in places.items()
            if one.record.input not in self.same
        ]

        def finish(outcome: FileOutcome) -> None:
            one = places[outcome.job.output]
            try:
                entry = self._entry(one, outcome)
            except Exception as error:  # noqa: BLE001 (thousands of files wait behind this one)
                entry = self._not_kept(one, outcome, error)
            self.manifest.put(entry)

        if self.job.teaching is not None:
            moved = self.job.teaching.move(jobs, finish)
        else:
            how = self.job.options, self.writing, progress, finish
            moved = migrate_files(jobs, self.pair, *how)
        for outcome in moved:
            if outcome.error is not None and self.job.fail_fast:
                break

    def _entry(self, one: Scanned, outcome: FileOutcome) -> ManifestRow:
        """What a migration came to; runs in the writing thread, behind the output."""
        record, report = replace(one.record, seconds=outcome.seconds), outcome.report
        if outcome.error is not None or report is None or outcome.energy is None:
            code = Refusal.INTERNAL if outcome.error is None else outcome.error.code
            return ManifestRow(failed_record(record, code, str(outcome.error)), self._proof(one))
        moving = [
            Moving(
                m.source_path,
                None if m.phi_left is None or m.phi_right is None else (m.phi_left, m.phi_right),
                m.flags,
            )
            for m in report.modules
        ]
        taught = () if report.refined is None else report.refined.from_zero
        moving += [Moving(m.path, None, (FROM_ZERO,)) for m in taught]
        now = stamp(outcome.job.output)
        digest = outcome.written or file_hash(outcome.job.output)
        record = replace(
            Tally.of(moving, report.skipped, report.flags).on(record),
            state="migrated",
            message=report.decided,
            energy_in=outcome.energy[0],
            energy_moved=outcome.energy[1],
            energy_out=sum(m.norm_out**2 for m in report.modules) + sum(m.norm**2 for m in taught),
            input_hash=report.input.fingerprint,
            output_hash=digest,
            size_out=now and now[1],
        )
        return ManifestRow(record, self._proof(one, now and now[0]))

    def _not_kept(self, one: Scanned, outcome: FileOutcome, error: Exception) -> ManifestRow:
        """A file whose output was written and could not be read when it was to be noted."""
        record = replace(one.record, seconds=outcome.seconds)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            message = (
                f"{outcome.job.output}: was written and cannot be read now ({reason}); expected it "
                "to stay; see what removes or locks files there, then use --retry-failed"
            )
            return ManifestRow(
                failed_record(record, Refusal.CANNOT_WRITE, message), self._proof(one)
            )
        told = as_outcome(error, one.item.path)
        return ManifestRow(failed_record(record, told.code, str(told)), self._proof(one))

    def _proof(self, one: Scanned, output: str | None = None) -> Proof:
        return Proof(one.outlook.job, _read_stamp(one), output)

    def link_duplicates(self) -> None:
        """Give files with the content of another one its output, under their own names."""
        done = {entry.record.input: entry for entry in self.manifest.entries()}
        for one in self.todo:
            name = one.record.input
            if name not in self.same:
                continue
            first = done[self.same[name]].record
            if first.state == "planned":
                continue  # the run was told to stop before it came to it
            if first.state != "migrated":
                entry = ManifestRow(
                    replace(
                        one.record,
                        verdict="refused",
                        state=first.state,
                        output=None,
                        reason=first.reason,
                        message=f"as {first.input}, which has the same content: {first.message}",
                        duplicate_of=first.input,
                    ),
                    self._proof(one),
                )
            else:
                entry = self._linked(one, first)
            self.manifest.put(entry)

    def carry_sidecars(self, folders: Folders) -> None:
        """Have what stands beside the inputs beside their outputs, also of earlier runs."""
        note = {"source": self.pair.source.spec.name, "target": self.pair.target.spec.name}
        for entry in list(self.manifest.entries()):
            record, one = entry.record, self.found.get(entry.record.input)
            if record.state not in FINISHED or one is None:
                continue
            output = self.job.out / str(record.output)
            given = {"migrated_from": one.item.path.name} | note
            try:
                carried = carry(folders.of(one.item.path), output, given)
            except Exception as error:  # noqa: BLE001 (thousands of files wait behind this one)
                carried = Carried(flags=(f"sidecars: {as_outcome(error, one.item.path)}",))
            shown = carried.preview and carried.preview.relative_to(self.job.out).as_posix()
            others = (flag for flag in record.flags if not flag.startswith("sidecar"))
            changed = replace(record, preview=shown, flags=(*others, *carried.flags))
            if changed != record:
                self.manifest.put(entry._replace(record=changed))

    def _linked(self, one: Scanned, first: CatalogRecord) -> ManifestRow:
        here, there = (self.job.out / str(r.output) for r in (one.record, first))
        try:
            copy_output(there, here)
            copy_output(report_path(there), report_path(here))
        except Exception as error:  # noqa: BLE001 (thousands of files wait behind this one)
            failed = as_outcome(error, one.item.path)
            return ManifestRow(
                failed_record(one.record, failed.code, str(failed)), self._proof(one)
            )
        record = replace(
            first,
            input=one.record.input,
            output=one.record.output,
            size_in=one.record.size_in,
            state="duplicate",
            duplicate_of=first.input,
            seconds=None,
        )
        return ManifestRow(record, self._proof(one, _stamp(here)))


def _read_stamp(one: Scanned) -> str | None:
    """What of an input a later run compares before it reads it."""
    return None if one.stamp is None else f"{one.stamp}{SAID}{one.said}"


def _changes(one: Scanned, proof: Proof) -> tuple[bool, bool]:
    """Whether an input was touched since it was read, and whether its header says other things.

    A header's strings go into the output, whatever the numbers are. Where a manifest does not say
    what they were (a fleet's does not), they are taken for unchanged.
    """
    known = proof.input_stamp or ""
    before, _, said = known.rpartition(SAID)
    told = len(said) == _DIGEST  # or it is what stands behind the same words in a file's name
    touched = (before if told else known) != (one.stamp or "")
    return touched, told and said != one.said


def _made(known: ManifestRow | None, one: Scanned) -> bool:
    """Whether what is at a file's place is an earlier output of it, as far as is known.

    A record that says that another's file was found there is no claim to it; nor is a refusal.
    """
    if known is None or known.record.output != one.record.output:
        return False
    broken = known.record.state == "failed" and known.record.reason != Refusal.OUTPUT_EXISTS
    return broken or known.record.state in {"planned", *FINISHED}


def _reported(output: Path, record: CatalogRecord) -> bool:
    """Whether a report stands beside an output, can be read, and says of it what the record says.

    A report that is damaged is written again with its output.
    """
    try:
        told = read_any_report(output)
    except (ProloraError, OSError):
        return False
    if told.input.fingerprint != record.input_hash:
        return False
    if isinstance(told, MigrationReport):
        return True
    found = told.totals.energy_in, told.totals.energy_moved, told.totals.energy_out
    return found == (record.energy_in, record.energy_moved, record.energy_out)


def _stamp(path: Path) -> str | None:
    now = stamp(path)
    return None if now is None else now[0]


def _locations(pair: BasePair) -> tuple[str, str]:
    return pair.source.location, pair.target.location


def _exists(output: Path) -> bool:
    return os.path.exists(output) or os.path.exists(report_path(output))
