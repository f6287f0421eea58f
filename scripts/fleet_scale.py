"""How a fleet's driver fares with 100,000 inputs, and how many files more workers do.

    python scripts/fleet_scale.py FOLDER --out docs/benchmarks/fleet_scale.json
    python scripts/fleet_scale.py FOLDER --only start flight --out docs/benchmarks/fleet_scale.json

The driver, up to its first chunk, over a made store that is paced as a real one and answers each
request after 20 ms: 10,000 and 100,000 inputs, with receipts of none, of half and of all. Each in
a process of its own: its time, and by how much its memory has grown. What a driver is before it
does anything, and what it would be with its workers' libraries. Then a catalog of small nets by
`prolora fleet run --local` 1, 2 and 3, made in FOLDER, beside whatever else the machine does; and
one in a real S3 server whose answers are slow, with one chunk in flight and two (`fleet_flight`).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from prolora_jax.benchmarks.environment import describe, finish
from prolora_jax.benchmarks.made_models import tiny_pair, write_models
from prolora_jax.benchmarks.mixed_catalog import write_mixed_catalog
from prolora_jax.catalog.fleet.made_store import MadeStore
from prolora_jax.io.atomic import write_text
from prolora_jax.io.process_memory import largest_resident_bytes

ANSWER = 0.02
"""Seconds that a store takes for an answer, about those of one in the same region."""

CASES = [(files, done) for files in (10_000, 100_000) for done in (0, files // 2, files)]
HOSTS = (1, 8, 64, 256)
CORES, LINK, GIVEN, WRITES = 8, 2e9, 25e9, 3500
DOCS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
DRIVER = "--driver"
PARTS = ("driver", "start", "local", "flight", "model")
OF_DRIVER = ("cli.fleet", "cli.catalog_tables", "catalog.fleet.local_run", "catalog.fleet.ending")
OF_WORKER = "catalog.fleet.worker"
TIMES = 5
STARTED = """
import json, sys, time
from importlib import import_module
begun = time.perf_counter()
for name in sys.argv[1:]:
    import_module("prolora_jax." + name)
