"""What this process could do at best, measured in the same run as what it did.

Rates are the best of several runs, not medians: a peak is what is possible. CPU seconds for what
computes, wall seconds for what waits for a disk.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

SIZES = (512, 1024, 1536)
REPEATS = 5
STREAM_BYTES = 2**28
"""Far above any cache."""
FILE_BYTES = 2**26
"""The size of an adapter of a large model."""
BUSY_SECONDS = 1.0
FREE_CORES = 0.95
"""Share of its core that each of two busy loops must get before two workers are measured."""

_BUSY = """
import os, sys, time
core, seconds = int(sys.argv[1]), float(sys.argv[2])
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {core})
start, used = time.perf_counter(), time.process_time()
while time.perf_counter() - start < seconds:
    pass
sys.stdout.write(repr((time.process_time() - used) / (time.perf_counter() - start)))
"""


def matmul_peaks(sizes: Sequence[int] = SIZES, repeats: int = REPEATS) -> dict[str, float]:
    """Best matrix product of this process in flop/s, by library and dtype, over some sizes."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST))
    best: dict[str, float] = {}
    for dtype in (np.float32, np.float64):
        for n in sizes:
            a, b = rng.standard_normal((2, n, n)).astype(dtype)
            with jax.enable_x64(True):
                on_device = jnp.asarray(a), jnp.asarray(b)
                runs = {
                    "numpy": lambda a=a, b=b: a @ b,
                    "xla": lambda pair=on_device: product(*pair).block_until_ready(),
                }
                for library, run in runs.items():
                    name = f"{library}_{np.dtype(dtype).name}"
                    rate = 2.0 * n**3 / _least(run, repeats)
                    best[name] = max(best.get(name, 0.0), rate)
    return best


def stream_rate(size: int = STREAM_BYTES, repeats: int = REPEATS) -> float:
    """Bytes/s of a plain copy in memory; each byte is counted once read and once written."""
    source = np.ones(size, np.uint8)
    target = np.zeros_like(source)
    return 2 * size / _least(lambda: np.copyto(target, source), repeats)


def disk_rates(
    folder: Path, size: int = FILE_BYTES, repeats: int = REPEATS
) -> dict[str, float | str]:
    """Bytes/s in a folder: reading what the page cache has, writing, and writing to the disk.

    The folder is named in the result, since another one may lie on another disk.
    """
    from prolora_jax.io import atomic

    folder.mkdir(parents=True, exist_ok=True)
    content = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    whole = content.tobytes()
    with TemporaryDirectory(prefix="prolora-", dir=folder) as scratch:
        file = Path(scratch) / "bytes"
        runs: dict[str, Callable[[], object]] = {
            "write": lambda: content.tofile(file),
            "write_and_flush": lambda: atomic.write_bytes(file, whole),
            "read_from_page_cache": lambda: np.fromfile(file, np.uint8),
        }
        clock = time.perf_counter
        rates = {name: size / _least(run, repeats, clock) for name, run in runs.items()}
    return {**rates, "folder": str(folder)}


def busy_shares(cores: Sequence[int], seconds: float = BUSY_SECONDS) -> list[float]:
    """What share of its core each of several busy loops gets, all of them at the same time.

    Below one, somebody else uses these cores: how much faster several workers are than one could
    then not be told from how much of a core each of them got.
    """
    loops = [
        subprocess.Popen(
            [sys.executable, "-c", _BUSY, str(core), str(seconds)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        for core in cores
    ]
    return [float(loop.communicate()[0]) for loop in loops]


def thread_check(seconds: float = 0.5) -> float:
    """CPU seconds per wall second of this process while its libraries multiply matrices.

    About 1 on a free core; less where somebody else uses the core; more than 1 means several
    threads, and CPU time then counts what no answer came from.
    """
    import jax
    import jax.numpy as jnp

    host = np.ones((512, 512), np.float32)
    device = jnp.asarray(host)
    wall, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        np.matmul(host, host)
        jax.block_until_ready(jnp.matmul(device, device))
    return (time.process_time() - cpu) / (time.perf_counter() - wall)


def measure(folder: str | os.PathLike[str] | None = None, *, quick: bool = False) -> dict[str, Any]:
    """All peaks of this process; the disk's where a folder is given."""
    sizes, repeats, size = (SIZES, REPEATS, STREAM_BYTES) if not quick else ((256,), 2, 2**22)
    peaks: dict[str, Any] = {
        "matmul_flops": matmul_peaks(sizes, repeats),
        "stream_copy_bytes": stream_rate(size, repeats),
        "cpu_per_wall": thread_check(0.1 if quick else 0.5),
    }
    if folder is not None:
        peaks["disk_bytes"] = disk_rates(Path(folder), min(size, FILE_BYTES), repeats)
    return peaks


def _least(
    run: Callable[[], object], repeats: int, clock: Callable[[], float] = time.process_time
) -> float:
    """Seconds of the fastest of some runs, after one that does not count."""
    run()
    seconds = []
    for _ in range(repeats):
        started = clock()
        run()
        seconds.append(clock() - started)
    return min(seconds)
