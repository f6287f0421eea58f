"""Sides that are larger than a device: rows on all devices, the same outputs, and one sum."""

from pathlib import Path
from typing import Any

import pytest
from eight_devices import found_by

SCRIPT = Path(__file__).parents[1].joinpath("support", "cut_modules.py")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the script says, over 8 virtual devices."""
    return found_by(SCRIPT)


def test_outputs_are_those_of_one_device(found):
    assert found["devices"] == 8
    assert found["apart"].keys() == {"prolora", "prolora-full"}
    assert max(found["apart"].values()) <= 1e-6


@pytest.mark.parametrize("method", ["prolora", "prolora-full"])
def test_a_side_is_cut_when_it_is_larger_than_a_device(found, method: str):
    of_method = found["found"][method]
    assert 0 < of_method["alone"] < of_method["modules"]
    large = [side for side in of_method["sides"] if side["large"]]
    assert large
    assert {side["parts"] for side in large} == {8}
    assert all(side["several"] for side in large)
    small = [side for side in of_method["sides"] if not side["large"]]
    assert {side["parts"] for side in small} == {1}


@pytest.mark.parametrize("method", ["prolora", "prolora-full"])
def test_devices_send_each_other_sums_and_nothing_else(found, method: str):
    """Of measurements and of Gram matrices, over the rows of a cut side; none where it is whole."""
    for side in found["found"][method]["sides"]:
        assert side["sent"].keys() == ({"all-reduce"} if side["large"] else set())
