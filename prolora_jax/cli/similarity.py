"""`prolora similarity`."""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from prolora_jax.cli.console import Common, Reporter, out, write_json
from prolora_jax.cli.unused import refuse_idle

if TYPE_CHECKING:
    from prolora_jax.migration.base_similarity import BaseSimilarity

COMMON = Common()
SAMPLES = Group("With --by-samples", sort_key=2)


def similarity(
    *,
    source: Path,
    target: Path,
    modules: Literal["attn", "linear", "all"] = "attn",
    basis_rank: str = "energy=0.9",
    pair_rank: Literal["max", "own"] = "max",
    plot: Path | None = None,
    by_samples: Annotated[bool, Parameter(negative="", group=SAMPLES)] = False,
    source_parts: Annotated[Path | None, Parameter(group=SAMPLES)] = None,
    target_parts: Annotated[Path | None, Parameter(group=SAMPLES)] = None,
    prompts: Annotated[Path | None, Parameter(group=SAMPLES)] = None,
    pictures: Annotated[int, Parameter(group=SAMPLES)] = 128,
    size: Annotated[int | None, Parameter(group=SAMPLES)] = None,
    draw_steps: Annotated[int, Parameter(group=SAMPLES)] = 25,
    seed: Annotated[int, Parameter(group=SAMPLES)] = 0,
    at_once: Annotated[int | None, Parameter(group=SAMPLES)] = None,
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """How close two base models are, module by module, and what to expect.

    Ends in one sentence. Close relatives: at least 90 % of the compared modules pass phi >= 0.8
    on both sides with a chance-corrected similarity >= 0.5; unrelated: fewer than 10 %.

    Args:
        source: base model: diffusers folder or single file.
        target: base model to compare with it.
        modules: attn: attention layers; linear: all linear layers; all: convolutions, too.
        basis_rank: energy=0.9, rank=320, fraction=0.5, numerical, gap or optimal.
        pair_rank: one common k per pair (max), or each base its own.
        plot: PNG to write: a heat map by block and role.
        by_samples: let both draw instead, and report R, how well each knows the other's samples:
            whether `prolora refine` will help. Needs the extra pipelines.
        source_parts: pipeline from which everything but the source's UNet is taken.
        target_parts: pipeline from which everything but the target's UNet is taken.
        prompts: file of what is drawn, a prompt in a line [default: 32 of many kinds].
        pictures: that each draws.
        size: height and width of pictures in pixels [default: what the target was trained on].
        draw_steps: of the samplers.
        seed: of the noise.
        at_once: pictures drawn together, on each device [default: one at 1024 pixels, four at 512].
    """
    drawn = {"source_parts": source_parts, "target_parts": target_parts, "prompts": prompts}
    drawn |= {"pictures": pictures, "size": size, "draw_steps": draw_steps, "seed": seed}
    drawn |= {"at_once": at_once}
    compared = {"modules": modules, "basis_rank": basis_rank, "pair_rank": pair_rank, "plot": plot}
    if not by_samples:
        _refuse_idle(drawn, "without --by-samples")
    else:
        _refuse_idle(compared, "beside --by-samples")
        pools = {"pictures": pictures, "draw_steps": draw_steps, "seed": seed, "at_once": at_once}
        places = source, target, source_parts, target_parts
        return _by_samples(places, prompts, size, pools, common)
    from prolora_jax.io.outputs.protected import require_ending
    from prolora_jax.migration import base_similarity
    from prolora_jax.plans.options import MigrationOptions

    require_ending(plot, ".png")
    options = MigrationOptions(basis_rank=basis_rank, pair_rank=pair_rank)
    reporter = Reporter(common.quiet)
    how = {"store": common.basis_store(), "workers": common.processes, "progress": reporter}
    with reporter.shown():
        found = base_similarity.similarity(source, target, modules, options, **how)
    if plot is not None:
        from prolora_jax.evaluation.pictures import similarity_map

        similarity_map(found, plot)
    _show(found, plot, as_json=common.json)
    return 0


def _refuse_idle(given: Mapping[str, object], beside: str) -> None:
    """Refuse options that were given and do nothing."""
    usual = signature(similarity).parameters
    for name, value in given.items():
        refuse_idle(f"--{name.replace('_', '-')}", value != usual[name].default, beside)


def _show(found: "BaseSimilarity", plot: Path | None, *, as_json: bool) -> None:
    from prolora_jax.cli import tables

    if as_json:
        compared, measures = found.compared, found.measures
        document = {
            "source": found.source,
            "target": found.target,
            "relation": found.relation,
            "sentence": found.relation.sentence,
            "lookalikes": found.lookalikes,
            "alignments": found.alignments,
            "modules": {p: {"source_path": compared[p], "measure": m} for p, m in measures.items()},
        }
        write_json(document)
        return
    tables.show_similarity(out(), found.measures)
    tables.show_alignments(out(), found.alignments)
    if plot is not None:
        out().print(f"Wrote {plot}")
    for said in found.lookalikes:
        out().print(said)
    out().print(found.relation.sentence)


def _by_samples(
    places: tuple[Path, Path, Path | None, Path | None],
    prompts: Path | None,
    size: int | None,
    pools: dict[str, Any],
    common: Common,
) -> int:
    """Report R."""
    from prolora_jax.evaluation.side_by_side import usual_dtype
    from prolora_jax.io.documents import read_prompts
    from prolora_jax.refine.job.bases import DrawingBases
    from prolora_jax.refine.job.by_samples import by_samples
    from prolora_jax.refine.job.prompts import GENERIC
    from prolora_jax.refine.job.recipe import RefineRecipe

    recipe = RefineRecipe(GENERIC if prompts is None else read_prompts(prompts), **pools)
    reporter = Reporter(common.quiet)
    with reporter.shown():
        found = by_samples(DrawingBases(*places, usual_dtype()), recipe, size, reporter)
    if common.json:
        write_json(found)
        return 0
    named = {"L_s(T)": "source_on_target", "L_t(S)": "target_on_source"}
    named |= {"L_t(T)": "target_own", "L_s(S)": "source_own"}
    shown = ", ".join(f"{name} {found.losses[field]:.4g}" for name, field in named.items())
    out().print(f"R = {found.disagreement:.3f} ({shown}; {found.pictures} pictures each)")
    out().print(found.sentence)
    return 0
