"""What `prolora demo` shows."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from prolora_jax.plans.report import MigrationReport

if TYPE_CHECKING:
    from prolora_jax.evaluation.laboratory.trials import Result
    from prolora_jax.verification.result import VerifyReport


def demo_row(
    method: str, report: MigrationReport, checked: "VerifyReport", result: "Result"
) -> dict[str, Any]:
    """One arm in numbers."""
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
        "worst_error": checked.worst_error,
    }


def show_demo(console: Console, summary: dict[str, Any]) -> None:
    """The arms side by side, between no adapter and the one that was trained on the target."""
    table = Table(title="A style moved by every arm: how much of it arrives")
    heads = ("arm", "loss", "style arrived", "moved", "skipped", "norm out / in", "verified")
    for name in heads:
        table.add_column(name, justify="left" if name == "arm" else "right")
    table.add_row("no LoRA", f"{summary['loss_without']:.4f}", "0 %", "", "", "", "")
    for row in summary["arms"]:
        value, low, high = row["share"]
        verdict = "yes" if row["verified"] else "NO"
        table.add_row(
            row["method"],
            f"{row['loss']:.4f}",
            f"{value:.0%} ({low:.0%} to {high:.0%})",
            str(row["migrated"] + row["copied"]),
            str(row["skipped"]),
            f"{row['norm_ratio']:.3f}",
            f"{verdict} (error {row['worst_error']:.1e})",
        )
    table.add_row("trained on target", f"{summary['loss_trained']:.4f}", "100 %", "", "", "", "")
    console.print(table)
    console.print(
        "loss: denoising error on held-out digits in this style. style arrived: share of the loss "
        "between no LoRA and trained on target, with its 95 % interval."
    )
