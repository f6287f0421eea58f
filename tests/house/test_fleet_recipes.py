"""Recipes of configs/fleet: each is named in the page, says whether it was run, and the commands in
it are commands of this program."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from prolora_jax.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "configs" / "fleet").iterdir())
VALUES = {
    "JOB_COMPLETION_INDEX": "3",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_ARRAY_TASK_COUNT": "64",
    "SKYPILOT_NODE_RANK": "3",
    "SKYPILOT_NUM_NODES": "8",
    "index": "3",
    "count": "8",
}


def texts(value: object) -> list[str]:
    """Every string of a YAML document."""
    if isinstance(value, dict):
        return [text for one in value.values() for text in texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in texts(one)]
    return [value] if isinstance(value, str) else []


def commands(recipe: Path) -> list[list[str]]:
    """What prolora is called with, variables filled in."""
    text = recipe.read_text()
    if recipe.suffix == ".yaml":
        text = "\n".join(texts(yaml.safe_load(text)))
    else:
        text = re.sub(r"(?m)^\s*#.*$", "", text)
    text = text.replace("\\\n", " ").replace("\\$(nproc)", "8")
    text = re.sub(r"\$\{(\w+):-[^}]*\}", r"$\1", text)
    text = re.sub(r"\$(\w+)", lambda found: VALUES.get(found[1], found[1].lower()), text)
    found = re.findall(r"(?<![\w'-])prolora (fleet [^\n&]*)", text)
    return [
        shlex.split(one.rstrip().removesuffix('"') if one.count('"') % 2 else one) for one in found
    ]


def store_of(words: list[str]) -> str:
    """Where a command has its store."""
    return words[words.index("--store") + 1]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_its_commands_are_ours_and_the_page_has_it(recipe: Path):
    found = commands(recipe)
    assert [words[:2] for words in found][0] == ["fleet", "run"]
    assert store_of(found[0]) in ("s3://catalog/store", "store")  # hosts share it: $STORE
    for words in found:
        _, bound, *_ = app.parse_args(words, exit_on_error=False, print_error=False)
        assert "$" not in str(bound.arguments), words
    assert re.search(r"(?i)\brun here", recipe.read_text())
    page = (ROOT / "docs" / "fleet.md").read_text()
    (row,) = [line for line in page.splitlines() if f"(../configs/fleet/{recipe.name}) |" in line]
    assert "run here" in row
