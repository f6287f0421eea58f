"""One measurement in a process of its own: one core, one thread, environment set before imports.

BLAS reads its number of threads, and XLA its flags and the number of cores, when they are loaded,
so a process that has loaded them can no longer be made to keep to one thread. `run` starts

    python -m prolora_jax.benchmarks.isolated bases '{"rounds": 5, "quick": false}'

which pins itself to one core before it imports `prolora_jax.benchmarks.bases`, calls `measure` of
that module with these options, and writes what it returns as JSON to stdout. Progress goes to
stderr. Nothing at the top of this file imports a numerical library.
"""

import json
import os
import subprocess
import sys
from importlib import import_module
from typing import Any

from prolora_jax.benchmarks.cores import QUIET, pin
from prolora_jax.errors import Refusal, UsageError

ONE_THREAD = {
    **{f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")},
    # XLA's own pool for one matrix product. Its other pool has a thread per usable core: one.
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
}

REFUSED = "refused"
"""In place of a result: why there is none."""


def run(name: str, *, quiet: bool = False, **options: Any) -> dict[str, Any]:
    """What `prolora_jax.benchmarks.<name>.measure(**options)` returns, from a fresh process.

    Args:
        name: module of this folder.
        quiet: no progress.
        options: keyword arguments that JSON can carry.

    Raises:
        UsageError: the benchmark cannot run here.
        ChildProcessError: the process failed; its own message is on stderr.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} {ONE_THREAD['XLA_FLAGS']}".strip()
    # -P: a numpy.py in the present folder must not pass for the library.
    child = subprocess.run(
        [sys.executable, "-P", "-m", __name__, name, json.dumps(options)],
        env={**os.environ, **ONE_THREAD, "XLA_FLAGS": flags, QUIET: "1" if quiet else ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=False,
    )
    if child.returncode != 0:
        raise ChildProcessError(f"benchmark {name} failed (exit status {child.returncode})")
    result = json.loads(child.stdout)
    if REFUSED in result:
        raise UsageError(result[REFUSED], code=Refusal(result["code"]))
    return result


def _main() -> None:
    name, options = sys.argv[1:]
    if not name.isidentifier():
        raise SystemExit(f"{name}: no such benchmark")
    pin()
    try:
        result = import_module(f"{__package__}.{name}").measure(**json.loads(options))
    except UsageError as error:
        result = {REFUSED: str(error), "code": error.code}
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    _main()
