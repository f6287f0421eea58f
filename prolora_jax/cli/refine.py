"""`prolora refine`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from rich.console import Console
from rich.table import Table

from prolora_jax.cli.console import Common, Reporter, out, show_error, write_json
from prolora_jax.cli.convert import Format
from prolora_jax.errors import Refusal, UsageError

if TYPE_CHECKING:
    from prolora_jax.catalog.refined import RefinedFiles
    from prolora_jax.plans.refined import Refined

COMMON = Common()
SHOWN = 20
"""Adapters of which it is said why; the JSON has all of them."""
WHAT = Group("What is refined", sort_key=1)
HOW = Group("How", sort_key=2)
SAMPLES = Group("What is drawn for it", sort_key=3)
OUTPUT = Group("Output", sort_key=4)
GENERAL = Group("General", sort_key=5)
LIST = Parameter(negative="", group=HOW)


def refine(
    *inputs: Annotated[Path, Parameter(group=WHAT)],
    source: Annotated[Path, Parameter(group=WHAT)],
    target: Annotated[Path, Parameter(group=WHAT)],
    out_path: Annotated[Path, Parameter(name="--out", group=OUTPUT)],
    source_parts: Annotated[Path | None, Parameter(group=WHAT)] = None,
    target_parts: Annotated[Path | None, Parameter(group=WHAT)] = None,
    kind: Annotated[Literal["auto", "style", "concept"] | None, Parameter(group=HOW)] = None,
    teacher: Annotated[Literal["effect", "absolute"], Parameter(group=HOW)] = "effect",
    trigger: Annotated[tuple[str, ...], LIST] = (),
    budget: Annotated[Literal["low", "normal", "high"], Parameter(group=HOW)] = "normal",
    steps: Annotated[int | None, Parameter(group=HOW)] = None,
    rows: Annotated[int | None, Parameter(group=HOW)] = None,
    batch: Annotated[int | None, Parameter(group=HOW)] = None,
    micro_batch: Annotated[int | None, Parameter(group=HOW)] = None,
    seed: Annotated[int, Parameter(group=HOW)] = 0,
    prompts: Annotated[Path | None, Parameter(group=SAMPLES)] = None,
    pictures: Annotated[int | None, Parameter(group=SAMPLES)] = None,
    size: Annotated[int | None, Parameter(group=SAMPLES)] = None,
    texts: Annotated[int | None, Parameter(group=SAMPLES)] = None,
    tokens: Annotated[int | None, Parameter(group=SAMPLES)] = None,
    draw_steps: Annotated[int | None, Parameter(group=SAMPLES)] = None,
    guidance: Annotated[float | None, Parameter(group=SAMPLES)] = None,
    at_once: Annotated[int | None, Parameter(group=SAMPLES)] = None,
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Parameter(group=SAMPLES)] = "auto",
    format: Annotated[Format, Parameter(group=OUTPUT)] = "same",
    overwrite: Annotated[bool, Parameter(negative="", group=OUTPUT)] = False,
    strip_metadata: Annotated[bool, Parameter(negative="", group=OUTPUT)] = False,
    assume_base: Annotated[str | None, Parameter(group=WHAT)] = None,
    allow_pickle: Annotated[bool, Parameter(negative="", group=WHAT)] = False,
    ignore_license: Annotated[bool, Parameter(negative="", group=WHAT)] = False,
    common: Annotated[Common, Parameter(name="*", group=GENERAL)] = COMMON,
    decides: Annotated[bool, Parameter(parse=False)] = False,
) -> int:
    """Copy adapters to another base model, then teach them there by the models' own samples.

    Data-free, not training-free: both base models draw, and a few gradient steps bring what no
    formula over weights does. First is measured whether both draw the same kind of pictures: where
    they do not, a style stays a copy and a concept is taught anew, and the report says so.
    Rows are spread over all devices of this machine, or as many as a batch can be shared out to.
    Language models write texts instead of drawing, and learn the effect on logits.
    Needs the extras: pip install 'prolora_jax[pipelines,refine]'.

    Args:
        inputs: adapter files, or folders of them: base models are loaded, and samples drawn, once
            for all.
        source: base model the adapters were trained on: a diffusers pipeline's folder, a UNet in
            any form, with --source-parts, or a language model's folder.
        target: base model they are to work on; likewise.
        out_path: file to write; of several adapters a folder.
        source_parts: pipeline from which everything but the source's UNet is taken.
        target_parts: pipeline from which everything but the target's UNet is taken.
        kind: auto tells a style, which shows on all words, from a concept, which shows on few
            [default: auto].
        teacher: effect: the target's own answer and what the adapter changes on the source;
            absolute: what the source with the adapter answers.
        trigger: word the adapter was trained with: --trigger once for each [default: those in its
            header].
        budget: low: 48 pictures (24 texts), 256 rows, 50 steps; high: 256 (192), 1024, 200.
        steps: of the student [default: 100; a concept taught anew 200; from nothing 300].
        rows: noised samples that the student learns from [default: 512].
        batch: rows of a step [default: 32; 8 texts].
        micro_batch: of them through the net at once, on each device; 0 for all [default: what 16 GB
            are sure to hold: one row at 1024 pixels, four at 512].
        seed: of everything: the same command gives the same file.
        prompts: file of what is drawn, a prompt in a line [default: 32 of many kinds].
        pictures: that each model draws [default: 128].
        size: height and width of pictures in pixels [default: what the target was trained on].
        texts: that each language model writes [default: 64].
        tokens: of each text [default: 96].
        draw_steps: of the samplers [default: 25].
        guidance: how much prompts count while drawing [default: 1, not at all].
        at_once: pictures or rows drawn or asked together, on each device [default: one at 1024
            pixels, four at 512]; texts on all devices together [default: 16].
        dtype: what both nets compute in [default: float32 on a CPU, else bfloat16].
        format: key convention of the output; same: the input's, LoRA factors alone.
        overwrite: replace an existing output.
        strip_metadata: keep no header string but prolora, format and the licence.
        assume_base: id of the base model that the adapters were trained on (sdxl, ssd-1b, ...).
        allow_pickle: read a pickle, too (.pt .bin .ckpt .pth); needs torch, runs it apart.
        ignore_license: refine adapters whose licence or sidecar forbids derivatives, too.
        decides: `migrate --method auto`: what cannot be taught is copied.
    """
    if not inputs:
        raise UsageError("refine needs at least one adapter", code=Refusal.BAD_OPTION)
    from prolora_jax.catalog.refined import refine_files
    from prolora_jax.evaluation.side_by_side import usual_dtype
    from prolora_jax.migration.files import Writing
    from prolora_jax.plans.options import MigrationOptions
    from prolora_jax.refine.job.bases import DrawingBases
    from prolora_jax.refine.job.files import RefineRequest

    both = {"teacher": teacher, "seed": seed, "batch": batch, "at_once": at_once}
    both |= {"steps": steps, "micro_batch": micro_batch}
    drawn = {"pictures": pictures, "rows": rows, "draw_steps": draw_steps, "guidance": guidance}
    drawn |= {"kind": kind, "prompts": prompts, "size": size, "trigger": trigger or None}
    asked = _asked(budget, both, drawn, {"texts": texts, "tokens": tokens})
    writing = Writing(
        format, strip_metadata, overwrite, allow_pickle, ignore_license=ignore_license
    )
    options = MigrationOptions(method="copy", assume_base=assume_base)
    request = RefineRequest(writing=writing, options=options, decides=decides, **asked)
    computed = usual_dtype() if dtype == "auto" else dtype
    bases = DrawingBases(source, target, source_parts, target_parts, computed)
    reporter = Reporter(common.quiet)
    with reporter.shown():
        found = refine_files(
            inputs,
            out_path,
            bases,
            request,
            store=common.basis_store(keeps=False),
            workers=common.processes,
            progress=reporter,
        )
    if common.json:
        write_json(_document(found))
    else:
        _show(out(), found)
    return 1 if found.refused else 0


def _asked(
    budget: Literal["low", "normal", "high"],
    both: Mapping[str, Any],
    drawn: Mapping[str, Any],
    written: Mapping[str, int | None],
) -> dict[str, Any]:
    """What is asked of either kind of base model: what was given goes before the budget."""
    from prolora_jax.io.documents import read_prompts
    from prolora_jax.refine.job.recipe import BUDGETS, RefineRecipe
    from prolora_jax.refine.lm.recipe import LM_BUDGETS, LmRecipe

    shared, pictures, texts = _given(both), _given(drawn), _given(written)
    told = {name: value for name, value in pictures.items() if name not in {"size", "trigger"}}
    if "prompts" in told:
        told["prompts"] = read_prompts(told["prompts"])
    of_pictures: dict[str, Any] = {**BUDGETS[budget], **shared, **told}
    of_texts: dict[str, Any] = {**LM_BUDGETS[budget], **shared, **texts}
    return {
        "recipe": RefineRecipe(**of_pictures),
        "texts": LmRecipe(**of_texts),
        "words": pictures.get("trigger", ()),
        "pixels": pictures.get("size"),
        "only_drawn": tuple(pictures),
        "only_written": tuple(texts),
    }


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _document(found: "RefinedFiles") -> dict[str, object]:
    files = []
    for one in found.found:
        record = None if one.report is None else one.report.refined
        refusal = one.refusal
        files.append(
            {
                "input": str(one.path),
                "output": None if one.report is None else str(one.output),
                "refined": record,
                "decided": None if one.report is None else one.report.decided,
                "code": None if refusal is None else refusal.code,
                "message": None if refusal is None else str(refusal),
            }
        )
    before = [str(path) for path in found.finished_before]
    return {"files": files, "finished_before": before, "passed_over": found.passed_over}


def _show(console: Console, found: "RefinedFiles") -> None:
    records = [o.report.refined for o in found.found if o.report is not None and o.report.refined]
    if records:
        first = records[0]
        console.print(f"R = {first.disagreement:.3f}. {first.sentence}")
        table = Table(title="Adapters", title_justify="left")
        for name in ("output", "way", "kind", "triggers", "loss", "effect missed"):
            table.add_column(name)
        for one in found.found:
            if one.report is not None and one.report.refined is not None:
                table.add_row(str(one.output), *_row(one.report.refined))
        console.print(table)
    _show_decided(console, found)
    for one in found.refused:
        show_error(str(one.refusal))
    if found.finished_before:
        console.print(f"{len(found.finished_before)} outputs were there already, as asked.")
    if found.passed_over:
        console.print(f"{len(found.passed_over)} files were passed over: no adapters of anybody.")


def _show_decided(console: Console, found: "RefinedFiles") -> None:
    """What `--method auto` chose for each adapter, and why."""
    said = [(one.output, one.report.decided) for one in found.found if one.report is not None]
    chosen = [(output, why) for output, why in said if why is not None]
    for output, why in chosen[:SHOWN]:
        console.print(f"{output}: {why}.")
    if len(chosen) > SHOWN:
        console.print(f"... and {len(chosen) - SHOWN} more (--json has all of them)")


def _row(record: "Refined") -> list[str]:
    kind = "style" if record.is_style else "concept"
    triggers = ", ".join(record.triggers[:4]) + (" ..." if len(record.triggers) > 4 else "")
    if record.missed is None:
        return ["copied", kind, triggers, "", ""]
    way = "refined" if record.way == "refine" else "taught anew"
    curve, tenth = record.loss_curve, max(1, len(record.loss_curve) // 10)
    first, last = (sum(part) / len(part) for part in (curve[:tenth], curve[-tenth:]))
    before, after = record.missed
    missed = f"{before:.3f} to {after:.3f}"
    if record.missed_by_teacher is not None:
        missed += f" (teacher {record.missed_by_teacher:.3f})"
    return [way, kind, triggers, f"{first:.4g} to {last:.4g}", missed]
