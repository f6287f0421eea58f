"""`prolora benchmark catalog`: files to files, and what of it is not arithmetic.

Real adapter files of a made pair (`scripts/make_checkpoint_pair.py`) go through `bulk`, the path
of `prolora migrate CATALOG/`, with subspaces and operators stored and every program compiled, in
one thread on one core (`isolated`). In turn, round by round (`timing`):

* `whole`: the files, read, planned, migrated, written, one output and one report each;
* `read`: the part of it that reads and plans them;
* `write`: the part that encodes and writes the outputs and reports.

The bound is the larger of two times per file: the arithmetic that the plans need at this process's
float32 matmul peak, ranks not padded, and reading the input's and writing the output's bytes at
the rates of this folder's disk, measured in the same run, the page cache warm.

Memory is measured by `prolora benchmark memory`, in a process that has held nothing else before.
"""

import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prolora_jax.benchmarks import environment, peaks
from prolora_jax.benchmarks.cores import progress
from prolora_jax.benchmarks.made_catalog import write_catalog
from prolora_jax.benchmarks.made_models import tiny_pair, write_models
from prolora_jax.benchmarks.targets import Verdict, at_least, at_most
from prolora_jax.benchmarks.timing import ROUNDS, interleaved
from prolora_jax.errors import Refusal, UsageError
from prolora_jax.io.adapters.inputs import expand
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.matching.pairs import ModulePair
from prolora_jax.migration.execute import move_all
from prolora_jax.migration.files import Writing
from prolora_jax.migration.jobs import FileJob
from prolora_jax.migration.many import Prepared, migrate_files, read_job, write_job
from prolora_jax.migration.pair import BasePair
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Action

FILES = 64
QUICK_FILES = 4
LEAST_SHARE, MOST_IO = 0.60, 0.15
WRITING = Writing(overwrite=True)
OPTIONS = MigrationOptions(method="prolora", rank="source", dtype="float16")


def measure(
    *,
    folder: str | None = None,
    store: str | None = None,
    files: int = FILES,
    rounds: int = ROUNDS,
    quick: bool = False,
) -> dict[str, Any]:
    """Files to files on this machine.

    Args:
        folder: of a made pair, with `sdxl`, `ssd-1b` and `catalog` in it; tiny ones are made
            without it, for a quick run.
        store: of subspaces and operators.
        files: of the catalog, how many; in the order of their names.
        rounds: samples of each part.
        quick: few tiny files; the figures say nothing.

    Raises:
        UsageError: no made pair is there.
    """
    with TemporaryDirectory(prefix="prolora-", dir=folder) as scratch:
        if quick:
            files = QUICK_FILES
            folder = str(_made(Path(scratch)))
        elif folder is None:
            raise UsageError(
                "benchmark catalog needs a made pair of real size. Make one with "
                "scripts/make_checkpoint_pair.py OUT and name it: --pair OUT (or take --quick).",
                code=Refusal.MISSING_FILE,
            )
        place = store if store and not quick else str(Path(scratch) / "store")
        return _measured(Path(folder), Path(scratch), Path(place), files, rounds, quick)


def _made(scratch: Path) -> Path:
    pair = tiny_pair(0, 0.1)
    write_models(pair, scratch / "made")
    list(write_catalog(pair.source_spec, scratch / "made" / "catalog", QUICK_FILES, 0))
    return scratch / "made"


def _measured(
    folder: Path, scratch: Path, store: Path, files: int, rounds: int, quick: bool
) -> dict[str, Any]:
    about = environment.describe()
    progress("peaks")
    found = peaks.measure(scratch, quick=quick)
    pair = BasePair(
        load_base_model(folder / "sdxl"), load_base_model(folder / "ssd-1b"), FolderStore(store)
    )
    inputs = [item.path for item in islice(expand([folder / "catalog"]), files)]
    jobs = [FileJob(path, scratch / "out" / path.name) for path in inputs]
    progress(f"first pass over {len(jobs)} files: subspaces, operators, compilation")
    first = _timed(lambda: _migrate(jobs, pair))
    prepared = [read_job(job, pair, OPTIONS, WRITING) for job in jobs]
    floor = _floor_flops(prepared, pair) / found["matmul_flops"]["xla_float32"]
    results = move_all([item.work for item in prepared], pair, OPTIONS)
    finished = list(zip(prepared, results, strict=True))

    def write() -> None:
        for item, result in finished:
            write_job(item, result, pair, WRITING)

    progress(f"{rounds} rounds")
    samples = interleaved(
        {
            "whole": lambda: _migrate(jobs, pair),
            "read": lambda: [read_job(job, pair, OPTIONS, WRITING) for job in jobs],
            "write": write,
        },
        rounds,
    )
    size_in, size_out = (sum(map(_size, paths)) for paths in (inputs, [j.output for j in jobs]))
    disk = found["disk_bytes"]
    io = size_in / disk["read_from_page_cache"] + size_out / disk["write"]
    whole = samples["whole"].median
    parts = (samples["read"].median + samples["write"].median) / whole
    document = {
        "files": len(jobs),
        "bytes": {"in": size_in, "out": size_out},
        "first_pass": first,
        "samples": {name: taken.to_dict() for name, taken in samples.items()},
        "seconds_per_file": whole / len(jobs),
        "floor_s": {"compute": floor, "read_and_write": io},
        "share_of_bound": max(floor, io) / whole,
        "io_share": parts,
    }
    return {
        "benchmark": "catalog",
        "quick": quick,
        "environment": environment.finish(about),
        "peaks": found,
        "results": document,
        "targets": judged(document),
    }


def judged(found: dict[str, Any]) -> list[Verdict]:
    """Targets, what was found, met or not."""
    case = f"{found['files']} files"
    return [
        at_least(case, "share of the bound", LEAST_SHARE, found["share_of_bound"]),
        at_most(case, "share of reading and writing", MOST_IO, found["io_share"]),
    ]


def _migrate(jobs: Sequence[FileJob], pair: BasePair) -> int:
    outcomes = list(migrate_files(jobs, pair, OPTIONS, WRITING))
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return len(outcomes)


def _timed(run: Callable[[], object]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def _floor_flops(prepared: Sequence[Prepared], pair: BasePair) -> float:
    """Multiplications and additions that the prepared matrices need, for ranks as they are."""
    matrices: dict[ModulePair, int] = {}
    total = 0.0
    for item in prepared:
        for step in item.plan.steps:
            if step.action is Action.COPY or step.source_path not in item.work.modules:
                continue
            key = ModulePair(step.source_path, step.path)
            if key not in matrices:
                sides = (side.operator for side in pair.operators(key, OPTIONS))
                matrices[key] = sum(
                    side.analysis.size + sum(x.size for x in side.synthesis) for side in sides
                )
            total += 2.0 * item.work.modules[step.source_path].rank * matrices[key]
    return total


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*")) if path.is_dir() else path.stat().st_size
