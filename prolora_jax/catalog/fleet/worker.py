"""One chunk of inputs in, outputs and receipts out; knows no engine that runs it.

A chunk is a small catalog: its inputs are fetched whole (a file's fingerprint and energy are of all
of its tensors), and the engine of one machine works on them in a folder that is thrown away. What
it has made is then published file by file, and each file's receipt is its commit. So outputs are
those of one machine, bit for bit, whoever works on what. The next chunk is fetched meanwhile.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from shutil import disk_usage
from typing import NamedTuple

import msgspec

from prolora_jax.catalog.catalog import pair_report
from prolora_jax.catalog.fleet import receipts
from prolora_jax.catalog.fleet.chunk import PARTS, ChunkDone, ChunkWork
from prolora_jax.catalog.fleet.inputs import as_items, fetch
from prolora_jax.catalog.fleet.job import VERSION, FleetJob, JobNote, claim
from prolora_jax.catalog.fleet.publishing import Publisher
from prolora_jax.catalog.fleet.receipts import Receipt
from prolora_jax.catalog.run import CatalogJob, CatalogRun
from prolora_jax.catalog.scan import Scanner
from prolora_jax.errors import AdapterRefused, OutputError, ProloraError, Refusal
from prolora_jax.io.adapters.inputs import Input
from prolora_jax.io.atomic import cannot_write
from prolora_jax.io.outputs.manifest import NAME, Manifest, ManifestRow, Proof
from prolora_jax.io.outputs.reports import read_any_report, report_path, write_report
from prolora_jax.io.places.opening import is_url, open_place, without_secrets
from prolora_jax.io.places.pacing import Pace
from prolora_jax.io.places.scratch import scratch
from prolora_jax.io.places.staging import stage_once
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration.opening import open_pair
from prolora_jax.plans.catalog_record import FINISHED, CatalogRecord, failed_record
from prolora_jax.plans.folder_report import FileReport

NO_PROOF = Proof()
_IN = "in"

_ITS_OWN = (Refusal.OUTPUT_EXISTS, Refusal.BAD_NAME, Refusal.FILE_TOO_LARGE)
"""Why a place does not take one output, and would take others."""


class _Hurried(Exception):
    """The worker is to end with what it has done."""


class Staged(NamedTuple):
    """A chunk whose inputs are at hand.

    Attributes:
        work: the chunk.
        folder: of its own; inputs of a store are in it.
        failed: why some of those are not, by their names.
        held: what keeps the folder; it goes when that is closed.
    """

    work: ChunkWork
    folder: Path
    failed: dict[str, ProloraError]
    held: ExitStack


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

    _at_work = False

    def __init__(self, job: FleetJob, hurried: threading.Event, sign: Callable[[], None]):
        self.job, self._hurried, self._sign = job, hurried, sign
        # A worker that waits for a store is alive, and its input is not to blame.
        self.inputs = open_place(job.inputs, Pace(waiting=self._sign_of_staging))
        self.out = open_place(job.out, Pace(waiting=sign))
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

    def stage(self, work: ChunkWork) -> Staged:
        """Have the inputs of a chunk at hand, in any thread.

        Args:
            work: the chunk.

        Returns:
            What is to be called for; until then it takes room on the local disk.

        Raises:
            OutputError: the place does not answer, or the local disk takes no more.
        """
        with ExitStack() as held:
            # Its name is new each time: what is known of a folder's files is kept by their paths.
            folder, failed = held.enter_context(scratch()), dict[str, ProloraError]()
            if self.inputs.folder is None:
                self._require_room(folder, work)
                failed = fetch(self.inputs, work.inputs, folder / _IN, self._sign_of_staging)
            return Staged(work, folder, failed, held.pop_all())

    def _require_room(self, folder: Path, work: ChunkWork) -> None:
        """What is at work needs room for what it makes: else this is fetched in its turn."""
        size = sum(one.size for one in work.inputs)
        if self._at_work and disk_usage(folder).free < 2 * size:
            reason = f"{2 * size} bytes are not free beside the chunk at work"
            raise OutputError(cannot_write(folder, reason), code=Refusal.CANNOT_WRITE)

    def _sign_of_staging(self) -> None:
        """A sign of life, unless another chunk is at work: that has to give its own."""
        if self._hurried.is_set():
            raise _Hurried
        if not self._at_work:
            self._sign()

    def __call__(self, work: ChunkWork | Staged) -> ChunkDone:
        """Do a chunk.

        Args:
            work: the chunk.

        Returns:
            What became of its inputs; who is to end early begins none.

        Raises:
            OutputError: a place does not answer.
            BaseModelError: a base model cannot be read.
        """
        try:
            staged = work if isinstance(work, Staged) else self.stage(work)
        except _Hurried:
            assert isinstance(work, ChunkWork)
            return _given_back(work)
        except OutputError as error:
            assert isinstance(work, ChunkWork)
            return _troubled(work, error)
        with staged.held:
            if self._hurried.is_set():
                return _given_back(staged.work)
            self._at_work = True
            try:
                done = self._done(staged)
            finally:
                self._at_work = False
        self._store.trim()
        return done

    def _done(self, chunk: Staged) -> ChunkDone:
        work, failed = chunk.work, chunk.failed
        staged, made = chunk.folder / _IN, chunk.folder / "out"
        self._shown |= {str(staged): self.inputs.shown, str(made): self.out.shown}
        items = as_items(self.inputs, work.inputs, staged, failed)
        try:
            rows = {row.record.input: row for row in self._migrated(items, made)} if items else {}
        except OutputError as error:
            return _troubled(work, error)
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
                trouble = row.record.message or trouble  # with the path that has no room
                continue
            try:
                if row.record.state in FINISHED:
                    self._relocate(made / str(row.record.output))
            except OutputError as error:  # there is no room for its report
                left.append(name)
                trouble = _troubled(work, error).trouble
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


def _local_base(base: str, cache: Path, sign: Callable[[], None]) -> tuple[str, str]:
    """Where a base model is on this host, and how it is named."""
    if not is_url(base):
        return base, base
    return str(stage_once(base, cache.resolve(), sign)), without_secrets(base)


def _given_back(work: ChunkWork) -> ChunkDone:
    return ChunkDone({}, tuple(one.name for one in work.inputs))


def _troubled(work: ChunkWork, error: OutputError) -> ChunkDone:
    """Nothing of a chunk could be done, for this host's trouble; a store's is raised again."""
    if error.__cause__ is None:  # no disk has said so
        raise error
    return ChunkDone({}, tuple(one.name for one in work.inputs), str(error))


def _is_of(name: str, unit: str) -> bool:
    return name == unit or name.startswith(f"{unit}/")


def _failed(name: str, error: ProloraError) -> CatalogRecord:
    return failed_record(CatalogRecord(name, None, "refused", "failed"), error.code, str(error))


def _nothing(shown: str, name: str) -> CatalogRecord:
    message = f"{shown}/{name}: found no adapter in it, which is left out"
    return CatalogRecord(name, None, "ignored", "ignored", message=message)
