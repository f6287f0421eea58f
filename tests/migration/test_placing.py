"""Operators on the devices of a host: each module has one, and outputs do not depend on them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import UNTIL_HUNG

SCRIPT = Path(__file__).parents[1].joinpath("support", "placed_modules.py")


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    """What the script says, over 8 virtual devices."""
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
    return json.loads(done.stdout.splitlines()[-1])


def test_eight_devices_write_what_one_writes(found):
    assert found["devices"] == 8
    assert found["outputs"] == 8
    assert found["equal"]


def test_each_module_has_one_device_and_all_devices_have_some(found):
    assert found["modules"] > 8
    assert found["used"] == 8
    assert found["where"]
    assert found["collectives"] == []


def test_operators_stay_as_long_as_there_is_room(found):
    assert found["stay"]
    assert found["go"]
