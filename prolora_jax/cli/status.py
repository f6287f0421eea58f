"""`prolora status`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prolora_jax.cli.console import Common, out, write_json

COMMON = Common()


def status(
    folder: Path,
    *,
    export: Path | None = None,
    report: Path | None = None,
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """How far a catalog has come: also while its run goes on, and after it was ended.

    Args:
        folder: that `prolora migrate CATALOG/ --out` writes.
        report: write the page about them: one HTML file.
        export: write all records as a table, too: a name that ends in .csv or .jsonl.
    """
    from prolora_jax.catalog.catalog import catalog_status, write_page
    from prolora_jax.cli import catalog_tables
    from prolora_jax.io.outputs.manifest import export as write_table
    from prolora_jax.io.outputs.protected import require_ending

    require_ending(report, ".html")
    summary, records = catalog_status(folder)
    if export is not None:
        write_table(records, export)
    if report is not None:
        write_page(report, summary, records)
    if common.json:
        write_json(summary)
        return 0
    catalog_tables.show_summary(out(), summary)
    catalog_tables.show_refused(out(), records)
    return 0
