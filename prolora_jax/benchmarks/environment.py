"""What a measured number depends on, as a dict for JSON."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

LIBRARIES = ("prolora_jax", "jax", "jaxlib", "numpy", "scipy", "torch")
SETTINGS = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "XLA_FLAGS",
    "JAX_PLATFORMS",
    "NPROC",
)


def describe() -> dict[str, Any]:
    """Machine, libraries, thread settings, devices and load, as they are now.

    Starts JAX. `finish` adds what is known only when the measurement is over.
    """
    import jax

    return {
        "started": _now(),
        "cpu": _cpu(),
        "cores_usable": sorted(_affinity()),
        "cores_online": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
        "blas": _blas(),
        "jax_backend": jax.default_backend(),
        "jax_devices": [str(device.device_kind) for device in jax.devices()],
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "torch_threads": _torch_threads(),
        "git_commit": _commit(),
        "load_at_start": list(os.getloadavg()),
    }


def finish(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with the time and the load at the end."""
    return {**environment, "finished": _now(), "load_at_end": list(os.getloadavg())}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _cpu() -> str:
    """Model of the CPU; `platform` does not know it on Linux."""
    for line in _said("lscpu").splitlines():
        if line.startswith("Model name:"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Commit of the checkout that the package is in, marked when files differ from it."""
    here = str(Path(__file__).parent)
    commit = _said("git", "-C", here, "rev-parse", "HEAD").strip()
    changed = _said("git", "-C", here, "status", "--porcelain", "--untracked-files=no").strip()
    return f"{commit}{' with changes' if changed else ''}" if commit else None


def _said(*command: str) -> str:
    """What a program writes; nothing where it is absent or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _blas() -> str:
    config: Any = np.show_config(mode="dicts")
    blas = config.get("Build Dependencies", {}).get("blas", {})
    return " ".join(str(blas.get(key, "?")) for key in ("name", "version"))


def _torch_threads() -> int | None:
    torch = sys.modules.get("torch")
    return None if torch is None else torch.get_num_threads()
