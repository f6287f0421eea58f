"""One chunk of inputs in, outputs and receipts out; knows no engine that runs it.

A chunk is a small catalog: its inputs are fetched whole (a file's fingerprint and energy are of all
of its tensors), and the engine of one machine works on them in a folder that is thrown away. What
it has made is then published file by file, and each file's receipt is its commit. So outputs are
those of one machine, bit for bit, whoever works on what.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import msgspec

from prolora_jax.catalog.catalog import pair_report
from prolora_jax.catalog.fleet import receipts
from prolora_jax.catalog.fleet.inputs import FleetInput, as_items, fetch
from prolora_jax.catalog.fleet.job import OWN, VERSION, FleetJob, JobNote, claim
from prolora_jax.catalog.fleet.publishing import Publisher
from prolora_jax.catalog.fleet.receipts import Known, Receipt
from prolora_jax.catalog.run import CatalogJob, CatalogRun, failed_record
from prolora_jax.catalog.scan import Scanner
from prolora_jax.errors import AdapterRefused, OutputError, ProloraError, Refusal
from prolora_jax.io.adapters.inputs import Input
from prolora_jax.io.outputs.manifest import NAME, Manifest, ManifestRow, Proof
from prolora_jax.io.outputs.reports import read_any_report, report_path, write_report
from prolora_jax.io.places.opening import is_url, open_place, without_secrets
from prolora_jax.io.places.pacing import Pace
from prolora_jax.io.places.scratch import scratch
from prolora_jax.io.places.staging import stage_once
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration.opening import open_pair
from prolora_jax.plans.catalog_record import FINISHED, CatalogRecord
from prolora_jax.plans.folder_report import FileReport

PARTS = f"{OWN}/pairs"
"""What workers have measured of the pair, each its part."""

NO_PROOF = Proof()

_ITS_OWN = (Refusal.OUTPUT_EXISTS, Refusal.BAD_NAME, Refusal.FILE_TOO_LARGE)
"""Why a place does not take one output, and would take others."""


class ChunkWork(NamedTuple):
    """What a worker is given.

    Attributes:
        inputs: of a chunk, those of one unit behind each other.
        before: receipts of earlier runs, by names.
        together: whether their receipts are one object.
    """

    inputs: tuple[FleetInput, ...]
    before: dict[str, Known]
    together: bool = False


class ChunkDone(NamedTuple):
    """What a worker has done.

    Attributes:
        states: of inputs, by their names, as their receipts say.
        left: names of inputs without a receipt: this host, and not the input, is in their way, or
            the worker was to end early.
        trouble: what is in their way.
    """

    states: dict[str, str]
    left: tuple[str, ...] = ()
    trouble: str | None = None


class _Hurried(Exception):
    """The worker is to end with what it has done."""


class Worker:
    """One process's share of a job; keeps the pair and what it knows of tables of tensors.

    Args:
        job: what is to be done.
        hurried: set when a chunk is to end early.
        sign: called as a sign of life.

    Raises:
        UsageError: the place of the outputs has another job.
        BaseModelError: a base model cannot be used.
        OutputError: a place does not answer.
    """

    def __init__(self, job: FleetJob, hurried: threading.Event, sign: Callable[[], None]):
        self.job, self._hurried, self._sign = job, hurried, sign
        # A worker that waits for a store is alive, and its input is not to blame.
        places = (open_place(place, Pace(waiting=sign)) for place in (job.inputs, job.out))
        self.inputs, self.out = places
        cache = job.cache or job.store.with_name(f"{job.store.name}-bases")
        self._shown = dict(_local_base(base, cache, sign) for base in (job.source, job.target))
        places = [local for local, _ in self._shown.items()]
        self._store = FolderStore(
            job.store, limit=job.limit, shared=job.shared, share=job.share, waiting=sign
        )
        source, target = places[0], places[-1]
        self.pair = open_pair(source, target, self._store, job.processes)
        matched = self.pair.matching(job.options.match, job.options).pairs
        weights = []
        for base, paths in ((self.pair.source, matched.values()), (self.pair.target, matched)):
            weights.append(sorted(base.fingerprints(paths).items()))
            sign()
        note = JobNote(
            VERSION,
            job.asked,
            sha256(msgspec.json.encode(weights)).hexdigest()[:32],
            self.inputs.shown,
            self.pair.source.spec.name,
            self.pair.target.spec.name,
            msgspec.to_builtins({"method": job.options.method, **job.options.changed()}),
        )
        self._publisher = Publisher(self.out, claim(self.out, note).digest, job.writing.overwrite)
        digest = pair_report(job.options, self.pair, {}).digest
        self._writing = job.writing._replace(pair=digest)
        self._scanner = Scanner(self.pair, job.options, job.writing)
        self._told: set[str] = set()

    def __call__(self, work: ChunkWork) -> ChunkDone:
        """Do a chunk.

        Args:
            work: the chunk.

        Returns:
            What became of its inputs.

        Raises:
            OutputError: a place does not answer.
            BaseModelError: a base model cannot be read.
        """
        # Its name is new each time: what is known of a folder's files is kept by their paths.
        with scratch() as folder:
            done = self._done(work, folder)
        self._store.trim()
        return done

    def _done(self, work: ChunkWork, folder: Path) -> ChunkDone:
        staged, made = folder / "in", folder / "out"
        self._shown |= {str(staged): self.inputs.shown, str(made): self.out.shown}
        failed: dict[str, ProloraError] = {}
        if self.inputs.folder is None:
            failed = fetch(self.inputs, work.inputs, staged, self._sign)
        items = as_items(self.inputs, work.inputs, staged, failed)
        rows = {row.record.input: row for row in self._migrated(items, made)} if items else {}
        for one in work.inputs:
            if one.name in failed:
                rows[one.name] = ManifestRow(_failed(one.name, failed[one.name]), NO_PROOF)
            elif not any(_is_of(name, one.name) for name in rows):
                rows[one.name] = ManifestRow(_nothing(self.inputs.shown, one.name), NO_PROOF)
        try:
            return self._committed(rows, work, made)
        finally:
            for place in (staged, made):
                del self._shown[str(place)]

    def _migrated(self, items: Sequence[Input], folder: Path) -> list[ManifestRow]:
        """The engine of one machine, over a folder of its own."""
        found = self._scanner.scan(items, self._progress)
        job = CatalogJob((folder,), folder, self.job.options, self._writing)
        with Manifest(folder, write=True) as manifest:
            run = CatalogRun(job, manifest, found, self.pair, str(self._writing.pair))
            run.plan()
            with suppress(_Hurried):
                run.migrate(self._progress)
            run.link_duplicates()
            if self._writing.sidecars:
                run.carry_sidecars(self._scanner.folders)
            return list(manifest.entries())

    def _progress(self, stage: str, done: int, total: int) -> None:
        self._sign()
        if stage == "files" and self._hurried.is_set():
            raise _Hurried

    def _committed(self, rows: dict[str, ManifestRow], work: ChunkWork, made: Path) -> ChunkDone:
        """Publish what was made, file by file, each with its receipt behind it."""
        self._tell_pair()
        self._publish_beside(rows, made)
        states: dict[str, str] = {}
        left, trouble, together = [], None, []
        for name, row in rows.items():
            if row.record.state == "planned" or row.record.reason == str(Refusal.CANNOT_WRITE):
                left.append(name)
                trouble = self._public(row.record.message or "") or trouble
                continue
            receipt = self._receipt(row, work, made)
            if work.together:
                together.append(receipt)
            else:
                receipts.file_receipt(self.out, receipt, work.before.get(name))
            states[name] = receipt.state
            self._sign()
        if together:
            receipts.file_chunk(self.out, together)
        return ChunkDone(states, tuple(left), trouble)

    def _receipt(self, row: ManifestRow, work: ChunkWork, made: Path) -> Receipt:
        record = row.record
        before = work.before.get(record.input)
        if before is None and all(record.input != one.name for one in work.inputs):
            # It was found inside of a folder: whoever gave out the work knows the folder alone.
            before = receipts.read_one(self.out, record.input)
        # An output of an earlier round stays ours while nothing takes its place.
        files = {} if before is None else dict(before.receipt.files)
        etag = next((one.etag for one in work.inputs if _is_of(record.input, one.name)), "")
        if record.state in FINISHED:
            self._relocate(made / str(record.output))
            try:
                files = self._publisher.publish(made, str(record.output), etag, before)
            except (OutputError, AdapterRefused) as error:
                if error.code not in _ITS_OWN:
                    raise
                record = failed_record(record, error.code, str(error))
            else:
                # Another worker's may stand there, made by another kind of device.
                if str(record.output) in files:  # else it is a folder
                    record = replace(record, output_hash=files[str(record.output)].hash)
        if record.message is not None:
            record = replace(record, message=self._public(record.message))
        round_ = 0 if before is None else before.receipt.round + 1
        return Receipt(record, etag, row.proof.job, files, round=round_)

    def _relocate(self, output: Path) -> None:
        """Have a report name what its output was made from, not where that was fetched to."""
        report = read_any_report(output)
        assert isinstance(report, FileReport)  # a folder's
        parties = {
            name: replace(party, location=self._public(party.location))
            for name in ("source", "target", "input")
            for party in [getattr(report, name)]
        }
        if any(party != getattr(report, name) for name, party in parties.items()):
            write_report(output, replace(report, **parties))

    def _public(self, text: str) -> str:
        for local, shown in self._shown.items():
            text = text.replace(local, shown)
        return text

    def _publish_beside(self, rows: dict[str, ManifestRow], made: Path) -> None:
        """Publish what was carried along: all that is neither an output nor a report of one."""
        if not self._writing.sidecars or not made.is_dir():
            return
        outputs = [str(r.record.output) for r in rows.values() if r.record.state in FINISHED]
        own = {*outputs, *(report_path(Path(output)).as_posix() for output in outputs)}
        for path in sorted(p for p in made.rglob("*") if p.is_file()):
            key = path.relative_to(made).as_posix()
            inside = any(key.startswith(f"{output}/") for output in outputs)
            if key not in own and not inside and not key.startswith(NAME):
                try:
                    self._publisher.publish_beside(made, key)
                except (OutputError, AdapterRefused) as error:
                    # A name that the place cannot hold is the adapter's, which is refused for it.
                    if error.code not in _ITS_OWN:
                        raise

    def _tell_pair(self) -> None:
        """Leave what is known of the pair where the end of the run puts it together."""
        pairs = self._scanner.pairs
        if pairs.keys() <= self._told:
            return
        report = pair_report(self.job.options, self.pair, pairs)
        named = {n: self._public(getattr(report, n)) for n in ("source", "target")}
        text = msgspec.json.encode(replace(report, **named))
        self.out.create(f"{PARTS}/{sha256(text).hexdigest()[:32]}.json", text, {})
        self._told |= pairs.keys()


def start_worker(
    job: FleetJob, hurried: threading.Event, sign: Callable[[], None]
) -> Callable[[ChunkWork], ChunkDone]:
    """A worker in a process of its own (see `Worker`)."""
    return Worker(job, hurried, sign)


def _local_base(base: str, cache: Path, sign: Callable[[], None]) -> tuple[str, str]:
    """Where a base model is on this host, and how it is named."""
    if not is_url(base):
        return base, base
    return str(stage_once(base, cache.resolve(), sign)), without_secrets(base)


def _is_of(name: str, unit: str) -> bool:
    return name == unit or name.startswith(f"{unit}/")


def _failed(name: str, error: ProloraError) -> CatalogRecord:
    return failed_record(CatalogRecord(name, None, "refused", "failed"), error.code, str(error))


def _nothing(shown: str, name: str) -> CatalogRecord:
    message = f"{shown}/{name}: found no adapter in it, which is left out"
    return CatalogRecord(name, None, "ignored", "ignored", message=message)
