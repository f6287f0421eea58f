"""What a report claims: read, and looked up by the pair of modules that a record is about."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.plans.fields import unknown_fields
from prolora_jax.plans.folder_report import WholeReport
from prolora_jax.plans.plan import SkippedModule
from prolora_jax.plans.report import MigrationReport, ModuleReport

_BITS = 64

Record = ModuleReport | SkippedModule
Place = tuple[str | None, str | None]
"""Module of the source, and of the target."""


@dataclass(frozen=True)
class Claim:
    """A report, and its records by what they are about.

    Attributes:
        report: as read.
        records: by place; the first, where a place occurs twice.
        repeated: places that occur more than once.
        unknown: fields that no report has.
    """

    report: MigrationReport
    records: Mapping[Place, Record]
    repeated: tuple[Place, ...]
    unknown: tuple[str, ...] = ()

    @property
    def folder(self) -> WholeReport | None:
        """The same report, where it was put together from a folder's reports of totals."""
        return self.report if isinstance(self.report, WholeReport) else None


def read_claim(report: Mapping[str, Any], origin: str) -> Claim:
    """Read a report.

    Args:
        report: as plain dicts and lists.
        origin: the file that it is about, for messages.

    Raises:
        UsageError: it is no migration report.
    """
    kind = MigrationReport if report.get("totals") is None else WholeReport
    try:
        told = msgspec.convert(report, kind)
        if _is_huge(msgspec.to_builtins(told)):
            raise UsageError("it has a whole number of more than 64 bits", code=Refusal.BAD_REPORT)
    except (msgspec.ValidationError, UsageError) as error:
        raise UsageError(
            f"{origin}: not a migration report ({error}); expected what `prolora migrate` "
            "writes beside its output. Migrate again.",
            code=Refusal.BAD_REPORT,
        ) from None
    everything = [*told.modules, *told.skipped]
    records: dict[Place, Record] = {}
    for record in everything:
        records.setdefault((record.source_path, record.path), record)
    times = Counter((record.source_path, record.path) for record in everything)
    repeated = tuple(place for place, n in times.items() if n > 1)
    return Claim(told, records, repeated, unknown_fields(report, told))


def _is_huge(value: object) -> bool:
    """Whether a whole number is in it that no float holds: nothing can be computed with it."""
    if isinstance(value, dict):
        return any(map(_is_huge, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_is_huge, value))
    return isinstance(value, int) and value.bit_length() > _BITS
