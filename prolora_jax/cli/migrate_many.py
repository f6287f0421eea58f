"""`prolora migrate` with several inputs or a folder."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prolora_jax.cli.console import Common, Reporter, absolute, out
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.adapters.peft_folder import is_adapter_folder

if TYPE_CHECKING:
    from prolora_jax.catalog.run import CatalogJob
    from prolora_jax.plans.catalog_record import CatalogRecord, CatalogSummary


def write_page(page: Path, summary: "CatalogSummary", records: Sequence["CatalogRecord"]) -> None:
    """Write the page about a catalog.

    Raises:
        UsageError: its folder's `pair.report.json` cannot be read.
        OutputError: it cannot be written.
    """
    from prolora_jax.catalog.page.render import page_html
    from prolora_jax.io import atomic
    from prolora_jax.io.outputs.reports import read_pair_report

    pair = None if summary.started is None else read_pair_report(Path(summary.out))
    similarities = {} if pair is None else pair.similarities
    atomic.write_text(page, page_html(summary, records, similarities, page))


def is_one(inputs: Sequence[Path]) -> bool:
    """Whether the inputs are one adapter: a file, or a folder that peft wrote."""
    return len(inputs) == 1 and (not inputs[0].is_dir() or is_adapter_folder(inputs[0]))


def migrate_many(
    job: "CatalogJob",
    source: Path,
    target: Path,
    *,
    dry_run: bool,
    headers_only: bool,
    page: Path | None,
    common: Common,
) -> int:
    """Migrate a catalog, or say what would become of it; 1 when any file has no output.

    Args:
        job: what to do.
        source: base model.
        target: base model.
        dry_run: only look.
        headers_only: look at no more than the files' headers.
        page: HTML file to write about them.
        common: what every command has.

    Raises:
        UsageError: the output folder is a file.
    """
    import msgspec

    from prolora_jax.catalog.catalog import run_catalog, scan_catalog, summary_of_scan
    from prolora_jax.cli import catalog_tables
    from prolora_jax.io.base_models.checkpoint import load_base_model
    from prolora_jax.io.outputs.manifest import Manifest
    from prolora_jax.io.outputs.protected import refuse_replacing
    from prolora_jax.migration.pair import BasePair
    from prolora_jax.plans.catalog_record import FINISHED, SETTLED

    if job.out.exists() and not job.out.is_dir():
        raise UsageError(
            f"{job.out}: found a file; expected a folder for several outputs; choose another",
            code=Refusal.OUTPUT_EXISTS,
        )
    if page is not None:
        refuse_replacing(page, (page,), (*job.inputs, source, target))
    models = load_base_model(absolute(source)), load_base_model(absolute(target))
    pair = BasePair(*models, common.basis_store(), common.processes)
    reporter = Reporter(common.quiet)
    if dry_run:
        with reporter.shown():
            records = scan_catalog(job, pair, reporter, headers_only=headers_only)
        if page is not None:
            write_page(page, summary_of_scan(job, pair, records), records)
        if common.json:
            sys.stdout.write(msgspec.json.encode({"files": records}).decode() + "\n")
        else:
            catalog_tables.show_scan(out(), records)
        return 1 if any(record.verdict == "refused" for record in records) else 0
    with reporter.shown():
        summary = run_catalog(job, pair, reporter)
    with Manifest(job.out) as manifest:
        records = list(manifest.records())
    if page is not None:
        write_page(page, summary, records)
    done = [r for r in records if r.state in FINISHED]
    left = [r for r in records if r.state not in SETTLED]
    if common.json:
        document = {
            "out": str(job.out),
            "migrated": [str(job.out / str(r.output)) for r in done],
            "refused": [{"path": r.input, "reason": r.reason, "message": r.message} for r in left],
            "summary": summary,
        }
        sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    else:
        catalog_tables.show_summary(out(), summary)
        catalog_tables.show_refused(out(), records)
    return 1 if left else 0
