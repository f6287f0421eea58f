"""Results of benchmarks as tables for people; every sample is in the JSON."""

from collections.abc import Callable, Iterable
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


def show_migrate(console: Console, found: dict[str, Any]) -> None:
    """Times by shape and of the whole set, recompression, curves, targets."""
    show_environment(console, found)
    results, protocol = found["results"], found["protocol"]
    whole = results["set"]
    names = list(whole["seconds"])
    setting = f"rank {protocol['rank']}, {protocol['adapters']} adapters at once"
    table = _table(f"One adapter on one module, {setting} (CPU ms)", ("out x in", *names))
    for row in results["modules"]:
        table.add_row(_shape(row), *(_ms(row, name) for name in names))
    console.print(table)
    columns = ("", "CPU s", "ours", "gain", "gain at peak", "share of peak")
    table = _table(f"One adapter on all {whole['modules']} modules", columns)
    for name in names:
        ours = "ours cut" if name.endswith("cut") else "ours"
        gain, most, share = (
            whole[key].get(name) for key in ("gains", "gains_at_peak", "share_of_peak")
        )
        table.add_row(
            name,
            f"{whole['seconds'][name]['median_s']:.3g}",
            "" if gain is None else f"{whole['seconds'][ours]['median_s']:.3g}",
            "" if gain is None else f"{gain:.3g}",
            "" if most is None else f"{most:.3g}",
            "" if share is None else f"{share:.0%}",
        )
    console.print(table)
    worst = max(max(row["differences"].values()) for row in results["modules"])
    console.print(f"Ours and the baselines agree on one adapter per shape to {worst:.1e}.")
    recompressed = results["recompression"]
    out, width = recompressed["shape"]
    title = f"Recompression alone, {out} x {width} (CPU ms per adapter)"
    table = _table(title, ("columns", "ours", "QR + SVD", "gain", "missed", "QR + SVD", "best"))
    for name, row in recompressed["columns"].items():
        times = (f"{1e3 * row[who]['median_s']:.3g}" for who in ("ours", "qr"))
        missed = (f"{row['missed'][who]:.4e}" for who in ("ours", "qr", "best"))
        table.add_row(name, *times, f"{row['gain']:.2f}", *missed)
    console.print(table)
    for name, heading in (("rank", "rank"), ("adapters", "adapters"), ("shape", "out x in")):
        rows = results["curves"][name]
        labels = [_shape(row) if name == "shape" else str(row[name]) for row in rows]
        console.print(_curve(heading, labels, rows))
    devices = results["curves"]["devices"]
    console.print(f"Devices: {devices['found']} ({devices['reason']})")
    show_targets(console, found)


def show_catalog(console: Console, found: dict[str, Any]) -> None:
    """Times of a file, bound, targets."""
    show_environment(console, found)
    results = found["results"]
    files = results["files"]
    table = _table(f"{files} files, one of them (CPU s)", ("part", "median", "share"))
    whole = results["samples"]["whole"]["median_s"]
    for name, sample in results["samples"].items():
        share = sample["median_s"] / whole
        table.add_row(name, f"{sample['median_s'] / files:.3g}", f"{share:.0%}")
    for name, seconds in results["floor_s"].items():
        table.add_row(f"floor: {name}", f"{seconds / files:.3g}", f"{seconds / whole:.0%}")
    console.print(table)
    first = results["first_pass"]
    console.print(
        f"First pass, with what was not stored yet and compilation: {first['wall_s']:.0f} s"
    )
    show_targets(console, found)


def show_host(console: Console, found: dict[str, Any]) -> None:
    """What a file costs the host, whole and in parts."""
    show_environment(console, found)
    results = found["results"]
    seconds = results["seconds_per_file"]
    title = f"{results['files']} files on {results['nets']} nets, one of them (CPU ms)"
    table = _table(title, ("part", "median", "times the bytes"))
    for name, taken in seconds.items():
        table.add_row(name, f"{1e3 * taken:.3g}", f"{taken / seconds['bytes']:.3g}")
    console.print(table)
    show_targets(console, found)


def show_first(console: Console, found: dict[str, Any]) -> None:
    """What one file costs by way, by what is stored, by stage."""
    show_environment(console, found)
    results = found["results"]
    for name, runs in results["ways"].items():
        states = [state for state in runs if state != "stored"]
        title = f"One file on {results['nets']} nets, {name} (CPU s; largest resident MB so far)"
        heads = [head for state in states for head in (state, "MB")]
        table = _table(title, ("stage", *heads))
        for stage in runs["cold"]["cpu_s"]:
            cells = []
            for state in states:
                size = runs[state]["peak_bytes"][stage]
                cells += [f"{runs[state]['cpu_s'][stage]:.2f}", _megabytes(size)]
            table.add_row(stage, *cells)
        totals = ((runs[s]["total_cpu_s"], runs[s]["largest_bytes"]) for s in states)
        ends = [cell for cpu, size in totals for cell in (f"{cpu:.2f}", _megabytes(size))]
        table.add_row("all", *ends)
        console.print(table)
        console.print(f"The first leaves {runs['stored'] / 1e6:.1f} MB in the store.")
    show_targets(console, found)


def show_memory(console: Console, found: dict[str, Any]) -> None:
    """Anonymous memory by way and number of files."""
    show_environment(console, found)
    results = found["results"]
    table = _table(f"Anonymous memory on {results['nets']} nets", ("way", "files", "MB", "CPU s"))
    for name, runs in results["ways"].items():
        for which in ("some", "many"):
            run = runs[which]
            cpu = f"{run['cpu_s']:.0f}"
            table.add_row(name, str(run["files"]), _megabytes(run["bytes"]), cpu)
    console.print(table)
    show_targets(console, found)


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f}"


def _curve(heading: str, labels: Iterable[str], rows: list[dict[str, Any]]) -> Table:
    """Times of one adapter, and ours as a share of the peak."""
    names = list(rows[0]["seconds"])
    title = f"One adapter on one module by {heading} (CPU ms)"
    table = _table(title, (heading, *names, "share", "share, cut"))
    for label, row in zip(labels, rows, strict=True):
        shares = (f"{row['share_of_peak'][name]:.0%}" for name in ("ours", "ours cut"))
        table.add_row(label, *(_ms(row, name) for name in names), *shares)
    return table


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _shape(row: dict[str, Any]) -> str:
    return " x ".join(map(str, row["shape"]))


def _ms(row: dict[str, Any], name: str) -> str:
    return f"{1e3 * row['seconds'][name]['median_s']:.3g}"


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
    if found["quick"] or not found["targets"]:
        console.print("Tiny shapes: targets are not judged by this run.")
        return
    table = Table(title="Targets")
    for name in ("on", "what", "aim", "found", ""):
        table.add_column(name, justify="right" if name in ("aim", "found") else "left")
    for row in found["targets"]:
        aim = f">= {row['at_least']:g}" if "at_least" in row else f"<= {row['at_most']:g}"
        verdict = "met" if row["met"] else "MISSED"
        if "stretch" in row:
            aim += f" ({row['stretch']:g})"
            verdict += ", stretch met" if row["stretch_met"] else ", stretch missed"
        table.add_row(row["case"], row["what"], aim, f"{row['found']:.3g}", verdict)
    console.print(table)


SHOW: dict[str, Callable[[Console, dict[str, Any]], None]] = {
    "bases": show_bases,
    "migrate": show_migrate,
    "catalog": show_catalog,
    "host": show_host,
    "first": show_first,
    "memory": show_memory,
}
"""By name of the benchmark."""
