"""`prolora evaluate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from prolora_jax.cli.console import Common, Reporter, out, write_json
from prolora_jax.cli.generate import seeds_of
from prolora_jax.cli.unused import refuse_idle, refuse_idle_migration
from prolora_jax.engines.progress import Progress
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.plans.options import MigrationOptions

if TYPE_CHECKING:
    from prolora_jax.evaluation.judging.arms import HowToDraw
    from prolora_jax.evaluation.judging.concept_prompts import SubjectKind
    from prolora_jax.evaluation.judging.judge import Judging
    from prolora_jax.evaluation.judging.protocols import Plan, Protocol
    from prolora_jax.evaluation.judging.run import Evaluation

COMMON = Common()
OPTIONS = MigrationOptions()
LIST = Parameter(negative="")
KEPT = "embeddings"
"""Folder of the output where embeddings stay."""


def evaluate(
    *,
    out_path: Annotated[Path, Parameter(name="--out")],
    source: Path | None = None,
    target: Path | None = None,
    lora: Annotated[tuple[Path, ...], LIST] = (),
    prompts: Path | None = None,
    pictures: Annotated[tuple[Path, ...], LIST] = (),
    trained: Annotated[tuple[Path, ...], LIST] = (),
    refined: Annotated[tuple[Path, ...], LIST] = (),
    scale: Annotated[tuple[float, ...], LIST] = (),
    arms: str | None = None,
    seeds: str | None = None,
    metrics: str | None = None,
    protocol: Literal["paper-style", "paper-concept"] | None = None,
    subject: str | None = None,
    subject_kind: Literal["object", "live"] = "object",
    references: Path | None = None,
    weights_dir: Path | None = None,
    tokenizer: Path | None = None,
    parts: Path | None = None,
    source_parts: Path | None = None,
    negative: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    size: int | None = None,
    sampler: Literal["auto", "ddim", "pndm", "euler", "euler-a", "dpm", "unipc", "lcm"] = "auto",
    spacing: Literal["leading", "linspace", "trailing"] | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    at_once: int = 4,
    vae_tile: Literal["auto", "off"] | int = "auto",
    migrate: Annotated[MigrationOptions, Parameter(name="migrate", group="Migration")] = OPTIONS,
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """What adapters are worth on a base model: drawn by every arm, measured, shown on a page.

    Every arm draws the same prompts from the same noise: none (the target alone), every method of
    a migration, trained (files of the target) and refine (likewise, or made here as `prolora
    refine` would). Pictures are files of their own, and what was drawn before is kept: the same
    command again does what is missing. OUT gets pictures/, evaluation.json, table.csv,
    pictures.csv, index.html, and refined/ with what was refined here.
    Needs the extra: pip install 'prolora_jax[pipelines]'; to refine here [pipelines,refine].

    Args:
        source: base model the adapters were trained on.
        target: base model that draws: a diffusers pipeline's folder, or a UNet with --parts.
        lora: adapter of the source, judged by itself; several: --lora once for each.
        out_path: folder.
        prompts: file with a prompt in each line.
        pictures: instead of source, target and lora: folder of pictures that another program drew,
            an arm by its name; several: --pictures once for each. Sorted by name, those of the
            first prompt first.
        trained: adapter of the target for the same as each --lora, in their order.
        refined: what `prolora refine` made of each --lora, in their order [default: made here, as
            its defaults are, where --arms names refine].
        scale: strength of each --lora, in their order [default: 1].
        arms: with commas between [default: none,copy,prolora,prolora-full, and refine and trained
            where files are given].
        seeds: of the noise, such as 0,1,5 or 0-3 [default: 0-3, or the protocol's].
        metrics: with commas between: hps, hps-v2.0, clip-t, clip-i, dino, csd, csd-mmd, fd-dino,
            lpips-diversity [default: clip-t, or the protocol's].
        protocol: the paper's seeds and metrics; its published numbers stand beside ours.
        subject: with paper-concept instead of prompts: DreamBooth's 25 about it, by the words that
            the adapter was trained with, such as 'sks dog'.
        subject_kind: object, or live: what can wear a hat.
        references: folder of pictures of the subject, for clip-i, dino, csd, csd-mmd and fd-dino
            [default: the pictures of the arm trained].
        weights_dir: folder of encoders: NAME.safetensors or NAME/model.safetensors [default: the
            hub].
        tokenizer: folder of CLIP's tokenizer, for metrics that read prompts [default: beside the
            weights in NAME/, else the target's].
        parts: pipeline from which everything but the target's UNet is taken.
        source_parts: the same for the source's, where refine is made here.
        negative: what not to draw.
        steps: of the sampler [default: 25; with lcm 4].
        guidance: how much the prompt counts [default: 7.5, for SDXL's family 5; with lcm 1].
        size: height and width in pixels [default: what the target was trained on].
        sampler: auto: the one that the pipeline names.
        spacing: where its steps are [default: as in the pipeline].
        dtype: what is computed in [default: float32 on a CPU, else bfloat16].
        at_once: pictures drawn or looked at together, on each device.
        vae_tile: decode pictures in tiles of so many pixels, height and width, for less memory and
            not quite the same picture; off: in one piece; auto: tiles of 512 above 1024 x 1024.
    """
    from prolora_jax.evaluation.judging.arms import HowToDraw
    from prolora_jax.evaluation.judging.judge import Judging
    from prolora_jax.evaluation.judging.protocols import PLANS
    from prolora_jax.evaluation.side_by_side import usual_dtype

    plan = PLANS[protocol] if protocol is not None else None
    usual = ("clip-t",) if plan is None else plan.metrics
    by = {"weights_dir": weights_dir, "tokenizer": tokenizer, "references": references}
    judging = Judging(_listed(metrics) or usual, **by, at_once=at_once, keep=out_path / KEPT)
    shown = _prompts(prompts, subject, subject_kind, protocol, given=bool(pictures))
    reporter = Reporter(common.quiet)
    if pictures:
        _refuse_beside(source=source, target=target, lora=lora, trained=trained, refined=refined)
        _refuse_beside(arms=arms, seeds=seeds, scale=scale, parts=parts, source_parts=source_parts)
        _refuse_beside(steps=steps, guidance=guidance, size=size, spacing=spacing)
        _refuse_beside(negative=negative, sampler=sampler != "auto", dtype=dtype != "auto")
        _refuse_beside(vae_tile=vae_tile != "auto", migrate=migrate != OPTIONS)
        with reporter.shown():
            found = _of_pictures(pictures, shown, judging, out_path, protocol, reporter)
        return _told(found, out_path, json=common.json)
    told: dict[str, Any] = {"sampler": sampler, "spacing": spacing, "negative": negative}
    told |= {"steps": steps, "guidance": guidance, "size": size, "at_once": at_once}
    told |= {"dtype": usual_dtype() if dtype == "auto" else dtype, "parts": parts and str(parts)}
    how = HowToDraw(_required("--target", target), **told, vae_tile=vae_tile)
    drawn = arms, shown, _seeds(seeds, plan)
    files = lora, trained, refined, scale
    bases = _required("--source", source), source_parts and str(source_parts)
    asked = _asked(files, bases, how, drawn, judging, migrate, protocol)
    kept = {"store": common.basis_store(), "workers": common.processes, "progress": reporter}
    with reporter.shown():
        found = _drawn(asked, out_path, **kept)
    return _told(found, out_path, json=common.json)


def _prompts(
    file: Path | None,
    subject: str | None,
    kind: "SubjectKind",
    protocol: "Protocol | None",
    *,
    given: bool,
) -> tuple[str, ...]:
    """What is drawn, or what pictures that are given show; of those it may be left open."""
    from prolora_jax.evaluation.judging.concept_prompts import concept_prompts
    from prolora_jax.io.documents import read_prompts

    refuse_idle("--subject-kind", kind != "object" and subject is None, "without --subject")
    if subject is not None:
        refuse_idle("--subject", file, "beside --prompts")
        refuse_idle("--subject", protocol != "paper-concept", "without --protocol paper-concept")
        return concept_prompts(subject, kind)
    if file is None and given:
        return ()
    # Two lines alike are two prompts of pictures that are there, which are told by their places.
    return read_prompts(Path(_required("--prompts", file)), each_once=not given)


def _of_pictures(
    pictures: tuple[Path, ...],
    prompts: tuple[str, ...],
    judging: "Judging",
    out_path: Path,
    protocol: "Protocol | None",
    progress: Progress,
) -> dict[str, Any]:
    from prolora_jax.evaluation.judging.given import given_set
    from prolora_jax.evaluation.judging.run import evaluate_given

    more: dict[str, Any] = {"protocol": protocol, "progress": progress}
    return evaluate_given(given_set(pictures, prompts), judging, out_path, **more)


def _drawn(asked: "Evaluation", out_path: Path, **kept: Any) -> dict[str, Any]:
    from prolora_jax.evaluation.judging.run import evaluate as run

    return run(asked, out_path, **kept)


def _asked(
    files: tuple[tuple[Path, ...], tuple[Path, ...], tuple[Path, ...], tuple[float, ...]],
    bases: tuple[str, str | None],
    how: "HowToDraw",
    drawn: tuple[str | None, tuple[str, ...], tuple[int, ...]],
    judging: "Judging",
    options: MigrationOptions,
    protocol: "Protocol | None",
) -> "Evaluation":
    """What is to be drawn and judged, from the words of the command line."""
    from prolora_jax.evaluation.judging.request import REFINE, TRAINED, subjects_of
    from prolora_jax.evaluation.judging.run import Evaluation

    lora, trained, refined, scale = files
    source, source_parts = bases
    given, prompts, seeds = drawn
    own = {REFINE: refined, TRAINED: trained}
    arms = _listed(given) or _usual_arms(own)
    if how.size is not None and (how.size < 8 or how.size % 8):
        raise UsageError(
            f"--size {how.size}: expected a multiple of 8, in pixels; correct it",
            code=Refusal.BAD_OPTION,
        )
    _require_used(arms, own, source_parts, options)
    return Evaluation(
        subjects=tuple(subjects_of(lora, own, scale)),
        source=source,
        how=how,
        arms=arms,
        prompts=prompts,
        seeds=seeds,
        judging=judging,
        options=options,
        protocol=protocol,
        source_parts=source_parts,
    )


def _require_used(
    arms: tuple[str, ...],
    own: Mapping[str, tuple[Path, ...]],
    source_parts: str | None,
    options: MigrationOptions,
) -> None:
    """Refuse what would do nothing to any arm."""
    from prolora_jax.evaluation.judging.arms import METHODS
    from prolora_jax.evaluation.judging.request import OPTIONS as NAMED
    from prolora_jax.evaluation.judging.request import REFINE

    shown = f"beside --arms {','.join(arms)}"
    for arm, files in own.items():
        refuse_idle(NAMED[arm], files and arm not in arms, shown)
    makes = REFINE in arms and not own[REFINE]
    refuse_idle("--source-parts", source_parts and not makes, "where nothing is refined here")
    if not {*arms} & {*METHODS}:
        refuse_idle_migration(options, shown)


def _required(option: str, value: Path | None) -> str:
    if value is None:
        raise UsageError(
            f"{option}: found none; expected one, or --pictures DIR to judge what is there",
            code=Refusal.BAD_OPTION,
        )
    return str(value)


def _told(found: Mapping[str, Any], out_path: Path, *, json: bool) -> int:
    if json:
        write_json(found)
        return 0
    for subject in found["subjects"]:
        _show(out(), subject)
    out().print(f"Wrote {out_path / 'index.html'}")
    return 0


def _refuse_beside(**given: object) -> None:
    """Refuse what says how to draw beside pictures that are there."""
    for name, value in given.items():
        if value not in {None, (), False}:
            raise UsageError(
                f"--{name.replace('_', '-')}: found it beside --pictures, which are judged as they "
                f"are; expected one of the two; leave one out",
                code=Refusal.BAD_OPTION,
            )


def _listed(text: str | None) -> tuple[str, ...]:
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    return tuple(dict.fromkeys(part for part in parts if part))


def _usual_arms(own: Mapping[str, tuple[Path, ...]]) -> tuple[str, ...]:
    return ("none", "copy", "prolora", "prolora-full", *(arm for arm in own if own[arm]))


def _seeds(text: str | None, plan: "Plan | None") -> tuple[int, ...]:
    if text is not None:
        return seeds_of(text)
    return (0, 1, 2, 3) if plan is None else plan.seeds


def _show(console: Console, subject: Mapping[str, Any]) -> None:
    """A line for each arm: what moved, and its scores, with intervals where there are any."""
    from prolora_jax.evaluation.judging.request import REFINE
    from prolora_jax.evaluation.judging.taught import in_words

    table = Table(title=subject["name"], title_justify="left")
    for name in ("arm", *subject["scores"], "modules"):
        table.add_column(name)
    arms = [arm for by_arm in subject["scores"].values() for arm in by_arm]
    for arm in dict.fromkeys(arms):
        cells = []
        for by_arm in subject["scores"].values():
            score = by_arm.get(arm)
            if score is None:
                cells.append("")
                continue
            cell = f"{score['value']:.4g}"
            if score["interval"]:
                low, high = score["interval"]
                cell += f" [{low:.4g}, {high:.4g}]"
            cells.append(cell)
        moved = [f"{n} {what}" for what, n in subject["moved"].get(arm, {}).items()]
        moved += [in_words(subject["refined"])] * (arm == REFINE)
        table.add_row(arm, *cells, ", ".join(moved))
    console.print(table)
