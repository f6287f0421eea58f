"""One migration of one file, stage by stage.

`first.py` has each measured in a fresh process.

The stages are those of `migration/one_file.py`, in its order, called one by one:

* `start`: Python, this package, NumPy and JAX, until the first line of the work;
* `read`: headers of both base models, the adapter;
* `match`: which module of the source goes to which of the target, by weights if there is a choice;
* `subspaces`, `similarity`: singular vectors of weights, and how close two weights' are, or what
  decides in place of them;
* `operators`, `projection`: what the method needs of each pair of weights, and its products;
  operators that the store does not keep are prepared in between, and count as projection;
* `write`: the output and its report, and what the store lets go in the end.
"""

import time
from pathlib import Path
from typing import Any

from prolora_jax.io.process_memory import largest_resident_bytes
from prolora_jax.io.stores.basis_store import FolderStore
from prolora_jax.migration.files import Writing, read_fitted, refuse_outputs, write_migrated
from prolora_jax.migration.opening import open_pair
from prolora_jax.migration.single import plan_fitted, run_plan
from prolora_jax.plans.options import MigrationOptions

WRITING = Writing(overwrite=True)

STAGES = ("start", "read", "match", "subspaces", "similarity", "operators", "projection", "write")


class Stages:
    """CPU seconds of this process by stage, and how large it had become by the end of each."""

    def __init__(self):
        self._last, self._most = 0.0, 0
        self.cpu_s: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.peak_bytes: dict[str, int | None] = dict.fromkeys(STAGES)

    def end(self, stage: str) -> None:
        """What was done since the last call belongs to this stage."""
        now = time.process_time()
        self.cpu_s[stage] += now - self._last
        size = largest_resident_bytes()
        if size is not None:
            # Linux counts pages of threads in lumps: a later answer may be a little smaller.
            self._most = max(self._most, size)
            self.peak_bytes[stage] = self._most
        self._last = now

    def progress(self, stage: str, done: int, total: int) -> None:
        """The same, called by the work itself (`engines/progress.py`)."""
        del done, total
        self.end(stage)


def measure(
    *,
    adapter: str,
    source: str,
    target: str,
    out: str,
    store: str,
    keeps: bool,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Migrate a file, once.

    Args:
        adapter: the file.
        source: folder of the base model that it is for.
        target: of the one that it moves to.
        out: where the output goes.
        store: of what is known of the pair.
        keeps: whether subspaces and operators stay in it.
        options: of the migration; defaults for all others.

    Returns:
        `cpu_s` and `peak_bytes` by stage; the second is the largest resident memory until its end,
        and None where the stage did nothing or the system does not say it.
    """
    stages = Stages()
    stages.end("start")
    asked, place = MigrationOptions(**options), FolderStore(Path(store), keeps=keeps)
    try:
        refuse_outputs(Path(adapter), Path(out), WRITING, read=(source, target))
        pair = open_pair(source, target, place, fused=asked.fused)
        fitted = read_fitted(Path(adapter), pair.source, asked, WRITING)
        stages.end("read")
        pair.matching(asked.match, asked)
        stages.end("match")
        plan = plan_fitted(fitted, pair, asked, stages.progress)
        stages.end("similarity")
        migrated, report = run_plan(fitted.adapter, pair, plan, stages.progress)
        stages.end("projection")
        write_migrated(migrated, report, Path(out), pair.target.spec, WRITING)
    finally:
        place.close()
    stages.end("write")
    return {"cpu_s": stages.cpu_s, "peak_bytes": stages.peak_bytes}
