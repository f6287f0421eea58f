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
    """The whole job on two small trained nets: a style moved by every arm, judged, drawn.

    The nets ship with the package: one draws digits, the other is what SSD-1B is to SDXL, the same
    net with blocks removed and distilled. A style trained on the first is moved to the second with
    every arm; each output is verified, measured on held-out digits and shown beside the others.
    No network, no GPU.

    Args:
        out_path: folder for everything the demo writes; what it wrote before is replaced.
    """
    import msgspec

    from prolora_jax.cli import demo_tables, tables
    from prolora_jax.evaluation import demo as shop
    from prolora_jax.evaluation.laboratory.adapters import factors_of
    from prolora_jax.evaluation.laboratory.samples import write_grid
    from prolora_jax.evaluation.pictures import block_map, similarity_panels
    from prolora_jax.io import atomic
    from prolora_jax.io.adapters.files import load_adapter, save_adapter
    from prolora_jax.io.outputs.reports import write_report
    from prolora_jax.io.stores.basis_store import FolderStore
    from prolora_jax.migration.single import make_plan, run_plan
    from prolora_jax.plans.options import MigrationOptions
    from prolora_jax.plans.relation import relation
    from prolora_jax.verification.adapter import verify_adapter

    store = FolderStore(out_path / "bases") if common.store is None else common.basis_store()
    methods = get_args(get_type_hints(MigrationOptions)["method"])
    base, reporter = MigrationOptions(), Reporter(common.quiet)
    rows: list[dict[str, Any]] = []
    with reporter.shown():
        reporter("drawing and judging", 0, len(methods) + 2)
        contest = shop.demo_contest(store)
        pair = contest.pair.bases
        adapter = load_adapter(shop.style_file(), pair.source.spec)
        pictures = {"no LoRA: 0%": shop.drawn(contest, {})}
        matching = pair.matching()
        linear = [p for p, m in pair.target.spec.modules.items() if m.kind_is("linear")]
        measures = pair.measure(
            {p: matching.pairs[p] for p in linear if p in matching.pairs}, base, reporter
        )
        for place, method in enumerate(methods, 1):
            reporter("drawing and judging", place, len(methods) + 2)
            options = replace(base, method=method)
            plan = make_plan(adapter, pair, options, reporter)
            migrated, report = run_plan(adapter, pair, plan, reporter)
            path = out_path / f"style.{method}.safetensors"
            save_adapter(migrated, path, base=pair.target.spec, overwrite=True)
            write_report(path, report)
            written = load_adapter(path, pair.target.spec)
            checked = verify_adapter(written, adapter, pair.source, pair.target, report.to_dict())
            factors = factors_of(written)
            row = demo_tables.demo_row(method, report, checked, contest.judge(factors))
            rows.append(row)
            pictures[f"{method}: {row['share'][0]:.0%}"] = shop.drawn(contest, factors)
        pictures["trained on target: 100%"] = shop.drawn(contest, contest.trained)
        reporter("drawing and judging", len(methods) + 2, len(methods) + 2)
    write_grid(pictures, out_path / "pictures.png")
    title = "source -> pruned target   (red dot: below the gate)"
    sides = {path: measure.sides for path, measure in measures.items()}
    heat_map = out_path / "similarity.png"
    block_map(similarity_panels(sides, base.min_similarity), title, heat_map)
    verdict = relation(measures, 0, base)
    summary = {
        "arms": rows,
        "loss_without": float(contest.none_losses.mean()),
        "loss_trained": float(contest.trained_losses.mean()),
        "relation": verdict.word,
        "sentence": verdict.sentence,
        "folder": str(out_path),
    }
    atomic.write_text(out_path / "demo.json", msgspec.json.encode(summary).decode() + "\n")
    if common.json:
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")
        return 0
    demo_tables.show_demo(out(), summary)
    tables.show_alignments(out(), matching.alignments)
    out().print(
        f"{verdict.sentence}\n"
        "The nets were trained on handwritten digits (E. Alpaydin and C. Kaynak, UCI, CC BY 4.0); "
        "the style turns paper into ink.\n"
        f"Wrote {out_path}/: pictures.png (look at it first), {heat_map.name}, adapters, reports"
    )
    return 0
