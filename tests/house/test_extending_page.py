"""What the pages for contributors name is there: a path that has moved is a page that is wrong."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATH = re.compile(
    r"(?<![\w/.~-])(?:prolora_jax|tests|scripts|configs)/[\w/]+(?:\.py|\.yaml|/)(?!\w)"
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def missing(text: str) -> list[str]:
    """Paths of this project that a text names and that are not there."""
    return sorted({path for path in PATH.findall(text) if not (ROOT / path).exists()})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_on_a_page_is_there(page: Path):
    assert missing(page.read_text()) == []


def test_a_path_that_is_gone_is_seen():
    text = "`prolora_jax/gone.py`, prolora_jax/errors.py and `tests/nowhere/`; a/prolora_jax/x.py"
    assert missing(text) == ["prolora_jax/gone.py", "tests/nowhere/"]


def test_the_page_for_contributors_names_files_of_each_kind():
    found = PATH.findall((ROOT / "docs" / "extending.md").read_text())
    assert len({path for path in found if path.startswith("prolora_jax/")}) >= 15
    assert len({path for path in found if path.startswith("tests/")}) >= 8
