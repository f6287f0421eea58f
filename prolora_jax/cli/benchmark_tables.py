"""Results of benchmarks as tables for people; every sample is in the JSON."""

from typing import Any

from rich.console import Console
from rich.table import Table


def show_bases(console: Console, found: dict[str, Any]) -> None:
    """Times by shape, whole sets, accuracy, targets."""
    show_environment(console, found)
    for kind in ("gaussian", "decaying"):
        result = found["results"][kind]
        table = Table(title=f"One basis, {kind} weights (CPU ms)")
        for name in ("out x in", "ours", "torch svd", "gain", "x floor", "error", "torch's error"):
            table.add_column(name, justify="right")
        for row in result["shapes"]:
            table.add_row(
                f"{row['shape'][0]} x {row['shape'][1]}",
                f"{1e3 * row['ours']['median_s']:.1f}",
                f"{1e3 * row['torch']['median_s']:.1f}",
                f"{row['gain']:.2f}",
                f"{row['over_floor']:.2f}",
                f"{row['errors']['ours']:.1e}",
                f"{row['errors']['torch']:.1e}",
            )
        console.print(table)
        table = Table(title=f"Whole sets, {kind} weights (time x number of modules, CPU s)")
        for name in ("set", "modules", "ours", "torch svd", "gain", "x floor"):
            table.add_column(name, justify="left" if name == "set" else "right")
        for name, row in result["sets"].items():
            ours, theirs = row["modules"]["ours"], row["modules"]["baseline"]
            table.add_row(
                name,
                str(ours) if ours == theirs else f"{ours} of {theirs}",
                f"{row['ours']['median_s']:.1f}",
                f"{row['torch']['median_s']:.1f}",
                f"{row['gain']:.2f}",
                f"{row['over_floor']:.2f}",
            )
        console.print(table)
    workers = found["results"]["two_workers"]
    gain = workers["gain"]
    text = f"{gain} ({workers['reason']})" if isinstance(gain, str) else f"{gain:.2f} times"
    console.print(f"Two workers against one: {text}")
    show_targets(console, found)


def show_environment(console: Console, found: dict[str, Any]) -> None:
    """Machine and peaks, one line each."""
    machine, peaks = found["environment"], found["peaks"]
    cores = ", ".join(map(str, machine["cores_usable"]))
    load = machine["load_at_start"][0], machine["load_at_end"][0]
    console.print(
        f"{machine['cpu']}, core {cores}; load {load[0]:.1f} at the start, {load[1]:.1f} at the end"
    )
    rates = ", ".join(f"{name} {rate / 1e9:.1f}" for name, rate in peaks["matmul_flops"].items())
    console.print(
        f"Peaks, Gflop/s: {rates}; copy {peaks['stream_copy_bytes'] / 1e9:.1f} GB/s; "
        f"{peaks['cpu_per_wall']:.2f} CPU seconds per second"
    )


def show_targets(console: Console, found: dict[str, Any]) -> None:
    """What was aimed at, what was found, met or missed."""
    if found["quick"]:
        console.print("Quick run on tiny shapes: targets are not judged by it.")
        return
    table = Table(title="Targets")
    for name in ("weights", "what", "aim", "found", ""):
        table.add_column(name, justify="right" if name in ("aim", "found") else "left")
    for row in found["targets"]:
        aim = f">= {row['at_least']:g}" if "at_least" in row else f"<= {row['at_most']:g}"
        verdict = "met" if row["met"] else "MISSED"
        table.add_row(row["weights"], row["what"], aim, f"{row['found']:.3g}", verdict)
    console.print(table)
