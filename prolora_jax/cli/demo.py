"""`prolora demo`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from cyclopts import Parameter

from prolora_jax.cli.console import Common, Reporter, out

COMMON = Common()


def demo(
    *,
    out_path: Annotated[Path, Parameter(name="--out")] = Path("prolora-demo"),
    common: Annotated[Common, Parameter(name="*")] = COMMON,
) -> int:
    """The whole job on two small nets made on the spot: every arm, a table, a heat map.

    Makes an SDXL-like and an SSD-1B-like net of a few megabytes and a kohya adapter, moves the
    adapter with every arm, verifies each output, writes everything to OUT. No network, no GPU.

    Args:
        out_path: folder for everything the demo writes; what it wrote before is replaced.
    """
    import msgspec

    from prolora_jax.cli import tables
    from prolora_jax.evaluation.demo import make_files, planted_block
    from prolora_jax.evaluation.pictures import block_map, similarity_panels
    from prolora_jax.io import atomic
    from prolora_jax.io.adapters import load_adapter, save_adapter
    from prolora_jax.io.basis_store import FolderStore
    from prolora_jax.io.checkpoint import load_base_model
    from prolora_jax.io.reports import write_report
    from prolora_jax.migrate import make_plan, run_plan
    from prolora_jax.options import MigrationOptions
    from prolora_jax.pair import BasePair
    from prolora_jax.relation import relation
    from prolora_jax.verify import verify_adapter

    files = make_files(out_path.resolve())
    store = FolderStore(out_path / "bases") if common.store is None else common.basis_store()
    pair = BasePair(load_base_model(files.source), load_base_model(files.target), store)
    adapter = load_adapter(files.adapter, pair.source.spec)
    base = MigrationOptions()
    reporter = Reporter(common.quiet)
    rows: list[dict[str, Any]] = []
    with reporter.shown():
        matching = pair.matching()
        attention = [p for p, m in pair.target.spec.modules.items() if m.kind_is("attn")]
        measures = pair.measure({p: matching.pairs[p] for p in attention}, base, reporter)
        for method in get_args(get_type_hints(MigrationOptions)["method"]):
            options = replace(base, method=method)
            plan = make_plan(adapter, pair, options, reporter)
            migrated, report = run_plan(adapter, pair, plan, reporter)
            path = out_path / f"style.{method}.safetensors"
            save_adapter(migrated, path, base=pair.target.spec, overwrite=True)
            write_report(path, report)
            written = load_adapter(path, pair.target.spec)
            checked = verify_adapter(written, adapter, pair.source, pair.target, report.to_dict())
            rows.append(tables.demo_row(method, report, checked))
    picture = out_path / "similarity.png"
    title = f"{pair.source.spec.name} -> {pair.target.spec.name}   (red dot: below the gate)"
    sides = {path: measure.sides for path, measure in measures.items()}
    block_map(similarity_panels(sides, base.min_similarity), title, picture)
    recovered = [
        all(planted_block(a.slot, j) == i for i, j in a.pairs)
        for a in matching.alignments
        if a.level == "blocks"
    ]
    verdict = relation(measures, 0, base)
    summary = {
        "arms": rows,
        "slots": len(recovered),
        "slots_recovered": sum(recovered),
        "relation": verdict.word,
        "sentence": verdict.sentence,
        "folder": str(out_path),
    }
    atomic.write_text(out_path / "demo.json", msgspec.json.encode(summary).decode() + "\n")
    if common.json:
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")
        return 0
    tables.show_demo(out(), rows)
    tables.show_alignments(out(), matching.alignments)
    out().print(
        f"Block choice recovered in {sum(recovered)} of {len(recovered)} slots.\n"
        f"{verdict.sentence}\n"
        "These nets are random, not trained: norms and verdicts are real, picture quality is not "
        "shown here.\n"
        f"Wrote {out_path}/ (adapters, reports, {picture.name})"
    )
    return 0
