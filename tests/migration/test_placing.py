"""Operators on the devices of a host: each module has one, and outputs do not depend on them."""

from pathlib import Path

import pytest
from eight_devices import found_by

SCRIPT = Path(__file__).parents[1].joinpath("support", "placed_modules.py")


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    """What the script says, over 8 virtual devices."""
    return found_by(SCRIPT)


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
