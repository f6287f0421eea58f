"""docs/faq.md: every code of a refusal or a skipped module has an entry, and none is unknown."""

import re
from pathlib import Path

import pytest

from prolora_jax.catalog.page.words import DECISIONS, REASONS
from prolora_jax.errors import Refusal
from prolora_jax.plans.plan import Skip

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "faq.md").read_text()
ENTRY = re.compile(r"^### `([\w-]+)`.*?\n(.*?)(?=^#|\Z)", re.DOTALL | re.MULTILINE)
OPTION = re.compile(r"--[a-z][a-z-]+")


def entries(question: str) -> dict[str, str]:
    """The entries below a question, by code."""
    (part,) = [part for part in PAGE.split("\n## ") if part.startswith(question)]
    found = ENTRY.findall(part)
    codes = [code for code, _ in found]
    assert len(codes) == len(set(codes))
    return dict(found)


REFUSED, SKIPPED = entries("Why was a file refused?"), entries("Why was a module skipped?")


def test_every_code_has_an_entry_and_none_is_unknown():
    assert set(REFUSED) == {str(code) for code in Refusal}
    assert set(SKIPPED) == {str(code) for code in Skip}


@pytest.mark.parametrize("text", [*REFUSED.values(), *SKIPPED.values()])
def test_each_says_what_it_means_and_what_to_do(text: str):
    meaning, _, remedy = text.partition("*What to do:*")
    assert len(meaning.split()) >= 5
    assert len(remedy.split()) >= 3


def test_the_page_about_a_catalog_knows_no_other_code_and_offers_no_other_way_out():
    assert set(REASONS) <= set(REFUSED)
    assert set(DECISIONS) <= set(REFUSED)
    offered = {code: set(OPTION.findall(text)) for code, text in DECISIONS.items()}
    told = {code: set(OPTION.findall(text)) for code, text in REFUSED.items()}
    assert {code: options - told[code] for code, options in offered.items()} == {
        code: set() for code in offered
    }
