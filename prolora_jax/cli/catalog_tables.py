"""What commands show of a catalog."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from prolora_jax.cli.console import Common, out, printable, write_json
from prolora_jax.io.outputs.manifest import export as write_table
from prolora_jax.plans.catalog_record import FINISHED, CatalogRecord, CatalogSummary, count_records

if TYPE_CHECKING:
    from prolora_jax.catalog.verify import CatalogCheck

SHOWN = 20
"""Files that a table names; the JSON has all of them."""


def show_status(
    summary: CatalogSummary, records: list[CatalogRecord], export: Path | None, common: Common
) -> None:
    """All that is asked for of how far a catalog has come, but for the page about it."""
    if export is not None:
        write_table(records, export)
    if common.json:
        write_json(summary)
        return
    show_summary(out(), summary)
    show_refused(out(), records)


def show_summary(console: Console, summary: CatalogSummary) -> None:
    """A run in a few lines."""
    done = sum(summary.by_state.get(state, 0) for state in FINISHED)
    console.print(f"{done} of {summary.files} adapters are in {summary.out}", markup=False)
    console.print("Files: " + _counts(summary.by_state))
    console.print("Verdicts: " + _counts(summary.by_verdict))
    if summary.by_reason:
        console.print("Refused: " + _counts(summary.by_reason))
    if summary.relation:
        console.print(summary.relation, markup=False)
    if summary.finished is None or summary.by_state.get("planned"):
        console.print("Not finished: the run goes on, or was ended; run it again to go on.")
    if summary.verified:
        console.print("Last verified: " + _counts(summary.verified))


def show_refused(console: Console, records: Iterable[CatalogRecord]) -> None:
    """Files without output, and why."""
    refused = [record for record in records if record.state in ("refused", "failed")]
    if not refused:
        return
    table = Table("adapter", "why")
    for record in refused[:SHOWN]:
        table.add_row(printable(record.input), printable(record.why))
    console.print(table)
    if len(refused) > SHOWN:
        console.print(f"... and {len(refused) - SHOWN} more (--json has all of them)")


def show_scan(console: Console, records: list[CatalogRecord]) -> None:
    """What would become of the files."""
    counts = count_records(records)
    table = Table("adapter", "verdict", "modules that move", "update that moves", "size", "why")
    for record in records[:SHOWN]:
        why = record.why or ", ".join(f"{n} {r}" for r, n in record.skipped.items())
        if record.duplicate_of is not None and not record.message:
            why = f"same content as {record.duplicate_of}"
        table.add_row(
            printable(record.input),
            record.verdict,
            f"{record.moved} of {record.modules}" if record.modules else "-",
            _share(record.energy_moved, record.energy_in),
            "-" if record.size_out is None else f"{record.size_out / 1e6:.1f} MB",
            printable(why),
        )
    console.print(table)
    if len(records) > SHOWN:
        console.print(f"... and {len(records) - SHOWN} more (--json has all of them)")
    console.print(f"{counts.files} files: " + _counts(counts.by_verdict))
    if counts.by_reason:
        console.print("Refused: " + _counts(counts.by_reason))


def show_check(console: Console, check: "CatalogCheck") -> None:
    """What a check of a whole folder found."""
    console.print(
        f"{check.whole} of {check.outputs} outputs are as they were written; {check.recomputed} "
        f"recomputed, largest error {check.worst_error:.1e} of the input's norm"
    )
    if check.modules.recomputed < check.modules.of:
        console.print(f"Of these, {check.modules.words}, drawn at random (--all for all)")
    if check.problems or check.learned:
        table = Table("adapter", "problem" if check.problems else "learned")
        for name, problem in list({**check.problems, **check.learned}.items())[:SHOWN]:
            table.add_row(printable(name), printable(problem))
        console.print(table)
    console.print(verdict_of(check))


def verdict_of(check: "CatalogCheck") -> str:
    """What came of a check of a whole folder, in a sentence."""
    if check.learned and not check.problems:
        return (
            f"Not verified: nothing wrong was found, but {len(check.learned)} outputs were learned "
            "from samples, which no weights say."
        )
    return "Verified." if check.ok else "NOT verified."


def _share(part: float | None, whole: float | None) -> str:
    return f"{part / whole:.1%}" if whole and part is not None else "-"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())
