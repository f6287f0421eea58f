"""Scripts that need several devices: a process of their own, with 8 virtual CPU devices."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from patience import UNTIL_HUNG


def found_by(script: Path, *arguments: str) -> dict[str, Any]:
    """What a script prints as its last line, as JSON.

    Args:
        script: to run.
        arguments: of it.
    """
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "NPROC": "16",  # with as many threads as cores some products wait for ever
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=UNTIL_HUNG,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
