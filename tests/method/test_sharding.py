"""The batched projection over a mesh of 8 devices gives what one device gives.

In a process of its own: virtual devices are set before JAX starts, and more devices than threads
deadlock in batched LAPACK calls unless NPROC says otherwise (measured; hence the time-out, too).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from patience import UNTIL_HUNG

from prolora_jax.method.operators import METHODS

SHARE = 1e-6  # of ||dW||: float32 sums in another order
SCRIPT = Path(__file__).parents[1].joinpath("support", "sharded_projection.py")


def test_adapters_over_eight_devices():
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "NPROC": "16",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=UNTIL_HUNG,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("devices") == 8
    assert len(found) == 2 * len(METHODS[1:])
    assert {name: error for name, error in found.items() if not error <= SHARE} == {}
