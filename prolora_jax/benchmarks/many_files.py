"""The memory of one process that migrates so many files; `memory.py` starts it afresh each time."""

import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from prolora_jax.benchmarks.anonymous_memory import AnonymousPeak
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.method.operators import Method
from prolora_jax.migration.files import Writing
from prolora_jax.migration.jobs import FileJob, FileOutcome
from prolora_jax.migration.many import migrate_files
from prolora_jax.migration.opening import open_pair
from prolora_jax.plans.options import MigrationOptions


def measure(
    *,
    adapters: list[str],
    models: tuple[str, str],
    out: str,
    store: str,
    method: Method,
    files: int,
) -> dict[str, Any]:
    """Migrate files in one run, and delete each output as soon as it is there.

    Args:
        adapters: of one table; again and again until there were `files` of them.
        models: folders of source and target.
        out: folder for the outputs.
        store: of what is known of the pair.
        method: of the migration.
        files: how many.

    Returns:
        The largest anonymous memory, None where the system does not say it; and CPU seconds.
    """
    names = enumerate(islice(cycle(adapters), files))
    jobs = [FileJob(Path(name), Path(out) / f"{i:05}.safetensors") for i, name in names]
    options = MigrationOptions(method=method)
    pair = open_pair(*models, FolderStore(Path(store)))
    done = 0
    with AnonymousPeak() as peak:
        for outcome in migrate_files(jobs, pair, options, WRITING, finish=_delete):
            if outcome.error is not None:
                raise outcome.error
            done += 1
    return {"files": done, "bytes": peak.bytes, "cpu_s": time.process_time()}


WRITING = Writing(overwrite=True, pair="0" * 16)
"""Brief reports, as the files of a catalog have them."""


def _delete(outcome: FileOutcome) -> None:
    outcome.job.output.unlink(missing_ok=True)
