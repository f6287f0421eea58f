"""What `prolora demo` shows."""

from typing import Any

from rich.console import Console
from rich.table import Table


def show_demo(console: Console, summary: dict[str, Any]) -> None:
    """The arms side by side, between no adapter and the one that was trained on the target."""
    table = Table(title="A style moved by every arm: how much of it arrives")
    heads = ("arm", "loss", "style arrived", "moved", "skipped", "norm out / in", "verified")
    for name in heads:
        table.add_column(name, justify="left" if name == "arm" else "right")
    table.add_row("no LoRA", f"{summary['loss_without']:.4f}", "0 %", "", "", "", "")
    for row in summary["arms"]:
        value, low, high = row["share"]
        table.add_row(
            row["method"],
            f"{row['loss']:.4f}",
            f"{value:.0%} ({low:.0%} to {high:.0%})",
            str(row["migrated"] + row["copied"]),
            str(row["skipped"]),
            f"{row['norm_ratio']:.3f}",
            _verdict(row),
        )
    table.add_row("trained on target", f"{summary['loss_trained']:.4f}", "100 %", "", "", "", "")
    console.print(table)
    console.print(
        "loss: denoising error on held-out digits in this style. style arrived: share of the loss "
        "between no LoRA and trained on target, with its 95 % interval."
    )
    refine = summary["refine"]
    console.print(
        "refine: the copy, taught by samples of both nets (data-free, not training-free): "
        f"{refine['pictures']} pictures of each, {refine['rows']} rows, {refine['steps']} steps. "
        f"R = {refine['disagreement']:.3f}. {refine['sentence']}\n"
        "learned: what samples taught follows from no weights; all else of the file was checked.\n"
        f"{refine['against_copy']}"
    )


def _verdict(row: dict[str, Any]) -> str:
    """What `verify` says of an output."""
    if row["verdict"] == "learned":
        return "learned"
    return f"{'yes' if row['verified'] else 'NO'} (error {row['worst_error']:.1e})"
