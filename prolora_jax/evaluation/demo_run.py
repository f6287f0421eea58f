"""The demo as one job: a style moved by every method, verified, judged, drawn, written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import numpy as np

from prolora_jax.engines.progress import Progress
from prolora_jax.evaluation.demo import demo_contest, drawn, style_file
from prolora_jax.evaluation.demo_refine import against_copy, facts_of_refine, refine_style
from prolora_jax.evaluation.laboratory.adapters import factors_of
from prolora_jax.evaluation.laboratory.samples import write_grid
from prolora_jax.evaluation.laboratory.trials import Contest, Result
from prolora_jax.evaluation.metrics.shares import Share
from prolora_jax.evaluation.pictures import block_map, similarity_panels
from prolora_jax.io import atomic
from prolora_jax.io.adapters.files import load_adapter
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.matching.alignment import Alignment
from prolora_jax.migration.files import Writing
from prolora_jax.migration.one_file import migrate_file
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.relation import relation
from prolora_jax.plans.report import MigrationReport
from prolora_jax.verification.adapter import verify_adapter
from prolora_jax.verification.file import verify_file
from prolora_jax.verification.result import VerifyReport

METHODS: tuple[str, ...] = get_args(get_type_hints(MigrationOptions)["method"])
REFINE = "refine"
HEAT_MAP = "similarity.png"
_STAGE = "drawing and judging"


@dataclass(frozen=True)
class Demo:
    """What the demo found.

    Attributes:
        summary: in numbers, as `demo.json` has it.
        alignments: which stages and blocks of the two nets belong together.
    """

    summary: dict[str, Any]
    alignments: tuple[Alignment, ...]


def run_demo(
    out: str | Path,
    store: FolderStore | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Demo:
    """Move the demo's style by every method; verify, judge and draw each.

    Args:
        out: folder for everything it writes; what it wrote before is replaced.
        store: of subspaces; in `out` when None.
        progress: called with (what, done, total).

    Returns:
        What was found.

    Raises:
        OutputError: a file cannot be written.
    """
    out = Path(out)
    stages = len(METHODS) + 3
    progress(_STAGE, 0, stages)
    contest = demo_contest(FolderStore(out / "bases") if store is None else store)
    pair, base = contest.pair.bases, MigrationOptions()
    pictures = {"no LoRA: 0%": drawn(contest, {})}
    measures = _measured(pair, base, progress)
    rows: list[dict[str, Any]] = []
    for place, method in enumerate(METHODS, 1):
        progress(_STAGE, place, stages)
        row, pictures_of_it = _method(method, contest, out, progress)
        rows.append(row)
        pictures[f"{method}: {row['share'][0]:.0%}"] = pictures_of_it
    progress(_STAGE, stages - 2, stages)
    refine = _refine(contest, out, rows, pictures, progress)
    pictures["trained on target: 100%"] = drawn(contest, contest.trained)
    progress(_STAGE, stages, stages)
    write_grid(pictures, out / "pictures.png")
    title = "source -> pruned target   (red dot: below the gate)"
    sides = {path: measure.sides for path, measure in measures.items()}
    block_map(similarity_panels(sides, base.min_similarity), title, out / HEAT_MAP)
    verdict = relation(measures, 0, base)
    summary = {
        "arms": rows,
        "refine": refine,
        "loss_without": float(contest.none_losses.mean()),
        "loss_trained": float(contest.trained_losses.mean()),
        "relation": verdict.word,
        "sentence": verdict.sentence,
        "folder": str(out),
    }
    atomic.write_text(out / "demo.json", msgspec.json.encode(summary).decode() + "\n")
    return Demo(summary, pair.matching().alignments)


def _measured(pair: BasePair, options: MigrationOptions, progress: Progress):
    """Similarities of all linear layers."""
    known = pair.matching().pairs
    linear = [p for p, m in pair.target.spec.modules.items() if m.kind_is("linear")]
    return pair.measure({p: known[p] for p in linear if p in known}, options, progress)


def _method(
    method: str, contest: Contest, out: Path, progress: Progress
) -> tuple[dict[str, Any], np.ndarray]:
    """One method in numbers, and what the target draws with its output."""
    pair = contest.pair.bases
    options = MigrationOptions(method=method)  # pyright: ignore[reportArgumentType]
    style, path = style_file(), out / f"style.{method}.safetensors"
    _, report, _ = migrate_file(
        style,
        pair.source,
        pair.target,
        path,
        options,
        Writing(overwrite=True),
        store=pair.store,
        progress=progress,
    )
    written = load_adapter(path, pair.target.spec)
    adapter = load_adapter(style, pair.source.spec)
    checked = verify_adapter(written, adapter, pair.source, pair.target, report.to_dict())
    factors = factors_of(written)
    return _row(method, report, checked, contest.judge(factors)), drawn(contest, factors)


def _refine(
    contest: Contest,
    out: Path,
    rows: list[dict[str, Any]],
    pictures: dict[str, np.ndarray],
    progress: Progress,
) -> dict[str, Any]:
    """The arm that learns, put to the others; and what else is to be said of it."""
    path = out / f"style.{REFINE}.safetensors"
    report = refine_style(contest, path, progress)
    checked = verify_file(path)
    factors = factors_of(load_adapter(path, contest.pair.bases.target.spec))
    row = _row(REFINE, report, checked, contest.judge(factors))
    shares = {one["method"]: Share(*one["share"]) for one in (*rows, row)}
    rows.append(row)
    pictures[f"{REFINE}: {row['share'][0]:.0%}"] = drawn(contest, factors)
    compared = against_copy(shares[REFINE], shares["copy"])
    return facts_of_refine(contest, report) | {"against_copy": compared}


def _row(
    method: str, report: MigrationReport, checked: VerifyReport, result: Result
) -> dict[str, Any]:
    """One method in numbers."""
    norm_in = sum(m.norm_in**2 for m in report.modules) ** 0.5
    return {
        "method": method,
        "migrated": sum(m.action == "project" for m in report.modules),
        "copied": sum(m.action == "copy" for m in report.modules),
        "skipped": len(report.skipped),
        "rank_out": max(m.rank_out for m in report.modules),
        "norm_ratio": result.norm / norm_in,
        "loss": result.effect_loss,
        "share": list(result.arrived),
        "verified": checked.ok,
        "verdict": checked.verdict,
        "worst_error": checked.worst_error,
    }
