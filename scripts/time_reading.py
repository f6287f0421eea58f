"""How fast a catalog is looked at and read: headers a second, and what a second reader is worth.

    python scripts/time_reading.py --pair FOLDER [--files 16] [--names 1000] [--out FILE]

`headers`: a scan by headers (`Scanner`) of files of one table of real size under many names, as
`migrate --dry-run --headers-only` does it. `readers`: the same files read, hashed and measured by a
lane (`migration/lane`) with one thread and with two, in turn, on all cores; wall time, and what
both cores have done meanwhile for whoever else wanted them is in the load of the environment.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from prolora_jax.benchmarks import environment
from prolora_jax.benchmarks.made_catalog import write_alike
from prolora_jax.benchmarks.timing import ROUNDS, interleaved
from prolora_jax.catalog.scan import Scanner
from prolora_jax.io.adapters.inputs import expand
from prolora_jax.io.atomic import write_text
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.containers.header_tables import HeaderTables
from prolora_jax.migration.files import Writing
from prolora_jax.migration.jobs import FileJob
from prolora_jax.migration.lane import lane
from prolora_jax.migration.many import BATCH_BYTES
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.subspaces.store import MemoryStore

RANK = 16
COPY, WRITING = MigrationOptions(method="copy"), Writing(overwrite=True, pair="0" * 16)


def headers(files: list[Path], names: int, folder: Path, pair: BasePair) -> dict[str, float]:
    """Files a second of a scan; the first of them has its table worked out beforehand."""
    folder.mkdir()
    for number in range(names):
        (folder / f"{number:05}.safetensors").hardlink_to(files[number % len(files)])
    first, *others = expand([folder])
    scanner = Scanner(pair, COPY, WRITING)
    scanner.scan([first])
    started, wall = time.process_time(), time.perf_counter()
    found = scanner.scan(others)
    cpu, wall = time.process_time() - started, time.perf_counter() - wall
    assert all(one.record.verdict != "refused" for one in found)
    return {"files": len(found), "per_cpu_s": len(found) / cpu, "per_wall_s": len(found) / wall}


def readers(files: list[Path], folder: Path, pair: BasePair) -> dict[str, object]:
    """Wall and CPU seconds of reading all files with one thread and with two."""
    jobs = [FileJob(path, folder / path.name) for path in files]

    lane.READERS = 2
    opened = lane.open_lane(jobs, pair, COPY, WRITING, BATCH_BYTES, HeaderTables())
    assert opened is not None

    def read(threads: int) -> None:
        lane.READERS = threads
        for batch in opened.batches(jobs):
            assert batch.batch is not None
            opened.rooms.give_back(batch.batch.room)

    samples = interleaved({"one": lambda: read(1), "two": lambda: read(2)}, ROUNDS)
    gain = float(np.median(np.divide(samples["one"].wall, samples["two"].wall)))
    taken = {name: {"cpu": s.cpu, "wall": s.wall} for name, s in samples.items()}
    return {"files": len(files), "gain_of_a_second": gain, "samples": taken}


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", type=Path, required=True)
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--names", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    about = environment.describe()
    source, target = (load_base_model(given.pair / name) for name in ("sdxl", "ssd-1b"))
    pair = BasePair(source, target, MemoryStore())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_alike(pair.source.spec, folder / "in", given.files, RANK)
        results = {
            "headers": headers(files, given.names, folder / "names", pair),
            "readers": readers(files, folder / "out", pair),
        }
    found = {"environment": environment.finish(about), "results": results}
    text = json.dumps(found, indent=1)
    sys.stdout.write(text + "\n")
    if given.out is not None:
        write_text(given.out, text)


if __name__ == "__main__":
    main()
