"""The report beside an output: `style.safetensors` -> `style.safetensors.report.json`."""

import os
from pathlib import Path
from typing import Any

import msgspec

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io import atomic
from prolora_jax.io.guarded import read_small
from prolora_jax.plans.fields import unknown_in_text
from prolora_jax.plans.folder_report import FileReport, PairReport
from prolora_jax.plans.plan import MigrationPlan
from prolora_jax.plans.report import MigrationReport

_LARGEST = 2**26
"""Bytes. The report of an adapter with 2,000 modules has 2 MB."""
# `ValueError`: no UTF-8, a number that is none.
_DAMAGE = (OSError, msgspec.MsgspecError, ValueError, RecursionError)
PAIR_REPORT, REPORT_ENDING = "pair.report.json", ".report.json"


def report_path(output: Path) -> Path:
    """Where the report of an output stands."""
    return Path(f"{output}{REPORT_ENDING}")


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
    if not os.path.exists(path):
        raise UsageError(
            f"{path}: no such file; expected a plan. Check --plan.", code=Refusal.MISSING_FILE
        )
    try:
        return MigrationPlan.from_json(read_small(path, _LARGEST).decode())
    except (*_DAMAGE, UsageError) as error:
        raise UsageError(
            f"{path}: found no plan ({_reason(error)}); expected what `prolora migrate --dry-run "
            "--json` prints. Make it again.",
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
    if not os.path.exists(path):
        return None
    try:
        return msgspec.json.decode(read_small(path, _LARGEST), type=PairReport)
    except _DAMAGE as error:
        raise UsageError(
            f"{path}: found no report about a pair ({_reason(error)}); expected what `prolora "
            "migrate` writes for a folder. Migrate again with --overwrite.",
            code=Refusal.BAD_REPORT,
        ) from None


def pair_report_above(output: Path, digest: str) -> tuple[Path, PairReport]:
    """The pair's report in a folder above an output, which the output's report refers to.

    Returns:
        Where it stands, and the report.

    Raises:
        UsageError: when none is there, or it is about something else.
    """
    for folder in output.resolve().parents:
        found = read_pair_report(folder)
        if found is not None and found.digest == digest:
            return folder / PAIR_REPORT, found
    raise UsageError(
        f"{output}: found no {PAIR_REPORT} above it that its report refers to; expected the one of "
        "its run. Keep the folder together, or migrate again: that writes it, and finishes a run "
        "that was ended.",
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
    except (*_DAMAGE, UsageError) as error:
        if _is_of_folder(content):
            raise UsageError(_no_report(output, error), code=Refusal.BAD_REPORT) from None
        return msgspec.convert(read_report(output), MigrationReport)


def _is_of_folder(content: bytes) -> bool:
    """Whether this is a damaged report of a file in a folder, not one of every module."""
    try:
        found = msgspec.json.decode(content)
    except _DAMAGE:
        return False
    return isinstance(found, dict) and "totals" in found


def read_report(output: Path) -> dict[str, Any]:
    """The whole report that stands beside an output.

    Raises:
        UsageError: when it is missing or is not a report.
    """
    content = _content(output)
    try:
        return msgspec.to_builtins(msgspec.json.decode(content, type=MigrationReport))
    except (*_DAMAGE, UsageError) as error:
        raise UsageError(_no_report(output, error), code=Refusal.BAD_REPORT) from None


def _no_report(output: Path, error: Exception) -> str:
    return (
        f"{report_path(output)}: found no migration report ({_reason(error)}); expected the JSON "
        "that `prolora migrate` writes. Migrate again with --overwrite."
    )


def unknown_in(path: Path, told: object) -> tuple[str, ...]:
    """Fields of a report's file that no report has, and those that stand twice in it.

    Args:
        path: of the report.
        told: what was read from it.
    """
    return unknown_in_text(read_small(path, _LARGEST), told)


def _content(output: Path) -> bytes:
    path = report_path(output)
    if not os.path.exists(path):
        raise UsageError(
            f"{path}: no such file; expected the report that `prolora migrate` writes beside its "
            "output. Keep the two together, or migrate again with --overwrite.",
            code=Refusal.BAD_REPORT,
        )
    try:
        return read_small(path, _LARGEST)
    except OSError as failure:
        raise UsageError(
            f"{path}: cannot be read ({_reason(failure)}); expected the report that `prolora "
            "migrate` writes. Remove what is there and migrate again with --overwrite.",
            code=Refusal.BAD_REPORT,
        ) from None


def _reason(failure: Exception) -> str:
    if isinstance(failure, RecursionError):
        return "it is nested too deep"
    return (failure.strerror if isinstance(failure, OSError) else None) or str(failure)
