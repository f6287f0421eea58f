"""What the page says, from records: numbers, decisions, rows. No HTML here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from prolora_jax.catalog.page.words import DECISIONS, LOOKS, REASONS
from prolora_jax.plans.catalog_record import FINISHED, CatalogRecord, CatalogSummary

LITTLE = 0.5
"""Share of an update below which what has moved needs a look."""


@dataclass(frozen=True)
class Group:
    """Some files with one thing in common.

    Attributes:
        number: of files.
        text: what it is.
        advice: what can be done about it, HTML; empty when nothing can.
        view: fragment of the page's address that shows these files.
    """

    number: int
    text: str
    advice: str
    view: str


@dataclass(frozen=True)
class Trust:
    """Whether outputs were checked: `yes`, `no`, or `open`; and in a sentence."""

    level: str
    sentence: str


def refusals(records: Sequence[CatalogRecord]) -> list[Group]:
    """Files without an output by reason, the most frequent first."""
    reasons = Counter(r.reason for r in records if r.reason is not None)
    return [
        Group(n, REASONS.get(code, code), DECISIONS.get(code, ""), f"reason={quote(code)}")
        for code, n in reasons.most_common()
    ]


def decisions(records: Sequence[CatalogRecord]) -> list[Group]:
    """What a person should decide or look at."""
    asked = [group for group in refusals(records) if group.advice]
    for start, text in LOOKS.items():
        n = sum(any(flag.startswith(start) for flag in r.flags) for r in records)
        if n:
            asked.append(Group(n, text, "They have moved; look at them.", f"q={quote(start)}"))
    little = sum(share is not None and share < LITTLE for share in map(kept_energy, records))
    if little:
        text = f"less than {LITTLE:.0%} of their update can move"
        asked.append(Group(little, text, "They may do little on the target.", "sort=kept"))
    return asked


def trust(summary: CatalogSummary) -> Trust:
    """Whether the outputs can be trusted."""
    checked = summary.verified
    if not checked:
        return Trust("open", f"Not checked yet: prolora verify {summary.out}")
    if checked["failed"]:
        return Trust("no", f"{checked['failed']} of {checked['checked']} outputs did not verify.")
    if checked.get("learned"):
        found = f"{checked['learned']} of {checked['checked']} outputs were learned from samples"
        return Trust("open", f"{found}, which no weights say; all else of them was checked.")
    again = f"{checked['recomputed']} recomputed on an independent path, and equal"
    return Trust("yes", f"All {checked['checked']} outputs are as they were written; {again}.")


def kept_energy(record: CatalogRecord) -> float | None:
    """Share of the update's squared norm that is in modules that move; None when not known."""
    if not record.energy_in or record.energy_moved is None:
        return None
    return record.energy_moved / record.energy_in


def count_finished(records: Sequence[CatalogRecord]) -> int:
    """Files with an output."""
    return sum(record.state in FINISHED for record in records)


COLUMNS = (
    *("input", "verdict", "state", "reason", "message", "kept", "modules", "moved"),
    *("phi_min", "phi_mean", "size_out", "flags", "output", "preview"),
)


def row(record: CatalogRecord, base: str) -> list[object]:
    """A record as the page's table has it, in the order of `COLUMNS`.

    Args:
        record: of one file.
        base: address of the output folder, from where the page is.
    """
    note = record.why or ", ".join(f"{n} {reason}" for reason, n in record.skipped.items())
    if record.duplicate_of is not None and record.reason is None:
        note = f"same content as {record.duplicate_of}"
    there = record.state in FINISHED and record.output is not None
    return [
        record.input,
        record.verdict,
        record.state,
        record.reason,
        note,
        _rounded(kept_energy(record)),
        record.modules,
        record.moved,
        _rounded(record.phi_min),
        _rounded(record.phi_mean),
        record.size_out,
        "; ".join(record.flags),
        address(base, record.output) if there and record.output else None,
        None if record.preview is None else address(base, record.preview),
    ]


def address(base: str, path: str) -> str:
    """A path below a folder as a relative address."""
    return quote(str(Path(base) / path) if base else path, safe="/~")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
