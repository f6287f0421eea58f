"""`prolora migrate`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from prolora_jax.adapters.formats.dumping import Reader
from prolora_jax.cli.console import Common, Reporter, out, write_json_text
from prolora_jax.cli.convert import Format
from prolora_jax.cli.migrate_options import (
    AUTO,
    CATALOG,
    GENERAL,
    HOW,
    OUTPUT,
    WHAT,
    DecidingOptions,
    chosen,
)
from prolora_jax.errors import Refusal, UsageError

COMMON = Common()
OPTIONS = DecidingOptions()


def migrate(
    *inputs: Annotated[Path, Parameter(group=WHAT)],
    source: Annotated[Path, Parameter(group=WHAT)],
    target: Annotated[Path, Parameter(group=WHAT)],
    out_path: Annotated[Path | None, Parameter(name="--out", group=OUTPUT)] = None,
    dry_run: Annotated[bool, Parameter(negative="", group=OUTPUT)] = False,
    overwrite: Annotated[bool, Parameter(negative="", group=OUTPUT)] = False,
    format: Annotated[Format, Parameter(group=OUTPUT)] = "same",
    for_reader: Annotated[Reader | None, Parameter(name="--for", group=OUTPUT)] = None,
    options: Annotated[DecidingOptions, Parameter(name="*")] = OPTIONS,
    preset: Annotated[Literal["paper"] | None, Parameter(group=HOW)] = None,
    refine: Annotated[bool, Parameter(negative="", group=HOW)] = False,
    merge: Annotated[bool, Parameter(negative="", group=WHAT)] = False,
    weight: Annotated[tuple[float, ...], Parameter(group=WHAT)] = (),
    allow_pickle: Annotated[bool, Parameter(negative="", group=WHAT)] = False,
    ignore_license: Annotated[bool, Parameter(negative="", group=WHAT)] = False,
    sidecars: Annotated[bool, Parameter(negative="", group=OUTPUT)] = False,
    strip_metadata: Annotated[bool, Parameter(negative="", group=OUTPUT)] = False,
    plan: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    report: Annotated[Path | None, Parameter(group=CATALOG)] = None,
    fail_fast: Annotated[bool, Parameter(negative="--keep-going", group=CATALOG)] = False,
    retry_failed: Annotated[bool, Parameter(negative="", group=CATALOG)] = False,
    headers_only: Annotated[bool, Parameter(negative="", group=CATALOG)] = False,
    keep_operators: Annotated[bool, Parameter(negative="", group=GENERAL)] = False,
    common: Annotated[Common, Parameter(name="*", group=GENERAL)] = COMMON,
) -> int:
    """Move adapters from a source base model to a target base model.

    Writes OUT and, beside it, OUT.report.json with every module's similarity, ranks, norms and
    reason. With several inputs, or a folder of adapters, OUT is a folder with the same tree.
    With --method auto each adapter is taught as by --refine where that can be done, and copied
    where it cannot: its report says which, and why.

    Args:
        inputs: adapter files, or folders of them.
        source: base model the adapter was trained on: diffusers folder or single file.
        target: base model to move it to; of a pipeline with two transformers, where the source has
            one, each gets an output: OUT with .transformer and .transformer_2 in its name.
        out_path: file (or folder) to write; not needed with --dry-run.
        dry_run: print the plan and write nothing.
        overwrite: replace an existing output.
        format: key convention of the output; same: the input's, and LoHa and LoKr modules that
            are copied stay so; lora: the input's, LoRA factors alone; kohya: what kohya's trainer
            writes for this base. For diffusion transformers: diffusers (also same and lora),
            comfyui and kohya (original names, fused layers), peft.
        for_reader: vllm: a folder of peft's with one rank, padded with zeros, alpha folded in and
            no patterns, of which vLLM knows nothing; other tensors than pairs are refused.
        preset: paper: the gate on the left side only and the arm `prolora`, as published.
        refine: copy, then teach the copies by samples of both base models, as `prolora refine`
            does, with its usual budget: data-free, not training-free; both base models must draw.
            Other options of How, Matching and Catalog are refused with it.
        merge: write one adapter, the sum of the inputs; its rank is the sum of theirs, which
            --rank cuts.
        weight: of an input of --merge, in their order, once for each [default: 1 for all].
        allow_pickle: read a pickle, too (.pt .bin .ckpt .pth); needs torch, runs it apart.
        ignore_license: migrate adapters whose licence or sidecar forbids derivatives, too.
        sidecars: copy what stands beside each adapter (previews, Civitai's and other programs'
            JSON, texts) to its output's name.
        strip_metadata: keep no header string but prolora, format and the licence.
        plan: plan to follow, from --dry-run --json for this pair and these options.
        report: of several adapters: write a page about them, too: one HTML file.
        fail_fast: of several adapters: stop at the first that is refused.
        retry_failed: of several adapters: try those again that were refused or failed before.
        headers_only: of several adapters, with --dry-run: read no tensors; quick, but without
            each one's share of its update that would move.
        keep_operators: of one adapter: leave subspaces and operators in the store, gigabytes for
            a pair of SDXL's size, so that the next one is quick; catalogs always do.
    """
    if refine or str(options.method) == AUTO:
        from prolora_jax.cli.migrate_refine import migrate_refined

        return migrate_refined(migrate, locals())
    from prolora_jax.migration.files import Writing
    from prolora_jax.migration.one_file import is_one

    given = chosen(options, preset, for_reader)
    format = "peft" if for_reader and format == "same" else format
    writing = Writing(format, strip_metadata, overwrite, allow_pickle, sidecars, ignore_license)
    writing = writing._replace(reader=for_reader)
    _require_inputs(inputs, merge=merge, weights=weight)
    places = {"source": source, "target": target, "common": common}
    if not merge and not is_one(inputs):
        if out_path is None or plan is not None:
            raise UsageError(
                "several adapters need --out FOLDER; --plan is for one adapter",
                code=Refusal.BAD_OPTION,
            )
        from prolora_jax.catalog.run import CatalogJob
        from prolora_jax.cli.migrate_many import run_many, scan_many

        job = CatalogJob(inputs, out_path, given, writing, retry_failed, fail_fast)
        if dry_run:
            return scan_many(job, **places, page=report, headers_only=headers_only)
        return run_many(job, **places, page=report)
    if report is not None or headers_only:
        raise UsageError(
            "--report and --headers-only are for several adapters; one has OUT.report.json",
            code=Refusal.BAD_OPTION,
        )
    if out_path is None and not dry_run:
        raise UsageError("migrate needs --out FILE (or --dry-run)", code=Refusal.BAD_OPTION)
    out_file = None if dry_run else out_path
    asked = {"options": given, "writing": writing, "merge": merge, "weights": weight, "plan": plan}
    asked["store"] = common.basis_store(keeps=keep_operators)
    return _one(inputs, out_file, **places, **asked)


def _require_inputs(inputs: Sequence[Path], *, merge: bool, weights: Sequence[float]) -> None:
    if not inputs:
        raise UsageError("migrate needs at least one adapter", code=Refusal.BAD_OPTION)
    if weights and not merge:
        raise UsageError("--weight is for --merge", code=Refusal.BAD_OPTION)


def _one(
    inputs: Sequence[Path],
    out_file: Path | None,
    *,
    source: Path,
    target: Path,
    common: Common,
    **asked: Any,
) -> int:
    """Migrate one adapter, or plan it where no output is named, and show what was done."""
    from prolora_jax.adapters.formats.vllm import started_with
    from prolora_jax.cli import tables
    from prolora_jax.migration.each import migrate_each, plan_each

    reporter = Reporter(common.quiet)
    asked |= {"workers": common.processes, "progress": reporter}
    if out_file is None:
        with reporter.shown():
            plans = plan_each(inputs, source, target, **asked)
        if common.json:
            _write_all(plan.to_json() for plan in plans)
        else:
            for plan in plans:
                tables.show_plan(out(), plan)
        return 0
    with reporter.shown():
        written = migrate_each(inputs, source, target, out_file, **asked)
    if common.json:
        _write_all(done.report.to_json() for done in written)
        return 0
    for done in written:
        tables.show_report(out(), done.report, done.output, done.report_file)
        if asked["writing"].reader == "vllm":
            out().print(started_with(module.rank_out for module in done.report.modules))
    return 0


def _write_all(documents: Iterable[str]) -> None:
    """One document as it is; of two experts an array of both."""
    texts = [*documents]
    write_json_text(texts[0] if len(texts) == 1 else f"[{','.join(texts)}]")