wall, cpu = time.perf_counter() - begun, time.process_time()
from prolora_jax.io.process_memory import largest_resident_bytes
memory = largest_resident_bytes() / 2**20
print(json.dumps({"wall_s": wall, "cpu_s": cpu, "memory_mib": memory}))
"""


def main() -> None:
    """Measure all of it, or the driver alone in this process."""
    if sys.argv[1:2] == [DRIVER]:
        print(json.dumps(driver(int(sys.argv[2]), int(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="is made; must not be there")
    parser.add_argument("--files", type=int, default=120, help="in the catalog of small nets")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, help="JSON file for what was found; keeps other parts")
    chosen = parser.parse_args()
    about, found = describe(), {}
    for part in chosen.only:
        found[part] = measured(part, chosen.folder, chosen.files)
    told = finish(about)
    text = json.dumps({"environment": told, "results": found}, indent=2) + "\n"
    print(text)
    if chosen.out is not None and chosen.out.exists() and chosen.only != PARTS:
        before = json.loads(chosen.out.read_text())
        before["results"] |= found
        before.setdefault("environments", {}).update(dict.fromkeys(found, told))
        text = json.dumps(before, indent=2) + "\n"
    if chosen.out is not None:
        write_text(chosen.out, text)


def measured(part: str, folder: Path, files: int) -> Any:
    """One part of what is found."""
    if part == "driver":
        cases = [in_own_process(__file__, DRIVER, str(files), str(done)) for files, done in CASES]
        return {"answer_s": ANSWER, "cases": cases}
    if part == "start":
        return starts()
    if part == "model":
        return model()
    if part == "local":
        made(folder, files)
        return local(folder)
    from fleet_flight import flights

    return flights(folder)


def in_own_process(*asked: str) -> dict[str, float]:
    """What a program says of a case, by a process that has done nothing else."""
    command = [sys.executable, *asked]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    print(found, file=sys.stderr)
    return found


def starts() -> dict[str, dict[str, float]]:
    """A driver before it does anything, and one that has what its workers have, in turn."""
    found: dict[str, list[dict[str, float]]] = {"driver": [], "with_workers_libraries": []}
    for _ in range(TIMES):
        for case, more in zip(found, ((), (OF_WORKER,)), strict=True):
            found[case].append(in_own_process("-c", STARTED, *OF_DRIVER, *more))
    return {
        case: {name: round(median(one[name] for one in times), 2) for name in times[0]}
        for case, times in found.items()
    }


def driver(files: int, done: int) -> dict[str, float]:
    """Time and memory of what precedes a first chunk, in this process."""
    from prolora_jax.catalog.fleet.dispatch import Dispatch
    from prolora_jax.catalog.fleet.inputs import find_inputs, units_of
    from prolora_jax.catalog.fleet.standing import standing

    place = MadeStore(files, done, ANSWER)
    outputs, before, begun = place.outputs(), peak_mib(), time.perf_counter()
    found = find_inputs(place, outputs)
    listed = time.perf_counter()
    units = units_of(found)
    known = standing(outputs, units)
    read = time.perf_counter()
    todo = [unit for unit in units if not known.settles(unit)]
    first = Dispatch(todo, 8).next()
    ended = time.perf_counter()
    assert len(todo) == files - done
    assert (first is None) == (done == files)
    return {
        "files": files,
        "receipts": done,
        "list_s": round(listed - begun, 2),
        "receipts_s": round(read - listed, 2),
        "choose_s": round(ended - read, 2),
        "to_first_chunk_s": round(ended - begun, 2),
        "cpu_s": round(time.process_time(), 2),
        "memory_before_mib": round(before, 1),
        "memory_more_mib": round(peak_mib() - before, 1),
    }


def peak_mib() -> float:
    """The most that this process has held."""
    return (largest_resident_bytes() or 0) / 2**20


def made(folder: Path, files: int) -> None:
    """A catalog of small nets.

    Args:
        folder: is made.
        files: in the catalog, some of which are refused or copies.
    """
    pair = tiny_pair()
    write_models(pair, folder)
    for _ in write_mixed_catalog(pair.source_spec, folder / "loras", files):
        pass


def local(folder: Path) -> list[dict[str, Any]]:
    """Files a second of a catalog, by 1, 2 and 3 workers of this machine."""
    # Subspaces, comparisons, operators and compiled programs are there when it counts.
    run(folder, "warm", 1)
    return [run(folder, f"by{workers}", workers) for workers in (1, 2, 3)]


def run(folder: Path, name: str, workers: int) -> dict[str, Any]:
    """One run to its end; the rate is between its first and its last receipt."""
    out, load, begun = folder / name, os.getloadavg()[0], time.time()
    bases = ("--source", folder / "sdxl", "--target", folder / "ssd-1b")
    how = ("--out", out, "--store", folder / "store", "--local", str(workers), "--workers", "1")
    command = [sys.executable, "-m", "prolora_jax", "fleet", "run", folder / "loras", *bases, *how]
    code = subprocess.run([*command, "--quiet"], stdout=subprocess.DEVNULL).returncode
    assert code in {0, 1}, code  # 1: some are refused, as they were made
    ended = time.time()
    done = sorted(p.stat().st_mtime for p in (out / ".prolora" / "receipts").rglob("*.json"))
    found = {
        "local": workers,
        "files": len(done),
        "wall_s": round(ended - begun, 1),
        "to_first_receipt_s": round(done[0] - begun, 1),
        "files_per_s": round((len(done) - 1) / (done[-1] - done[0]), 2),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }
    print(found, file=sys.stderr)
    return found


def model() -> dict[str, Any]:
    """Files a second of many hosts: what reading and writing take here, and what stores say.

    From `docs/benchmarks/catalog.json`: CPU seconds and bytes of a file of 722 modules. Assumed: 8
    cores and 2 GB/s a host, a store that gives 25 GB/s in all, and takes 3,500 writes a second
    below one prefix (S3), three of a file or, with receipts of chunks, two and a sixteenth.
    """
    catalog = json.loads((DOCS / "catalog.json").read_text())["results"]
    files, sizes, samples = catalog["files"], catalog["bytes"], catalog["samples"]
    host_s = (samples["read"]["median_s"] + samples["write"]["median_s"]) / files
    moved = (sizes["in"] + sizes["out"]) / files
    host = {"cores": CORES / host_s, "link": LINK / moved}
    store = {"bytes given": GIVEN * files / sizes["in"], "writes": WRITES / (2 + 1 / 16)}
    hosts = []
    for count in HOSTS:
        rates = {f"a host's {name}": count * rate for name, rate in host.items()} | {
            f"the store's {name}": rate for name, rate in store.items()
        }
        bound = min(rates, key=lambda name: rates[name])
        rate = rates[bound]
        hosts.append(
            {
                "hosts": count,
                "files_per_s": round(rate, 1),
                "bound_by": bound,
                "minutes_of_100000": round(100_000 / rate / 60, 1),
            }
        )
    return {
        "host_cpu_s_per_file": round(host_s, 3),
        "mb_per_file": round(moved / 1e6, 1),
        "hosts": hosts,
    }


if __name__ == "__main__":
    main()
