"""`prolora benchmark memory`: what a catalog holds, of few files and of many.

Files of one table, rank 16 in float16, go through `migrate_files`, the path of `prolora migrate
CATALOG/`, by `copy` and by `prolora-full`. Each run has a process of its own (`isolated`), once for
some files and once for many; the many are the same files again and again, under other names of
outputs, which are deleted as they come: so the disk does not limit how many. What the store lacks
is computed beforehand. Memory is anonymous: pages of mapped files can be taken back.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prolora_jax.benchmarks import environment, isolated, peaks
from prolora_jax.benchmarks.cores import progress
from prolora_jax.benchmarks.made_catalog import write_alike
from prolora_jax.benchmarks.made_models import made_place
from prolora_jax.benchmarks.targets import Verdict, at_most
from prolora_jax.io.base_models.checkpoint import load_base_model

FILES, MOST, RANK = 64, 1024, 16
QUICK_FILES, QUICK_MOST = 8, 16
WAYS = {"copy": "copy", "full": "prolora-full"}
MOST_GIB, MOST_GROWTH = 4.0, 0.05


def measure(
    *,
    folder: str | None = None,
    store: str | None = None,
    ways: Sequence[str] = (),
    files: int = FILES,
    most: int = MOST,
    quick: bool = False,
) -> dict[str, Any]:
    """Largest anonymous memory of a run, by way and number of files.

    Args:
        folder: of a made pair, with `sdxl` and `ssd-1b` in it; small nets without it.
        store: of subspaces and operators.
        ways: which are measured, by name; all when empty.
        files: some.
        most: many.
        quick: few files on small nets; the figures say nothing.

    Raises:
        UsageError: no made pair is there.
    """
    if quick:
        files, most = QUICK_FILES, QUICK_MOST
    with made_place(folder, quick=quick) as (made, place, small):
        about = environment.describe()
        found = peaks.measure(place, quick=True)
        stored = place / "store" if store is None or small else Path(store)
        progress(f"{files} files")
        spec = load_base_model(made / "sdxl").spec
        given = {
            "adapters": [str(path) for path in write_alike(spec, place / "in", files, RANK)],
            "models": [str(made / "sdxl"), str(made / "ssd-1b")],
            "out": str(place / "out"),
            "store": str(stored),
        }
        results = {name: _way(name, given, files, most) for name in ways or WAYS}
    return {
        "benchmark": "memory",
        "quick": quick,
        "environment": environment.finish(about),
        "peaks": found,
        "results": {"nets": "small" if small else "real", "ways": results},
        "targets": [] if small else judged(results),
    }


def judged(ways: dict[str, Any]) -> list[Verdict]:
    """Targets for the real size, what was found, met or not."""
    verdicts = []
    for name, runs in ways.items():
        if runs["growth"] is None:
            continue
        few, many = (f"{runs[which]['files']} files, {name}" for which in ("some", "many"))
        gib = runs["some"]["bytes"] / 2**30
        verdicts += [
            at_most(few, "anonymous memory, GiB", MOST_GIB, gib),
            at_most(many, "growth of it", MOST_GROWTH, runs["growth"]),
        ]
    return verdicts


def _way(name: str, given: dict[str, Any], files: int, most: int) -> dict[str, Any]:
    def run(number: int) -> dict[str, Any]:
        progress(f"{name}, {number} files")
        return isolated.run("many_files", method=WAYS[name], files=number, **given)

    run(1)  # what the store lacks
    some, many = run(files), run(most)
    growth = None if some["bytes"] is None else many["bytes"] / some["bytes"] - 1.0
    return {"some": some, "many": many, "growth": growth}
