"""Scan, migrate, kill, resume and verify a made catalog of mixed files, and measure it.

    python scripts/run_mixed_catalog.py FOLDER --files 2000 --out docs/benchmarks/mixed_catalog.json

A catalog of every format that is read, a tenth of it broken, a tenth copies, with odd names and
nested folders, over two tiny nets. Every step is the program itself, in a process of its own:

    1. prolora migrate --dry-run --headers-only     every verdict is compared with what was made
    2. prolora migrate                              killed when half of the outputs are there
    3. prolora migrate                              to the end
    4. prolora verify
    5. reading every input and writing every output again: what input and output alone take

Times are of the wall clock and of the CPU (all processes of a step).
"""

import argparse
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from prolora_jax.benchmarks.environment import describe, finish
from prolora_jax.benchmarks.made_models import tiny_pair, write_models
from prolora_jax.benchmarks.mixed_catalog import MixedFile, write_mixed_catalog
from prolora_jax.io.atomic import write_bytes, write_text

FINISHED = ("migrated", "duplicate")


def main(arguments: list[str] | None = None) -> None:
    """Do all of it.

    Args:
        arguments: of the command line; those of this process if None.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="is made")
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for what was measured")
    chosen = parser.parse_args(arguments)
    environment = describe()
    pair = tiny_pair(chosen.seed, 0.1)
    write_models(pair, chosen.folder)
    catalog = chosen.folder / "catalog"
    made = list(write_mixed_catalog(pair.source_spec, catalog, chosen.files, chosen.seed))
    found = measured(chosen.folder, made)
    found["environment"] = finish(environment)
    text = json.dumps(found, indent=1) + "\n"
    print(text)
    if chosen.out is not None:
        write_text(chosen.out, text)


def measured(folder: Path, made: list[MixedFile]) -> dict[str, Any]:
    """Run every step.

    Raises:
        SystemExit: something is not as it must be; the message says what.
    """
    out, reasons = folder / "out", {one.name: one.reason for one in made}
    usable = sum(reason is None for reason in reasons.values())
    scan, text = step(folder, "--dry-run", "--headers-only", "--json")
    told = {record["input"]: record["reason"] for record in json.loads(text)["files"]}
    # What only numbers say is not in a header.
    unseen = {"non-finite", "alpha-zero"}
    wrong = [n for n, r in reasons.items() if told.get(n) != r and r not in unseen]
    require(not wrong, f"scan: another verdict than was made: {wrong[:3]}")

    killed = kill_at_half(folder, out, usable)
    before = finished(out)
    kept = {output: (out / output).stat().st_mtime_ns for output in before}
    rest, _ = step(folder)
    rows = finished(out)
    states = dict(records(out))
    require(len(rows) == usable, f"{len(rows)} outputs; expected {usable}")
    require(
        all((out / name).stat().st_mtime_ns == at for name, at in kept.items()),
        "an output that was there was written again",
    )
    wrong = [n for n, r in reasons.items() if (states.get(n) == "refused") != (r is not None)]
    require(not wrong, f"run: another verdict than was made: {wrong[:3]}")
    check, text = step(folder, command=["verify", str(out), "--json"])
    verdict = json.loads(text)
    require(verdict["ok"], f"verify: {list(verdict['problems'].items())[:2]}")
    sizes, wall, cpu = copied(folder / "catalog", out, folder / "again")
    return {
        "files": len(made),
        "made": dict(Counter(one.reason or "usable" for one in made).most_common()),
        "states": dict(Counter(states.values()).most_common()),
        "scan": scan,
        "killed": killed | {"finished": len(before)},
        "resumed": rest | {"finished": len(rows) - len(before)},
        "verify": check | {"recomputed": verdict["recomputed"], "worst": verdict["worst_error"]},
        "input_and_output_alone": {"wall_s": wall, "cpu_s": cpu, **sizes},
        "files_per_s_resumed": round((len(rows) - len(before)) / rest["wall_s"], 2),
        "files_per_s_input_and_output_alone": round(usable / wall, 2),
    }


def words(folder: Path, *more: str) -> list[str]:
    """The command over the catalog."""
    models = ["--source", str(folder / "sdxl"), "--target", str(folder / "ssd-1b")]
    return ["migrate", str(folder / "catalog"), *models, "--out", str(folder / "out"), *more]


def start(folder: Path, command: list[str]) -> subprocess.Popen[str]:
    """Start the program."""
    whole = [sys.executable, "-m", "prolora_jax", *command, "-q", "--store", str(folder / "bases")]
    pipe = subprocess.PIPE
    return subprocess.Popen(whole, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def step(
    folder: Path, *more: str, command: list[str] | None = None
) -> tuple[dict[str, float], str]:
    """Run one command to its end: times, and what it printed."""
    clock, used = time.monotonic(), children_cpu()
    process = start(folder, command or words(folder, *more))
    text, errors = process.communicate()
    require(process.returncode in (0, 1) and not errors, f"exit {process.returncode}: {errors}")
    return times(clock, used), text


def kill_at_half(folder: Path, out: Path, usable: int) -> dict[str, float]:
    """Run until half of the outputs are there, and kill it then."""
    clock, used = time.monotonic(), children_cpu()
    process = start(folder, words(folder))
    while process.poll() is None and len(finished(out)) < usable // 2:
        time.sleep(0.2)
    require(process.poll() is None, "the run ended before it could be killed")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return times(clock, used)


def times(clock: float, used: float) -> dict[str, float]:
    """Seconds since then."""
    return {
        "wall_s": round(time.monotonic() - clock, 2),
        "cpu_s": round(children_cpu() - used, 2),
    }


def children_cpu() -> float:
    """CPU seconds of all processes that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def records(out: Path) -> list[tuple[str, str]]:
    """Input and state of each record."""
    return rows(out, "SELECT input, state FROM records")


def finished(out: Path) -> list[str]:
    """Outputs that are there, by the manifest."""
    marks = ", ".join(f"'{state}'" for state in FINISHED)
    return [
        output for (output,) in rows(out, f"SELECT output FROM records WHERE state IN ({marks})")
    ]


def rows(out: Path, query: str) -> list[Any]:
    """Rows of the manifest; none before it has a table."""
    if not (out / "manifest.sqlite").is_file():
        return []
    with closing(sqlite3.connect(out / "manifest.sqlite", timeout=30)) as database:
        try:
            return database.execute(query).fetchall()
        except sqlite3.OperationalError:
            return []


def copied(catalog: Path, out: Path, again: Path) -> tuple[dict[str, int], float, float]:
    """Read every input; read and write every output, flushed and renamed as the program does."""
    clock, used = time.monotonic(), time.process_time()
    sizes = {"bytes_in": 0, "bytes_out": 0}
    for path in sorted(p for p in catalog.rglob("*") if p.is_file() and "loop" not in p.parts):
        sizes["bytes_in"] += len(path.read_bytes())
    names = (".safetensors", ".msgpack")
    outputs = [p for p in out.rglob("*") if p.name.endswith(names) and p.is_file()]
    for number, path in enumerate(outputs):
        content = path.read_bytes()
        sizes["bytes_out"] += len(content)
        write_bytes(again / str(number), content)
    return sizes, round(time.monotonic() - clock, 2), round(time.process_time() - used, 2)


def require(condition: bool, message: str) -> None:
    """End the script with a message unless something holds.

    Raises:
        SystemExit: it does not hold.
    """
    if not condition:
        raise SystemExit(message)


if __name__ == "__main__":
    main()
