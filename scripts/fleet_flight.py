"""Files a second from a slow store, with one chunk in flight for each worker and with two.

Inputs lie in a real S3 server (SeaweedFS) behind a proxy that waits before it gives one. A worker
fetches, writes outputs, reports and receipts as ever, but it computes nothing: it waits as long as
a file of 722 modules takes its host (`docs/benchmarks/catalog.json`), so that other work of this
machine counts for little.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import fleet_workers
from fault_proxy import FaultProxy
from seaweed import BUCKET, KEY, SECRET, running

from prolora_jax.catalog.fleet import holding, local_run
from prolora_jax.catalog.fleet.chunk import ChunkDone, ChunkWork
from prolora_jax.catalog.fleet.job import FleetJob
from prolora_jax.catalog.fleet.share import RunShare
from prolora_jax.io.places.opening import open_place

COMPUTED = 0.245
"""Seconds of each file."""

ANSWERS = (0.05, 0.25)
"""Seconds before an input is given: 46.6 MB come as fast over 7.5 and 1.5 Gbit/s."""

FILES, BYTES, INPUTS = 97, 2**16, "catalog"


def start_waiting(
    job: FleetJob, hurried: Event, sign: Callable[[], None]
) -> Callable[[ChunkWork], ChunkDone]:
    """A worker that waits where it would compute."""
    fleet_workers.SECONDS = COMPUTED
    return fleet_workers.start_toy(job, hurried, sign)


def flights(folder: Path) -> dict[str, Any]:
    """Runs with one chunk in flight and with two, in turn.

    Args:
        folder: gets the server's data.
    """
    server = folder / "seaweed"
    server.mkdir(parents=True)
    local_run.start_worker = start_waiting
    with running(server) as there, FaultProxy(there.endpoint).running() as proxy:
        keys = {"ENDPOINT_URL": proxy.endpoint, "ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET}
        os.environ.update({f"AWS_{name}": value for name, value in keys.items()})
        place = open_place(f"s3://{BUCKET}/{INPUTS}")
        for number in range(FILES):
            place.create(f"{number:03}.safetensors", os.urandom(BYTES), {})
        runs = [
            flight(f"by{many}-{answer}-{turn}", many, answer, proxy)
            for answer in ANSWERS
            for turn in range(2)
            for many in (1, 2)
        ]
    return {"computed_s": COMPUTED, "runs": runs}


def flight(name: str, many: int, answer: float, proxy: FaultProxy) -> dict[str, Any]:
    """One run of one worker; its rate is from its first receipts to its last."""

    def slow(method: str, path: str) -> None:
        if method == "GET" and f"/{INPUTS}/" in path:
            time.sleep(answer)

    proxy.choose, heard = slow, []
    job = FleetJob(f"s3://{BUCKET}/{INPUTS}", f"s3://{BUCKET}/{name}", "source", "target")
    usual, holding.IN_FLIGHT, load = holding.IN_FLIGHT, many, os.getloadavg()[0]
    try:
        local_run.run_here(
            job, RunShare(), lambda *said: heard.append((time.perf_counter(), said[1]))
        )
    finally:
        holding.IN_FLIGHT = usual
    # Receipts of a chunk are heard of together.
    first = next(at for at, done in heard if at > heard[0][0] + COMPUTED)
    before = sum(at < first for at, _ in heard)
    last, done = heard[-1]
    found = {
        "in_flight": many,
        "answer_s": answer,
        "files": done,
        "files_per_s": round((done - before) / (last - heard[before - 1][0]), 2),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }
    print(found, file=sys.stderr)
    return found
