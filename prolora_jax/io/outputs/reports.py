"""The report beside an output: `style.safetensors` -> `style.safetensors.report.json`."""

from pathlib import Path
from typing import Any

import msgspec

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io import atomic
from prolora_jax.plans.folder_report import FileReport, PairReport
from prolora_jax.plans.plan import MigrationPlan
from prolora_jax.plans.report import MigrationReport

PAIR_REPORT = "pair.report.json"


def report_path(output: Path) -> Path:
    """Where the report of an output stands."""
    return Path(f"{output}.report.json")


def write_report(output: Path, report: MigrationReport | FileReport) -> Path:
    """Write the report of an output beside it; returns its path."""
    path = report_path(output)
    atomic.write_text(path, report.to_json() + "\n")
    return path


def read_plan(path: Path) -> MigrationPlan:
    """A plan that `prolora migrate --dry-run --json` printed.

    Raises:
        UsageError: when it is missing or is not a plan.
    """
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file; expected a plan. Check --plan.", code=Refusal.MISSING_FILE
        )
    try:
        return MigrationPlan.from_json(path.read_text())
    except (msgspec.DecodeError, UnicodeDecodeError, UsageError) as error:
        raise UsageError(
            f"{path}: found no plan ({error}); expected what `prolora migrate --dry-run --json` "
            "prints. Make it again.",
            code=Refusal.BAD_PLAN,
        ) from None


def write_pair_report(out: Path, report: PairReport) -> None:
    """Write what a folder's reports have in common, once."""
    atomic.write_bytes(out / PAIR_REPORT, msgspec.json.format(msgspec.json.encode(report)) + b"\n")


def read_pair_report(out: Path) -> PairReport | None:
    """What the reports in a folder have in common; None when it is not there.

    Raises:
        UsageError: when it cannot be read.
    """
    path = out / PAIR_REPORT
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=PairReport)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: found no report about a pair ({error}); expected what `prolora migrate` "
            "writes for a folder. Migrate again with --overwrite.",
            code=Refusal.BAD_REPORT,
        ) from None


def pair_report_above(output: Path, digest: str) -> PairReport:
    """The pair's report in a folder above an output, which the output's report refers to.

    Raises:
        UsageError: when none is there, or it is about something else.
    """
    for folder in output.resolve().parents:
        found = read_pair_report(folder)
        if found is not None and found.digest == digest:
            return found
    raise UsageError(
        f"{output}: found no {PAIR_REPORT} above it that its report refers to; expected the one of "
        "its run. Keep the folder together, or finish the run that was started over it.",
        code=Refusal.BAD_REPORT,
    )


def read_any_report(output: Path) -> MigrationReport | FileReport:
    """The report that stands beside an output: whole, or of a file in a folder.

    Raises:
        UsageError: when it is missing or is no report.
    """
    content = _content(output)
    try:
        return msgspec.json.decode(content, type=FileReport)
    except (msgspec.DecodeError, UnicodeDecodeError, UsageError):
        return msgspec.convert(read_report(output), MigrationReport)


def read_report(output: Path) -> dict[str, Any]:
    """The whole report that stands beside an output.

    Raises:
        UsageError: when it is missing or is not a report.
    """
    path, content = report_path(output), _content(output)
    try:
        return msgspec.to_builtins(msgspec.json.decode(content, type=MigrationReport))
    except (msgspec.DecodeError, UnicodeDecodeError, UsageError) as error:
        raise UsageError(
            f"{path}: found no migration report ({error}); expected the JSON that "
            "`prolora migrate` writes. Migrate again with --overwrite.",
            code=Refusal.BAD_REPORT,
        ) from None


def _content(output: Path) -> bytes:
    path = report_path(output)
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file; expected the report that `prolora migrate` writes beside its "
            "output. Keep the two together.",
            code=Refusal.BAD_REPORT,
        )
    return path.read_bytes()
