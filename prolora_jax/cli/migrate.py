"""`prolora migrate`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from prolora_jax.cli.console import Common, Reporter, absolute, out
from prolora_jax.cli.convert import Format
from prolora_jax.plans.options import MigrationOptions

COMMON = Common()
OPTIONS = MigrationOptions()


def migrate(
    *inputs: Path,
    source: Path,
    target: Path,
    out_path: Annotated[Path | None, Parameter(name="--out")] = None,
    preset: Literal["paper"] | None = None,
    format: Format = "same",
    strip_metadata: Annotated[bool, Parameter(negative="")] = False,
    plan: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    headers_only: Annotated[bool, Parameter(negative="")] = False,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    allow_pickle: Annotated[bool, Parameter(negative="")] = False,
    fail_fast: Annotated[bool, Parameter(negative="--keep-going")] = False,
    retry_failed: Annotated[bool, Parameter(negative="")] = False,
    report: Path | None = None,
    sidecars: Annotated[bool, Parameter(negative="")] = False,
    ignore_license: Annotated[bool, Parameter(negative="")] = False,
    merge: Annotated[bool, Parameter(negative="")] = False,
    weight: tuple[float, ...] = (),
    options: Annotated[MigrationOptions, Parameter(name="*")] = OPTIONS,
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """Move adapters from a source base model to a target base model.

    Writes OUT and, beside it, OUT.report.json with every module's similarity, ranks, norms and
    reason. With several inputs, or a folder of adapters, OUT is a folder with the same tree.

    Args:
        inputs: adapter files, or folders of them.
        source: base model the adapter was trained on: diffusers folder or single file.
        target: base model to move it to.
        out_path: file (or folder) to write; not needed with --dry-run.
        preset: paper: the gate on the left side only and the arm `prolora`, as published.
        format: key convention of the output; kohya: what kohya's trainer writes for this base.
        strip_metadata: keep no header string but prolora, format and the licence.
        plan: plan to follow, from --dry-run --json for this pair and these options.
        dry_run: print the plan and write nothing.
        headers_only: of several adapters, with --dry-run: read no tensors; quick, but without
            each one's share of its update that would move.
        overwrite: replace an existing output.
        allow_pickle: read a pickle, too (.pt .bin .ckpt .pth); needs torch, runs it apart.
        fail_fast: of several adapters: stop at the first that is refused.
        retry_failed: of several adapters: try those again that were refused or failed before.
        report: of several adapters: write a page about them, too: one HTML file.
        sidecars: copy what stands beside each adapter (previews, Civitai's and other programs'
            JSON, texts) to its output's name.
        ignore_license: migrate adapters whose licence or sidecar forbids derivatives, too.
        merge: write one adapter, the sum of the inputs; its rank is the sum of theirs, which
            --rank cuts.
        weight: of an input of --merge, in their order, once for each [default: 1 for all].
    """
    from prolora_jax.adapters.detection import check_base
    from prolora_jax.adapters.formats.dumping import concrete_format
    from prolora_jax.adapters.formats.resolution import resolve
    from prolora_jax.catalog.catalog import CatalogJob
    from prolora_jax.cli import tables
    from prolora_jax.cli.migrate_many import is_one, migrate_many
    from prolora_jax.errors import Refusal, UsageError
    from prolora_jax.io.adapters.files import (
        load_adapter,
        refuse_existing,
        save_adapter,
        writes_folder,
    )
    from prolora_jax.io.adapters.license_check import require_license
    from prolora_jax.io.adapters.sidecars import Folders, carry
    from prolora_jax.io.base_models.checkpoint import load_base_model
    from prolora_jax.io.outputs.reports import read_plan, report_path, write_report
    from prolora_jax.migration.combination import combine, parts_of, widest
    from prolora_jax.migration.many import Writing
    from prolora_jax.migration.pair import BasePair
    from prolora_jax.migration.single import make_plan, run_plan
    from prolora_jax.plans.reuse import check_plan

    if preset == "paper":
        options = replace(options, method="prolora", gate="phi", gate_sides="left")
    if not inputs:
        raise UsageError("migrate needs at least one adapter", code=Refusal.BAD_OPTION)
    if weight and not merge:
        raise UsageError("--weight is for --merge", code=Refusal.BAD_OPTION)
    if not merge and not is_one(inputs):
        writing = Writing(format, strip_metadata, overwrite, allow_pickle, sidecars, ignore_license)
        if out_path is None or plan is not None:
            raise UsageError(
                "several adapters need --out FOLDER; --plan is for one adapter",
                code=Refusal.BAD_OPTION,
            )
        job = CatalogJob(inputs, out_path, options, writing, retry_failed, fail_fast)
        return migrate_many(
            job,
            source,
            target,
            dry_run=dry_run,
            headers_only=headers_only,
            page=report,
            common=common,
        )
    if report is not None or headers_only:
        raise UsageError(
            "--report and --headers-only are for several adapters; one has OUT.report.json",
            code=Refusal.BAD_OPTION,
        )
    if out_path is None and not dry_run:
        raise UsageError("migrate needs --out FILE (or --dry-run)", code=Refusal.BAD_OPTION)
    if out_path is not None and not dry_run:
        peft = inputs[0].is_dir() and format == "same"
        folder = writes_folder(out_path, "peft" if peft else format)
        refuse_existing(out_path, overwrite, folder=folder)
        refuse_existing(report_path(out_path), overwrite)
    # Absolute paths: the report names them, and `verify` may be called from elsewhere.
    models = load_base_model(absolute(source)), load_base_model(absolute(target))
    pair = BasePair(*models, common.basis_store(), common.processes)
    given = []
    for path in inputs:
        adapter = load_adapter(
            path.resolve(), alpha_zero=options.alpha_zero, allow_pickle=allow_pickle
        )
        if not ignore_license:
            require_license(path, adapter.metadata)
        # Before names are looked up in the source: this says which base model it is for.
        check_base(adapter, pair.source.spec, options.assume_base)
        given.append(resolve(adapter, pair.source.spec))
    adapter = combine(given, weight) if merge else given[0]
    options = widest(options, given) if merge else options
    reporter = Reporter(common.quiet)
    with reporter.shown():
        if plan is None:
            todo = make_plan(adapter, pair, options, reporter)
        else:
            todo = read_plan(plan)
            check_plan(todo, adapter, pair.source.spec, pair.target.spec, options)
        if dry_run or out_path is None:
            if common.json:
                sys.stdout.write(todo.to_json() + "\n")
            else:
                tables.show_plan(out(), todo)
            return 0
        migrated, done = run_plan(adapter, pair, todo, reporter)
    if merge:
        done = replace(done, parts=parts_of(given, weight))
    save_adapter(
        migrated,
        out_path,
        format=concrete_format(format, migrated, pair.target.spec),
        base=pair.target.spec,
        strip_metadata=strip_metadata,
        overwrite=overwrite,
    )
    written = write_report(out_path, done)
    if sidecars:
        note = {"source": pair.source.spec.name, "target": pair.target.spec.name}
        for path in inputs:
            carry(Folders().of(path), out_path, {"migrated_from": path.name} | note)
    if common.json:
        sys.stdout.write(done.to_json() + "\n")
    else:
        tables.show_report(out(), done, out_path, written)
    return 0
