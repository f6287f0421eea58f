"""`prolora verify`."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prolora_jax.cli.console import Common, Reporter, out

COMMON = Common()


def verify(
    output: Path,
    *,
    source_lora: Path | None = None,
    source: Path | None = None,
    target: Path | None = None,
    allow_pickle: Annotated[bool, Parameter(negative="")] = False,
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """Recompute a migrated file on an independent dense float64 path and compare.

    Reads OUTPUT.report.json for what was done, and the weights of both base models. Exit code 1
    when a module differs by more than its dtype explains, or should not be there.

    Args:
        output: file that `prolora migrate` wrote.
        source_lora: the adapter it was made from [default: from the report].
        source: source base model [default: from the report].
        target: target base model [default: from the report].
        allow_pickle: read the adapter it was made from if that is a pickle.
    """
    import msgspec

    from prolora_jax.cli import tables
    from prolora_jax.io.adapters import load_adapter
    from prolora_jax.io.checkpoint import load_base_model
    from prolora_jax.io.reports import read_report
    from prolora_jax.verify import verify_adapter

    report = read_report(output)
    source_model = load_base_model(source or Path(report["source"]["location"]))
    target_model = load_base_model(target or Path(report["target"]["location"]))
    input = source_lora or Path(report["input"]["location"])
    original = load_adapter(
        input,
        source_model.spec,
        alpha_zero=report["options"]["alpha_zero"],
        allow_pickle=allow_pickle,
    )
    migrated = load_adapter(output, target_model.spec)
    reporter = Reporter(common.quiet)
    with reporter.shown():
        checked = verify_adapter(migrated, original, source_model, target_model, report, reporter)
    if common.json:
        sys.stdout.write(msgspec.json.encode(checked).decode() + "\n")
    else:
        tables.show_verification(out(), checked)
    return 0 if checked.ok else 1
