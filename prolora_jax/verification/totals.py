"""The totals of a folder's reports, against the file, its input and the plan."""

from collections.abc import Mapping

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.plans.folder_report import WholeReport, shared_options
from prolora_jax.plans.plan import MigrationPlan
from prolora_jax.verification.weights import update_norm

SLACK = 1e-3
"""Of a squared norm: products of factors in float32, and what a 16-bit output rounds."""


def total_problems(
    told: WholeReport,
    plan: MigrationPlan,
    before: Adapter,
    output: Adapter,
    norms: Mapping[str, float],
    matched_by: str,
) -> list[str]:
    """What of a file's totals is not so.

    Args:
        told: the report.
        plan: made anew.
        before: the input.
        output: the file.
        norms: of the updates as recomputed, by target path.
        matched_by: how modules were matched anew.
    """
    squares = {m.path: update_norm(m) ** 2 for m in before.modules}
    moved = {module.source_path for module in told.modules}
    left = {s.source_path for s in told.skipped if s.source_path is not None} - moved
    ranks = {module.path: module.rank for module in before.modules}
    wanted = {
        "modules": len(moved) + len(left),
        "moved": len(moved),
        "rank_in": max((ranks.get(path, 0) for path in moved), default=0),
        "rank_out": max((module.rank for module in output.modules), default=0),
        "energy_in": sum(squares.values()),
        "energy_moved": sum(squares[path] for path in {s.source_path for s in plan.steps}),
        "energy_out": sum(norm**2 for norm in norms.values()),
    }
    whole, out = wanted["energy_in"], wanted["energy_out"]
    scale = max(abs(own.scale) for own in told.options.variants)
    slack: dict[str, float] = {
        "energy_in": SLACK * whole,
        "energy_moved": SLACK * whole,
        "energy_out": SLACK * max(whole * scale**2, out),
    }
    problems = [
        f"report has totals.{name} {getattr(told.totals, name)}, recomputed {value:.6g}"
        for name, value in wanted.items()
        if not abs(getattr(told.totals, name) - value) <= slack.get(name, 0.0)
    ]
    if told.shared != shared_options(told.options):
        problems.append(f"pair.report.json has options {told.shared}, the file's report others")
    if told.matched_by != matched_by:
        problems.append(
            f"pair.report.json has matched_by {told.matched_by}, recomputed {matched_by}"
        )
    return problems
