"""What is written when every input has its receipt: the pair's report, and a local folder's views.

All of it is made from what the workers have left, and can be made again at any time.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import msgspec

from prolora_jax.catalog.fleet.chunk import PARTS
from prolora_jax.catalog.fleet.job import OWN, JobNote, read_note
from prolora_jax.catalog.fleet.receipts import Known, read_receipts
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.outputs.catalog_files import stamp
from prolora_jax.io.outputs.lock import locked
from prolora_jax.io.outputs.manifest import Manifest, ManifestRow, Proof
from prolora_jax.io.outputs.reports import PAIR_REPORT
from prolora_jax.io.places.local import sweep_unfinished
from prolora_jax.io.places.place import FilePlace, read_listed, read_whole
from prolora_jax.plans.catalog_record import CatalogRecord, CatalogSummary, count_records
from prolora_jax.plans.folder_report import PairModule, PairReport
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.relation import said_of

ENDED = f"{OWN}/ended.json"
"""When every input had its receipt for the first time, ISO 8601, UTC: for people alone."""

_LARGEST = 2**26


def end_run(out: FilePlace) -> None:
    """Write the pair's report, and of a local folder the manifest, too.

    Args:
        out: place of the outputs.

    Raises:
        UsageError: what the workers have left cannot be read.
        OutputError: the place does not answer.
    """
    if out.folder is not None:
        sweep_unfinished(out.folder)
    out.create(ENDED, msgspec.json.encode(datetime.now(UTC).isoformat(timespec="seconds")), {})
    report = merged_report(out)
    if report is None:
        return
    text = msgspec.json.format(msgspec.json.encode(report)) + b"\n"
    written = out.create(PAIR_REPORT, text, {})
    if not written.ours and read_whole(out, PAIR_REPORT, _LARGEST)[0] != text:
        # Of two who end at once both write the same.
        out.replace_if(PAIR_REPORT, text, written.etag, {})
    if out.folder is not None:
        _write_manifest(out, read_note(out), read_receipts(out), report)


def merged_report(out: FilePlace) -> PairReport | None:
    """The pair's report, of all that workers have measured; None where nothing was.

    Args:
        out: place of the outputs.

    Raises:
        UsageError: a part of it cannot be read.
        OutputError: the place does not answer.
    """
    whole: PairReport | None = None
    for listed in out.list(PARTS):
        text, _ = read_listed(out, listed, _LARGEST)
        try:
            part = msgspec.json.decode(text, type=PairReport)
        except msgspec.MsgspecError as failure:
            raise UsageError(
                f"{out.shown}/{listed.key}: cannot be read as a report about a pair ({failure}); "
                "expected what `prolora fleet run` writes; remove it, and run that again",
                code=Refusal.BAD_REPORT,
            ) from None
        whole = part if whole is None else replace(whole, modules=_both(whole, part))
    if whole is None:
        return None
    measures = {p: m.measure for p, m in whole.modules.items() if m.measure is not None}
    return replace(whole, relation=said_of(measures, _asked_options(out)))


def _both(one: PairReport, other: PairReport) -> dict[str, PairModule]:
    return {
        path: module if module.measure is not None else other.modules[path]
        for path, module in one.modules.items()
    }


def _asked_options(out: FilePlace) -> MigrationOptions:
    return msgspec.convert(read_note(out).options, MigrationOptions)


def summary_of_receipts(out: FilePlace) -> tuple[CatalogSummary, list[CatalogRecord]]:
    """A catalog in numbers and file by file, also while its run goes on.

    Args:
        out: place of the outputs.

    Raises:
        UsageError: it is none, or a receipt cannot be read.
        OutputError: the place does not answer.
    """
    note = read_note(out)
    records = [known.receipt.record for known in read_receipts(out).values()]
    report = merged_report(out)
    counts = count_records(records)
    summary = CatalogSummary(
        note.inputs,
        out.shown,
        note.source,
        note.target,
        note.options,
        counts.files,
        counts.by_state,
        counts.by_verdict,
        counts.by_reason,
        relation=None if report is None else report.relation,
        finished=_ended(out),
    )
    return summary, records


def _ended(out: FilePlace) -> str | None:
    try:
        return msgspec.json.decode(read_whole(out, ENDED, _LARGEST)[0], type=str)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _write_manifest(
    out: FilePlace, note: JobNote, known: Mapping[str, Known], report: PairReport
) -> None:
    """Have `prolora status`, `verify` and `migrate` know the folder as one machine's."""
    assert out.folder is not None
    rows = []
    for one in (k.receipt for k in known.values()):
        place = out.folder / one.record.output if one.record.output else None
        now = None if place is None else stamp(place)
        rows.append(ManifestRow(one.record, Proof(one.plan, one.etag, now and now[0])))
    try:
        with locked(out.folder), Manifest(out.folder, write=True) as manifest:
            manifest.set_facts(
                catalog=note.inputs,
                source=note.source,
                target=note.target,
                options=note.options,
                relation=report.relation,
                started=None,
                finished=_ended(out),
                seconds=None,
            )
            manifest.remove([record.input for record in manifest.records()])
            manifest.put(*rows)
    except UsageError as error:
        # Another run that ends writes the same.
        if error.code != Refusal.LOCKED:
            raise
