"""The drawing of docs/architecture.md: every part of the package, none importing upward."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "prolora_jax"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
IMPORT = re.compile(r"^\s*from prolora_jax(?:\.(\w+)\S*)? import (\w+)", re.MULTILINE)


def floors() -> dict[str, int]:
    """The floor of each part, read off the drawing."""
    (drawing,) = re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)
    rows = [line.split() for line in drawing.splitlines()]
    assert [int(floor) for floor, *_ in rows] == list(range(len(rows), 0, -1))
    parts = [(part, int(floor)) for floor, *names in rows for part in names]
    assert len(parts) == len(dict(parts))
    return dict(parts)


def imported(part: str) -> set[str]:
    """The other parts that a part of the package imports."""
    path = PACKAGE / part
    files = [*path.rglob("*.py")] if path.is_dir() else [path.with_suffix(".py")]
    found = [match for file in files for match in IMPORT.findall(file.read_text())]
    return {of or name for of, name in found} - {part}


def test_every_part_is_drawn():
    loose = {path.stem for path in PACKAGE.glob("*.py")}
    assert set(floors()) == loose | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


@pytest.mark.parametrize("part", sorted(floors()))
def test_a_part_imports_from_below(part: str):
    drawn = floors()
    assert {other for other in imported(part) if drawn[other] >= drawn[part]} == set()


def test_the_page_counts_what_it_draws():
    drawn = floors()
    wings = sum((PACKAGE / part).is_dir() for part in drawn)
    said = re.search(r"has (\d+) parts\s+\((\d+) wings.*?on (\d+) floors", PAGE, re.DOTALL)
    assert said is not None
    assert [int(n) for n in said.groups()] == [len(drawn), wings, max(drawn.values())]


def test_imports_are_seen():
    assert {"errors", "io", "method"} <= imported("subspaces")
    assert imported("__main__") == {"cli"}
