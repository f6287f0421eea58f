"""Files a second from a slow store, with one chunk in flight for each worker and with two.

The catalog of `fleet_scale` lies in a real S3 server (SeaweedFS) behind a proxy that waits before
each answer to a question for an input. One worker with the engine fetches, computes and writes.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from fault_proxy import FaultProxy
from seaweed import BUCKET, KEY, SECRET, running

from prolora_jax.catalog.fleet import holding
from prolora_jax.catalog.fleet.job import FleetJob
from prolora_jax.catalog.fleet.local_run import run_here
from prolora_jax.catalog.fleet.share import RunShare
from prolora_jax.io.places.opening import open_place

WAIT = 1.0
"""Seconds before each answer; a file of 46.6 MB takes as long over a line of 0.4 Gbit/s."""

TURNS = (1, 2, 1, 2)
INPUTS = "catalog"


def flights(folder: Path) -> dict[str, Any]:
    """Runs with one chunk in flight and with two, in turn.

    Args:
        folder: with base models `sdxl` and `ssd-1b`, and `loras`; gets a store and the server.
    """
    server = folder / "seaweed"
    server.mkdir()
    with running(server) as there, FaultProxy(there.endpoint).running() as proxy:
        keys = {"ENDPOINT_URL": proxy.endpoint, "ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET}
        os.environ.update({f"AWS_{name}": value for name, value in keys.items()})
        place = open_place(f"s3://{BUCKET}/{INPUTS}")
        files = sorted(p for p in (folder / "loras").rglob("*.safetensors") if p.is_file())
        for number, path in enumerate(files):  # some names are such that no store takes them
            place.create(f"{number:05}.safetensors", path, {})
        flight(folder, "warm", 1)  # subspaces and operators are there when it counts
        proxy.choose = slow
        runs = [flight(folder, f"{turn}-{many}", many) for turn, many in enumerate(TURNS)]
    return {"answer_s": WAIT, "runs": runs}


def slow(method: str, path: str) -> None:
    """Wait before an input is given."""
    if method == "GET" and f"/{INPUTS}/" in path:
        time.sleep(WAIT)


def flight(folder: Path, name: str, many: int) -> dict[str, Any]:
    """One run; its rate is from its first receipt, of one input, to its last."""
    url, heard = f"s3://{BUCKET}", []
    bases = str(folder / "sdxl"), str(folder / "ssd-1b")
    job = FleetJob(f"{url}/{INPUTS}", f"{url}/{name}", *bases, store=folder / "store")
    usual, holding.IN_FLIGHT, load = holding.IN_FLIGHT, many, os.getloadavg()[0]
    try:
        run_here(job, RunShare(), lambda *said: heard.append((time.perf_counter(), said[1])))
    finally:
        holding.IN_FLIGHT = usual
    (first, before), (last, done) = heard[0], heard[-1]
    found = {
        "in_flight": many,
        "files": done,
        "files_per_s": round((done - before) / (last - first), 2),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }
    print(found, file=sys.stderr)
    return found
