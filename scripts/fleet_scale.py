"""How a fleet's driver fares with 100,000 inputs, and how many files more workers do.

    python scripts/fleet_scale.py FOLDER --out docs/benchmarks/fleet_scale.json

The driver, up to its first chunk, over a made store that is paced as a real one and answers each
request after 20 ms: 10,000 and 100,000 inputs, with receipts of none, of half and of all. Each in
a process of its own: its time, and by how much its memory has grown. Then a catalog of small nets
by `prolora fleet run --local` 1, 2 and 3, made in FOLDER, beside whatever else the machine does.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from prolora_jax.benchmarks.environment import describe, finish
from prolora_jax.benchmarks.made_models import tiny_pair, write_models
from prolora_jax.benchmarks.made_store import MadeStore
from prolora_jax.benchmarks.mixed_catalog import write_mixed_catalog
from prolora_jax.io.atomic import write_text

ANSWER = 0.02
"""Seconds that a store takes for an answer, about those of one in the same region."""

CASES = [(files, done) for files in (10_000, 100_000) for done in (0, files // 2, files)]
HOSTS = (1, 8, 64, 256)
DRIVER = "--driver"


def main() -> None:
    """Measure all of it, or the driver alone in this process."""
    if sys.argv[1:2] == [DRIVER]:
        print(json.dumps(driver(int(sys.argv[2]), int(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="is made; must not be there")
    parser.add_argument("--files", type=int, default=120, help="in the catalog of small nets")
    parser.add_argument("--out", type=Path, help="JSON file for what was found")
    chosen = parser.parse_args()
    about = describe()
    found = {
        "driver": [in_own_process(*case) for case in CASES],
        "answer_s": ANSWER,
        "local": local(chosen.folder, chosen.files),
        "model": model(),
    }
    text = json.dumps({"environment": finish(about), "results": found}, indent=2) + "\n"
    print(text)
    if chosen.out is not None:
        write_text(chosen.out, text)


def in_own_process(files: int, done: int) -> dict[str, float]:
    """What `driver` says of a case, by a process that has done nothing else."""
    asked = [sys.executable, __file__, DRIVER, str(files), str(done)]
    found = json.loads(subprocess.run(asked, capture_output=True, check=True).stdout)
    print(found, file=sys.stderr)
    return found


def driver(files: int, done: int) -> dict[str, float]:
    """Time and memory of what precedes a first chunk, in this process."""
    from prolora_jax.catalog.fleet.dispatch import Dispatch
    from prolora_jax.catalog.fleet.inputs import find_inputs, units_of
    from prolora_jax.catalog.fleet.receipts import read_receipts

    place = MadeStore(files, done, ANSWER)
    outputs, before, begun = place.outputs(), peak_mib(), time.perf_counter()
    found = find_inputs(place, outputs)
    listed = time.perf_counter()
    known = read_receipts(outputs)
    read = time.perf_counter()
    todo = [
        unit
        for unit in units_of(found)
        if not all((k := known.get(one.name)) and k.receipt.settles(one) for one in unit)
    ]
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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def local(folder: Path, files: int) -> list[dict[str, Any]]:
    return []


def model() -> list[dict[str, Any]]:
    return []


if __name__ == "__main__":
    main()
