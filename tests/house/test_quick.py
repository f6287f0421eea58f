"""`pytest -m quick` touches every wing; what the lists of quick and of slow files name is there."""

import ast
from pathlib import Path

import pytest
from quick import NOT_QUICK, QUICK, has_quick, is_quick
from slow import SLOW

TESTS = Path(__file__).parents[1]
FILES = [
    path.relative_to(TESTS).as_posix()
    for path in sorted(TESTS.glob("*/test_*.py"))
    if path.parent.name != "stock"  # not collected here (CONTRIBUTING.md)
]


def named_in(file: str) -> list[str]:
    found = ast.walk(ast.parse((TESTS / file).read_text()))
    names = [n.name for n in found if isinstance(n, ast.FunctionDef) and n.name.startswith("test")]
    return [f"{file}::{name}" for name in names]


@pytest.mark.parametrize("place", QUICK + NOT_QUICK)
def test_each_place_has_tests(place: str):
    file, _, test = place.partition("::")
    assert any(found.startswith(file) for found in FILES)
    assert not test or place in named_in(file)


@pytest.mark.parametrize("file", SLOW)
def test_each_slow_file_is_there(file: str):
    assert file in FILES


def test_every_wing_has_quick_tests():
    wings = {file.partition("/")[0] for file in FILES}
    places = [place for file in FILES for place in named_in(file)]
    assert {place.partition("/")[0] for place in places if is_quick(place)} == wings


def test_no_quick_test_is_in_a_file_that_is_not_collected():
    for file in FILES:
        assert has_quick(file) >= any(is_quick(place) for place in named_in(file))


def test_this_one_is_marked(request: pytest.FixtureRequest):
    assert request.node.get_closest_marker("quick")
