"""`prolora verify`."""

import sys
from functools import partial
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
    sample: int = 20,
    all_files: Annotated[bool, Parameter(name="--all", negative="")] = False,
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """Recompute a migrated file on an independent dense float64 path and compare.

    Reads OUTPUT.report.json for what was done, and the weights of both base models. Modules are
    matched and planned anew, and every number of the report and of the header is compared. Exit
    code 1 when one differs by more than its dtype explains, or something should not be there. What
    nothing can be compared with is listed as not checked.

    Args:
        output: file that `prolora migrate` wrote; or the folder of a catalog: then every output
            is compared with what was written, and a sample is recomputed.
        source_lora: the adapter it was made from [default: from the report].
        source: source base model [default: from the report].
        target: target base model [default: from the report].
        allow_pickle: read the adapter it was made from if that is a pickle.
        sample: of a folder: how many outputs are recomputed.
        all_files: of a folder: recompute all of them.
    """
    import msgspec

    from prolora_jax.catalog.verify import verify_catalog
    from prolora_jax.cli import catalog_tables, tables
    from prolora_jax.errors import Refusal, UsageError
    from prolora_jax.io.adapters.files import load_adapter
    from prolora_jax.io.base_models.checkpoint import load_base_model
    from prolora_jax.io.outputs.manifest import NAME
    from prolora_jax.io.outputs.reports import pair_report_above, read_any_report
    from prolora_jax.migration.combination import combine
    from prolora_jax.plans.folder_report import FileReport, whole_report
    from prolora_jax.plans.report import MigrationReport
    from prolora_jax.verification.adapter import verify_adapter

    reporter = Reporter(common.quiet)
    if (output / NAME).is_file():
        with reporter.shown():
            many = None if all_files else sample
            check = verify_catalog(output, many, progress=reporter, allow_pickle=allow_pickle)
        if common.json:
            found = {"ok": check.ok, **msgspec.to_builtins(check)}
            sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
        else:
            catalog_tables.show_check(out(), check)
        return 0 if check.ok else 1
    told = read_any_report(output)
    source_model = load_base_model(source or Path(told.source.location))
    target_model = load_base_model(target or Path(told.target.location))
    parts = told.parts if isinstance(told, MigrationReport) else ()
    if parts and source_lora is not None:
        raise UsageError(
            f"{output}: found that it was made of {len(parts)} adapters; expected no "
            "--source-lora; keep them where its report says they are",
            code=Refusal.BAD_OPTION,
        )
    read = partial(
        load_adapter,
        base=source_model.spec,
        alpha_zero=told.options.alpha_zero,
        allow_pickle=allow_pickle,
    )
    given = tuple(read(part.location) for part in parts)
    if parts:
        original = combine(given, [part.weight for part in parts])
    else:
        original = read(source_lora or told.input.location)
    migrated = load_adapter(output, target_model.spec)
    if isinstance(told, FileReport):
        shared = pair_report_above(output, told.pair)
        specs = source_model.spec, target_model.spec
        told = whole_report(told, shared, original, migrated, *specs)
    report = told.to_dict()
    with reporter.shown():
        checked = verify_adapter(
            migrated, original, source_model, target_model, report, reporter, parts=given
        )
    if common.json:
        sys.stdout.write(msgspec.json.encode(checked).decode() + "\n")
    else:
        tables.show_verification(out(), checked)
    return 0 if checked.ok else 1
