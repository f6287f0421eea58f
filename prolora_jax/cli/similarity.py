"""`prolora similarity`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from prolora_jax.cli.console import Common, Reporter, out, write_json

COMMON = Common()


def similarity(
    *,
    source: Path,
    target: Path,
    modules: Literal["attn", "linear", "all"] = "attn",
    basis_rank: str = "energy=0.9",
    pair_rank: Literal["max", "own"] = "max",
    plot: Path | None = None,
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
    """
    from prolora_jax.cli import tables
    from prolora_jax.io.outputs.protected import require_ending
    from prolora_jax.migration import base_similarity
    from prolora_jax.plans.options import MigrationOptions

    require_ending(plot, ".png")
    options, reporter = (
        MigrationOptions(basis_rank=basis_rank, pair_rank=pair_rank),
        Reporter(common.quiet),
    )
    how = {"store": common.basis_store(), "workers": common.processes, "progress": reporter}
    with reporter.shown():
        found = base_similarity.similarity(source, target, modules, options, **how)
    if plot is not None:
        from prolora_jax.evaluation.pictures import similarity_map

        similarity_map(found, plot)
    if common.json:
        compared, measures = found.compared, found.measures
        document = {
            "source": found.source,
            "target": found.target,
            "relation": found.relation,
            "sentence": found.relation.sentence,
            "alignments": found.alignments,
            "modules": {p: {"source_path": compared[p], "measure": m} for p, m in measures.items()},
        }
        write_json(document)
        return 0
    tables.show_similarity(out(), found.measures)
    tables.show_alignments(out(), found.alignments)
    if plot is not None:
        out().print(f"Wrote {plot}")
    out().print(found.relation.sentence)
    return 0
