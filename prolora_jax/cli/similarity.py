"""`prolora similarity`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from prolora_jax.cli.console import Common, Reporter, out

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
        basis_rank: energy=0.9, rank=320, fraction=0.5 or numerical.
        pair_rank: one common k per pair (max), or each base its own.
        plot: PNG to write: a heat map by block and role.
    """
    import msgspec

    from prolora_jax.cli import tables
    from prolora_jax.io.base_models.checkpoint import load_base_model
    from prolora_jax.migration.pair import BasePair
    from prolora_jax.plans.options import MigrationOptions
    from prolora_jax.plans.relation import relation

    options = MigrationOptions(basis_rank=basis_rank, pair_rank=pair_rank)
    pair = BasePair(
        load_base_model(source), load_base_model(target), common.basis_store(), common.processes
    )
    reporter = Reporter(common.quiet)
    with reporter.shown():
        matching = pair.matching(options.match)
        chosen = [p for p, m in pair.target.spec.modules.items() if m.kind_is(modules)]
        pairs = {path: matching.pairs[path] for path in chosen if path in matching.pairs}
        measures = pair.measure(pairs, options, reporter)
    verdict = relation(measures, len(chosen) - len(pairs), options)
    if plot is not None:
        from prolora_jax.evaluation.pictures import block_map, similarity_panels

        sides = {path: measures[path].sides if path in measures else None for path in chosen}
        title = f"{pair.source.spec.name} -> {pair.target.spec.name}"
        note = "red dot: below 0.8; grey: no source module"
        block_map(similarity_panels(sides), f"{title}   ({note})", plot)
    if common.json:
        document = {
            "source": pair.source.location,
            "target": pair.target.location,
            "relation": verdict,
            "sentence": verdict.sentence,
            "alignments": matching.alignments,
            "modules": {p: {"source_path": pairs[p], "measure": m} for p, m in measures.items()},
        }
        sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
        return 0
    tables.show_similarity(out(), measures)
    tables.show_alignments(out(), matching.alignments)
    if plot is not None:
        out().print(f"Wrote {plot}")
    out().print(verdict.sentence)
    return 0
