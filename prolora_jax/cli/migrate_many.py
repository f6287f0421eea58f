"""`prolora migrate` with several inputs or a folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from prolora_jax.cli.console import Common, Reporter, out, write_json

if TYPE_CHECKING:
    from prolora_jax.catalog.run import CatalogJob
    from prolora_jax.migration.pair import BasePair


def scan_many(
    job: "CatalogJob",
    *,
    source: Path,
    target: Path,
    common: Common,
    page: Path | None,
    headers_only: bool,
) -> int:
    """Show what would become of a catalog; 1 when any file would be refused.

    Args:
        job: what to do.
        source: base model.
        target: base model.
        common: what every command has.
        page: HTML file to write about them.
        headers_only: look at no more than the files' headers.
    """
    from prolora_jax.catalog.catalog import scan_catalog, summary_of_scan, write_page
    from prolora_jax.cli import catalog_tables
    from prolora_jax.io.outputs.protected import refuse_replacing, require_ending

    require_ending(page, ".html")
    if page is not None:
        refuse_replacing(page, (page,), (*job.inputs, source, target))
    pair, reporter = _pair(job, source, target, common), Reporter(common.quiet)
    with reporter.shown():
        records = scan_catalog(job, pair, reporter, headers_only=headers_only)
    if page is not None:
        write_page(page, summary_of_scan(job, pair, records), records)
    if common.json:
        write_json({"files": records})
    else:
        catalog_tables.show_scan(out(), records)
    return 1 if any(record.verdict == "refused" for record in records) else 0


def run_many(
    job: "CatalogJob", *, source: Path, target: Path, common: Common, page: Path | None
) -> int:
    """Migrate a catalog; 1 when any file has no output.

    Args:
        job: what to do.
        source: base model.
        target: base model.
        common: what every command has.
        page: HTML file to write about them.
    """
    from prolora_jax.catalog.catalog import catalog_status, run_catalog, write_page
    from prolora_jax.cli import catalog_tables
    from prolora_jax.io.outputs.protected import refuse_replacing, require_ending
    from prolora_jax.plans.catalog_record import FINISHED, SETTLED

    require_ending(page, ".html")
    if page is not None:
        refuse_replacing(page, (page,), (*job.inputs, source, target))
    pair, reporter = _pair(job, source, target, common), Reporter(common.quiet)
    with reporter.shown():
        run_catalog(job, pair, reporter)
    summary, records = catalog_status(job.out)
    if page is not None:
        write_page(page, summary, records)
    done = [r for r in records if r.state in FINISHED]
    left = [r for r in records if r.state not in SETTLED]
    if common.json:
        refused = [{"path": r.input, "reason": r.reason, "message": r.message} for r in left]
        migrated = [str(job.out / str(r.output)) for r in done]
        document = {"out": str(job.out), "migrated": migrated, "refused": refused}
        write_json(document | {"summary": summary})
    else:
        catalog_tables.show_summary(out(), summary)
        catalog_tables.show_refused(out(), records)
    return 1 if left else 0


def _pair(job: "CatalogJob", source: Path, target: Path, common: Common) -> "BasePair":
    from prolora_jax.migration.opening import open_pair

    fused = job.options.fused
    return open_pair(source, target, common.basis_store(), common.processes, fused)
