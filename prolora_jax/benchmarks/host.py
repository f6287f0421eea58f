"""`prolora benchmark host`: what a catalog costs the host, beside the bytes that it has to move.

Files with one table of tensors go through `migrate_files`, the path of `prolora migrate CATALOG/`,
in turn, round by round (`timing`), in one thread on one core (`isolated`):

* `bytes`: every input read once into a place that stays, as many bytes as the outputs have written
  as files are written: what no program can do without;
* `copy`: `--method copy`, no arithmetic of the method at all, with a lane for the table;
* `alone`: the same, every file by itself;
* `full`: `--method prolora-full`, of real pairs only where the store has the operators;
* `products`: its products alone, as many as `full` has.

The host's share of `full` is what is left of it without its products.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prolora_jax.benchmarks import environment, peaks
from prolora_jax.benchmarks.cores import progress
from prolora_jax.benchmarks.made_catalog import write_alike
from prolora_jax.benchmarks.made_models import made_place
from prolora_jax.benchmarks.targets import Verdict, at_least, at_most
from prolora_jax.benchmarks.timing import ROUNDS, interleaved
from prolora_jax.io.atomic import write_bytes
from prolora_jax.io.base_models.checkpoint import load_base_model
from prolora_jax.io.guarded import read_into
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.matching.pairs import ModulePair
from prolora_jax.method.encoding import rank_class
from prolora_jax.method.projection import apply_side
from prolora_jax.migration.blocks import split_rows
from prolora_jax.migration.files import Writing
from prolora_jax.migration.jobs import FileJob
from prolora_jax.migration.lane import lane
from prolora_jax.migration.many import migrate_files, read_job
from prolora_jax.migration.pair import BasePair
from prolora_jax.migration.placing import OperatorsOnDevices
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.plan import Action

FILES, QUICK_FILES, RANK = 16, 8, 16
MOST_TIMES, MOST_HOST = 3.0, 0.10
LEAST_RATE = 0.2
COPY, FULL = MigrationOptions(method="copy"), MigrationOptions(method="prolora-full")
WRITING = Writing(overwrite=True, pair="0" * 16)


def measure(
    *,
    folder: str | None = None,
    store: str | None = None,
    files: int = FILES,
    full: bool = True,
    rounds: int = ROUNDS,
    quick: bool = False,
) -> dict[str, Any]:
    """CPU seconds of a file, whole and in parts.

    Args:
        folder: of a made pair, with `sdxl` and `ssd-1b` in it; small nets without it.
        store: of subspaces and operators.
        files: how many are made, of one table.
        full: whether `prolora-full` is measured, too.
        rounds: samples of each part.
        quick: few files on small nets; the figures say nothing.

    Raises:
        UsageError: no made pair is there.
    """
    with made_place(folder, quick=quick) as (made, place, small):
        about = environment.describe()
        progress("peaks")
        found = peaks.measure(place, quick=True)
        stored = FolderStore(place / "store" if store is None or small else Path(store))
        models = load_base_model(made / "sdxl"), load_base_model(made / "ssd-1b")
        pair = BasePair(*models, stored)
        number = QUICK_FILES if quick else files
        results = _measured(place, pair, number, rounds, full)
    return {
        "benchmark": "host",
        "quick": quick,
        "environment": environment.finish(about),
        "peaks": found,
        "results": results | {"nets": "small" if small else "real"},
        "targets": judged(results, small=small),
    }


def judged(found: dict[str, Any], *, small: bool) -> list[Verdict]:
    """Targets, what was found, met or not."""
    case, seconds = f"{found['files']} files", found["seconds_per_file"]
    if small:
        return [
            at_least(case, "copy, as a share of the bytes' rate", LEAST_RATE, 1 / found["times"])
        ]
    verdicts = [at_most(case, "copy, in times of the bytes", MOST_TIMES, found["times"])]
    if "full" in seconds:
        host = seconds["full"] - seconds["products"]
        verdicts.append(at_most(case, "host's CPU s of prolora-full", MOST_HOST, host))
    return verdicts


def _measured(scratch: Path, pair: BasePair, files: int, rounds: int, full: bool) -> dict[str, Any]:
    progress(f"{files} files")
    inputs = write_alike(pair.source.spec, scratch / "in", files, RANK)
    jobs = [FileJob(path, scratch / "out" / path.name) for path in inputs]
    first = _migrate(jobs, pair, COPY)
    sizes = [path.stat().st_size for path in inputs], [j.output.stat().st_size for j in jobs]
    contestants = {
        "bytes": lambda: _bytes(jobs, sizes[1], scratch / "bytes"),
        "copy": lambda: _migrate(jobs, pair, COPY),
        "alone": lambda: _alone(jobs, pair),
    }
    if full:
        progress("subspaces, operators, compilation")
        blocks = _Products(jobs[0], pair, files)
        contestants |= {"full": lambda: _migrate(jobs, pair, FULL), "products": blocks.run}
    progress(f"{rounds} rounds")
    samples = interleaved(contestants, rounds)
    return {
        "files": first,
        "bytes": {"in": sum(sizes[0]), "out": sum(sizes[1])},
        "samples": {name: taken.to_dict() for name, taken in samples.items()},
        "seconds_per_file": {name: taken.median / files for name, taken in samples.items()},
        "times": samples["copy"].median / samples["bytes"].median,
    }


def _migrate(jobs: Sequence[FileJob], pair: BasePair, options: MigrationOptions) -> int:
    outcomes = list(migrate_files(jobs, pair, options, WRITING))
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return len(outcomes)


def _alone(jobs: Sequence[FileJob], pair: BasePair) -> None:
    with _no_lanes():
        _migrate(jobs, pair, COPY)


@contextmanager
def _no_lanes() -> Iterator[None]:
    usual, lane.FEWEST = lane.FEWEST, 10**9
    try:
        yield
    finally:
        lane.FEWEST = usual


def _bytes(jobs: Sequence[FileJob], sizes: Sequence[int], folder: Path) -> None:
    room = np.zeros(max(job.source.stat().st_size for job in jobs), np.uint8)
    for job, size in zip(jobs, sizes, strict=True):
        read_into(job.source, room.data)
        write_bytes(folder / job.output.name, room[:size].data)
    shutil.rmtree(folder)


class _Products:
    """The products of `prolora-full` for some files, and nothing else."""

    def __init__(self, job: FileJob, pair: BasePair, files: int):
        prepared = read_job(job, pair, FULL, WRITING)
        steps = [step for step in prepared.plan.steps if step.action is not Action.COPY]
        pairs = {ModulePair(step.source_path, step.path): step for step in steps}
        pair.prepare_operators(list(pairs), FULL)
        rng, rank = np.random.default_rng(0), rank_class(RANK)
        self._todo = []
        for modules, placed in OperatorsOnDevices(pair, FULL).each(list(pairs)):
            module = prepared.work.modules[modules.source]
            dims = module.up.shape[0], int(np.prod(module.down.shape[1:]))
            for _, places in split_rows(files, rank):
                rows = [rng.standard_normal((places, rank, dim), np.float32) for dim in dims]
                self._todo.append((placed, [jax.device_put(block) for block in rows]))

    def run(self) -> None:
        """All of them once; what comes of them is let go."""
        for placed, rows in self._todo:
            for side, matrices, block in zip(placed.operators, placed.matrices, rows, strict=True):
                jax.block_until_ready(apply_side(side.form, matrices, block))
