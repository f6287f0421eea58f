"""`prolora status`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prolora_jax.cli.console import Common

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
    from prolora_jax.io.outputs.protected import require_ending

    require_ending(report, ".html")
    summary, records = catalog_status(folder)
    if report is not None:
        write_page(report, summary, records)
    catalog_tables.show_status(summary, records, export, common)
    return 0
