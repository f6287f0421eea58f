"""The report beside an output: `style.safetensors` -> `style.safetensors.report.json`."""

from pathlib import Path
from typing import Any

import msgspec

from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io import atomic
from prolora_jax.report import MigrationReport


def report_path(output: Path) -> Path:
    """Where the report of an output stands."""
    return Path(f"{output}.report.json")


def write_report(output: Path, report: MigrationReport) -> Path:
    """Write the report of an output beside it; returns its path."""
    path = report_path(output)
    atomic.write_text(path, report.to_json() + "\n")
    return path


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
