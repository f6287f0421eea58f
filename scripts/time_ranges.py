"""What it would save to fetch only the tensors of an adapter that move, on a real S3 server.

    python scripts/time_ranges.py [--megabytes 50 200] [--rounds 5]

A made file of 722 modules, each a stretch of its own, lies in SeaweedFS on this machine; half of
its bytes are wanted: every other module (`spread`), or ten runs of modules (`blocks`). It is
fetched whole, in the pieces and threads of a worker; by a range for each module that moves, behind
one for the header; and by ranges of which those are joined whose gap is at most `--gap`. Then the
same with `--latency` seconds before each answer, as a store that is not on this machine has them.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from seaweed import BUCKET, KEY, SECRET, running

from prolora_jax.io.places.opening import open_place
from prolora_jax.io.places.place import FilePlace
from prolora_jax.io.places.staging import PIECE

MODULES, HEADER, RUNS, AT_ONCE = 722, 120_000, 10, 8

Ranges = list[tuple[int, int]]
"""First byte and length of each."""


def wanted(size: int, kind: str) -> Ranges:
    """Half of a file's modules.

    Args:
        size: of the file.
        kind: `spread` or `blocks`.
    """
    each = (size - HEADER) // MODULES
    runs = 1 if kind == "spread" else MODULES // (2 * RUNS)
    return [(HEADER + n * each, each) for n in range(MODULES) if n // runs % 2 == 0]


def joined(ranges: Iterable[tuple[int, int]], gap: int) -> Ranges:
    """Ranges of which neighbours are one, at most a piece long.

    Args:
        ranges: sorted.
        gap: bytes that may lie between neighbours.
    """
    found: Ranges = []
    for start, length in ranges:
        if found and start - sum(found[-1]) <= gap and start + length - found[-1][0] <= PIECE:
            found[-1] = found[-1][0], start + length - found[-1][0]
        else:
            found.append((start, length))
    return found


def fetch(place: FilePlace, key: str, ranges: Ranges, latency: float) -> float:
    """Seconds until all ranges have come, in the threads of a worker."""

    def one(asked: tuple[int, int]) -> None:
        time.sleep(latency)
        assert len(place.read_range(key, *asked)) == asked[1]

    begun = time.perf_counter()
    if len(ranges) > 1 and ranges[0][0] == HEADER:  # which of them move the header says
        one((0, HEADER))
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(one, ranges))
    return time.perf_counter() - begun


def ways(size: int, gap: int) -> dict[str, Ranges]:
    """What is asked for, by a name."""
    found = {"whole": [(start, min(PIECE, size - start)) for start in range(0, size, PIECE)]}
    for kind in ("spread", "blocks"):
        found[kind] = wanted(size, kind)
        found[f"{kind}, joined"] = joined(found[kind], gap)
    return found


@contextmanager
def served():
    """A place on a server of this machine."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as server:
        told = {"ENDPOINT_URL": server.endpoint, "ACCESS_KEY_ID": KEY, "SECRET_ACCESS_KEY": SECRET}
        os.environ.update({f"AWS_{name}": value for name, value in told.items()})
        yield open_place(f"s3://{BUCKET}/ranges")


def main() -> None:
    """Print a table as JSON: median seconds by size, latency and way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--latency", type=float, nargs="+", default=[0.0, 0.02])
    parser.add_argument("--gap", type=int, default=2**18)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    with served() as place:
        for size in (megabytes * 10**6 for megabytes in chosen.megabytes):
            key, asked = str(size), ways(size, chosen.gap)
            place.create(key, os.urandom(size), {})
            for latency in chosen.latency:
                seconds: dict[str, list[float]] = {way: [] for way in asked}
                for _ in range(chosen.rounds):  # in turn: others use this machine, too
                    for way, ranges in asked.items():
                        seconds[way].append(fetch(place, key, ranges, latency))
                told = {way: [len(asked[way]), round(median(s), 3)] for way, s in seconds.items()}
                print(json.dumps({"bytes": size, "latency": latency, "requests, s": told}))


if __name__ == "__main__":
    main()
