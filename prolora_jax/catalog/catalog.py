"""A catalog: scanned, what is unfinished migrated, every file accounted for in the manifest.

A run may end at any moment: outputs appear whole, a row says that one is there only after it is,
and the next run does only what is unfinished. Finished means: the same content of the input, the
same options and weights of both base models, and an output that is as it was written.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec

from prolora_jax.catalog.page.render import page_html
from prolora_jax.catalog.run import CatalogJob, CatalogRun
from prolora_jax.catalog.scan import Scanner, duplicates, with_energies
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io import atomic
from prolora_jax.io.adapters.inputs import Input, expand
from prolora_jax.io.outputs.catalog_files import sweep
from prolora_jax.io.outputs.lock import locked
from prolora_jax.io.outputs.manifest import Manifest
from prolora_jax.io.outputs.protected import require_ending
from prolora_jax.io.outputs.reports import read_pair_report, write_pair_report
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.catalog_record import CatalogRecord, CatalogSummary, count_records
from prolora_jax.plans.folder_report import PairModule, PairReport, shared_options
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.relation import said_of

_FACTS = ("catalog", "source", "target", "options", "verified", "relation")
_FACTS += ("started", "finished", "seconds")


def scan_catalog(
    job: CatalogJob,
    pair: BasePair,
    progress: Progress | None = None,
    *,
    headers_only: bool = False,
) -> list[CatalogRecord]:
    """What would become of each file; nothing is written.

    Args:
        job: what is to be done.
        pair: source and target.
        progress: called with ("scan", done, total), then with ("energies", done, total).
        headers_only: leave out what only numbers say: energies, files with the same content,
            refusals for numbers that are not finite.

    Raises:
        UsageError: an input is not there, or there is no adapter in it.
    """
    found = Scanner(pair, job.options, job.writing).scan(inputs_of(job), progress)
    if headers_only:
        return [one.record for one in found]
    same = duplicates(found, job.options)
    records = []
    for one in found:
        record = with_energies(one, pair, job.options, job.writing)
        records.append(replace(record, duplicate_of=same.get(record.input)))
        if progress is not None:
            progress("energies", len(records), len(found))
    return records


def inputs_of(job: CatalogJob) -> list[Input]:
    """The adapters of a catalog.

    Raises:
        UsageError: an input is not there, or there is no adapter in it.
    """
    found = expand(job.inputs, leave_out=job.out)
    if not found:
        raise UsageError(
            f"{job.inputs[0]}: found no adapter in it; expected .safetensors files or PEFT folders",
            code=Refusal.MISSING_FILE,
        )
    return found


def run_catalog(
    job: CatalogJob, pair: BasePair, progress: Progress | None = None
) -> CatalogSummary:
    """Migrate what is unfinished.

    Args:
        job: what to do.
        pair: source and target.
        progress: called with ("scan", done, total), ("files", done, total), and by the stages of
            the first files.

    Returns:
        Counts over all files, finished before or now.

    Raises:
        UsageError: an input is not there, there is no adapter, or another run writes to the
            output folder.
        OutputError: the output folder or its manifest cannot be written.
        BaseModelError: a base model cannot be read.
    """
    started, items = time.perf_counter(), inputs_of(job)
    with locked(job.out), Manifest(job.out, write=True) as manifest:
        sweep(job.out)
        manifest.set_facts(**_facts_at_start(job, pair))
        taught = None if job.teaching is None else job.teaching.stamp
        scanner = Scanner(pair, job.options, job.writing, taught)
        found = scanner.scan(items, progress)
        shared = pair_report(job.options, pair, scanner.pairs)
        write_pair_report(job.out, shared)
        run = CatalogRun(job, manifest, found, pair, shared.digest)
        run.plan()
        run.migrate(progress)
        run.link_duplicates()
        if job.writing.sidecars:
            run.carry_sidecars(scanner.folders)
        said = shared.relation
        if job.teaching is not None:  # which draws nothing where all was finished before
            said = job.teaching.sentence or manifest.facts().get("relation")
        manifest.set_facts(
            relation=said,
            finished=_now(),
            seconds=round(time.perf_counter() - started, 3),
        )
        return summary_of(manifest)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _shown(job: CatalogJob) -> str:
    return ", ".join(str(path) for path in job.inputs)


def _options(job: CatalogJob) -> dict[str, object]:
    if job.teaching is not None:
        return dict(job.teaching.said)
    return msgspec.to_builtins({"method": job.options.method, **job.options.changed()})


def _facts_at_start(job: CatalogJob, pair: BasePair) -> dict[str, object]:
    return {
        "catalog": _shown(job),
        "source": pair.source.spec.name,
        "target": pair.target.spec.name,
        "options": _options(job),
        "started": _now(),
        "finished": None,
        "seconds": None,
    }


def pair_report(options: MigrationOptions, pair: BasePair, pairs: dict[str, str]) -> PairReport:
    """What the reports of a folder have in common.

    Args:
        options: of every migration.
        pair: source and target.
        pairs: source by target path of the modules that are measured.

    Returns:
        The report; its digest is the same whatever was measured.
    """
    matching = pair.matching(options.match, options)
    copied = all(own.method == "copy" for own in options.variants)
    moving = pair.tokens.moving(pairs) | pair.slices.among(matching.pairs)
    asked = {path: own for path, own in pairs.items() if path in moving or not copied}
    measures = pair.measure(asked, options)
    return PairReport(
        version("prolora_jax"),
        pair.source.location,
        pair.target.location,
        shared_options(options),
        matching.matched_by,
        matching.alignments,
        said_of(measures, options),
        {p: PairModule(s, measures.get(p)) for p, s in matching.pairs.items()},
    )


def summary_of_scan(
    job: CatalogJob, pair: BasePair, records: Sequence[CatalogRecord]
) -> CatalogSummary:
    """A catalog in numbers, before anything is done with it."""
    counts = count_records(records)
    return CatalogSummary(
        catalog=_shown(job),
        out=str(job.out),
        source=pair.source.spec.name,
        target=pair.target.spec.name,
        options=_options(job),
        files=counts.files,
        by_state=counts.by_state,
        by_verdict=counts.by_verdict,
        by_reason=counts.by_reason,
    )


def catalog_status(out: str | Path) -> tuple[CatalogSummary, list[CatalogRecord]]:
    """A catalog in numbers and file by file, also while its run goes on.

    Args:
        out: the output folder.

    Returns:
        The summary, and a record of each file.

    Raises:
        UsageError: there is no manifest in `out`.
    """
    with Manifest(Path(out)) as manifest:
        return summary_of(manifest), list(manifest.records())


def write_page(page: str | Path, summary: CatalogSummary, records: Sequence[CatalogRecord]) -> None:
    """Write the page about a catalog: one HTML file.

    Args:
        page: where to.
        summary: of the catalog.
        records: of its files.

    Raises:
        UsageError: its name has no page's ending, or the folder's `pair.report.json` cannot be
            read.
        OutputError: it cannot be written.
    """
    require_ending(Path(page), ".html")
    pair = None if summary.started is None else read_pair_report(Path(summary.out))
    write_page_of(Path(page), summary, records, pair)


def write_page_of(
    page: Path,
    summary: CatalogSummary,
    records: Sequence[CatalogRecord],
    pair: PairReport | None,
) -> None:
    """The same, with a pair's report that was read before.

    Args:
        page: where to.
        summary: of the catalog.
        records: of its files.
        pair: what their reports have in common; None where it is not known.

    Raises:
        OutputError: it cannot be written.
    """
    similarities = {} if pair is None else pair.similarities
    atomic.write_text(page, page_html(summary, records, similarities, page))


def summary_of(manifest: Manifest) -> CatalogSummary:
    """A catalog in numbers, as far as its run has come."""
    facts, counts = manifest.facts(), count_records(manifest.records())
    said = {name: facts.get(name) for name in _FACTS}
    try:
        return msgspec.convert(
            {
                **said,
                "out": str(manifest.out),
                "files": counts.files,
                "by_state": counts.by_state,
                "by_verdict": counts.by_verdict,
                "by_reason": counts.by_reason,
            },
            CatalogSummary,
        )
    except msgspec.ValidationError as failure:
        raise UsageError(
            f"{manifest.path}: cannot be read as a manifest ({failure}); expected what `prolora "
            "migrate` writes; remove it, or name another folder",
            code=Refusal.BAD_REPORT,
        ) from None
