"""The report beside an output: `style.safetensors` -> `style.safetensors.report.json`."""

from pathlib import Path
from typing import Any

import msgspec

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io import atomic
from prolora_jax.plan import MigrationPlan
from prolora_jax.report import MigrationReport


def report_path(output: Path) -> Path:
    """Where the report of an output stands."""
    return Path(f"{output}.report.json")


def write_report(output: Path, report: MigrationReport) -> Path:
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


def read_report(output: Path) -> dict[str, Any]:
    """The report that stands beside an output.

    Raises:
        UsageError: when it is missing or is not a report.
    """
    path = report_path(output)
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file; expected the report that `prolora migrate` writes beside its "
            "output. Keep the two together.",
            code=Refusal.BAD_REPORT,
        )
    try:
        return msgspec.to_builtins(msgspec.json.decode(path.read_bytes(), type=MigrationReport))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: found no migration report ({error}); expected the JSON that "
            "`prolora migrate` writes. Migrate again with --overwrite.",
            code=Refusal.BAD_REPORT,
        ) from None
