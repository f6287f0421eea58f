"""`prolora benchmark first`: what one file costs, with nothing stored and with everything stored.

A file of rank 16 in float16 for all attention modules goes from the first model of a made pair to
the second, by three ways: `--method copy`, `--gate auto`, `--method prolora-full`. Each is done

* `cold`: the store is empty, and keeps afterwards what `prolora migrate` keeps;
* `again`: with what that has left;
* `warm`: everything is stored, operators, too, as a catalog or `--keep-operators` leave it. What is
  not there yet is computed beforehand, and does not count.

Every migration has a process of its own, one thread on one core (`isolated`), so that neither
compiled programs nor memory of an earlier one are there. Base models are in the page cache.
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

RANK = 16
WAYS = {
    "copy": {"method": "copy"},
    "auto": {"gate": "auto"},
    "full": {"method": "prolora-full"},
}
MOST_WARM, MOST_COLD, MOST_GIB, MOST_STORE = 3.0, 40.0, 1.0, 0.2


def measure(
    *,
    folder: str | None = None,
    store: str | None = None,
    ways: Sequence[str] = (),
    quick: bool = False,
) -> dict[str, Any]:
    """CPU seconds and memory of one file, by way, by what is stored, by stage.

    Args:
        folder: of a made pair, with `sdxl` and `ssd-1b` in it; small nets without it.
        store: of subspaces and operators, for `warm`.
        ways: which are measured, by name; all when empty.
        quick: small nets, whatever pair is named; the figures say nothing.

    Raises:
        UsageError: no made pair is there.
    """
    with made_place(folder, quick=quick) as (made, place, small):
        about = environment.describe()
        progress("peaks")
        found = peaks.measure(place, quick=True)
        spec = load_base_model(made / "sdxl").spec
        (adapter,) = write_alike(spec, place / "in", 1, RANK)
        stored = place / "stored" if store is None or small else Path(store)
        results = {name: _way(name, made, adapter, place, stored) for name in ways or WAYS}
    return {
        "benchmark": "first",
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
        case = f"one file, {name}"
        seconds = {state: runs[state]["total_cpu_s"] for state in ("cold", "warm")}
        verdicts.append(at_most(case, "warm, CPU s", MOST_WARM, seconds["warm"]))
        if name == "auto":
            verdicts.append(at_most(case, "cold, CPU s", MOST_COLD, seconds["cold"]))
        verdicts.append(at_most(case, "store afterwards, GB", MOST_STORE, runs["stored"] / 1e9))
        sizes = [runs[state]["largest_bytes"] for state in ("cold", "again", "warm")]
        if None not in sizes:
            verdicts.append(at_most(case, "resident, GiB", MOST_GIB, max(sizes) / 2**30))
    return verdicts


def _way(name: str, made: Path, adapter: Path, scratch: Path, stored: Path) -> dict[str, Any]:
    """One way, cold, again and warm; and the bytes that the first leaves in the store."""
    own, out = scratch / f"store of {name}", scratch / f"{name}.safetensors"
    pair = {"source": str(made / "sdxl"), "target": str(made / "ssd-1b")}
    given = {"adapter": str(adapter), "out": str(out), "options": WAYS[name], **pair}

    def run(state: str, store: Path, *, keeps: bool) -> dict[str, Any]:
        progress(f"{name}, {state}")
        found = isolated.run("one_file", store=str(store), keeps=keeps, **given)
        sizes = [size for size in found["peak_bytes"].values() if size is not None]
        found["total_cpu_s"] = sum(found["cpu_s"].values())
        found["largest_bytes"] = max(sizes, default=None)
        return found

    cold = run("cold", own, keeps=False)
    size = sum(path.stat().st_size for path in own.rglob("*") if path.is_file())
    again = run("again", own, keeps=False)
    if name == "copy":
        stored = own  # there is nothing more to know
    else:
        run("to have everything stored", stored, keeps=True)
    warm = run("warm", stored, keeps=True)
    return {"cold": cold, "again": again, "warm": warm, "stored": size}
