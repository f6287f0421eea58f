"""The table of docs/python.md shows what the signatures say.

Its first column is calls in code words: `name`, or `name(argument, option=default, ...)`; dots at
the end say that there is more. A keyword-only argument is shown with `=`.
"""

import ast
import inspect
import re
from pathlib import Path

import pytest

import prolora_jax as pl

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| (`.+?) \| (.+) \|$", re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")
NAMED_ELSEWHERE = {"float32"}
"""Defaults that the page names and Python cannot read as a literal: compared by name."""


def rows(page: str) -> list[tuple[list[str], list[str]]]:
    """The code words of both columns, row by row."""
    return [(CODE.findall(first), CODE.findall(second)) for first, second in ROW.findall(page)]


def problems(shown: str) -> list[str]:
    """What a call on the page says that its signature does not."""
    name, opening, _ = shown.partition("(")
    if name not in pl.__all__:
        return [f"{shown}: prolora_jax has no {name}"]
    if not opening:
        return []
    positional, keywords, whole = read_call(shown)
    parameters = inspect.signature(getattr(pl, name)).parameters
    found = [f"{shown}: no {key}" for key in [*positional, *keywords] if key not in parameters]
    by_place = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    named = [key for key in [*positional, *keywords] if key in by_place]
    in_place = [key for key in positional if key in by_place]
    if named != sorted(named, key=by_place.index) or in_place != by_place[: len(in_place)]:
        found.append(f"{shown}: the order is {by_place}")
    found += [f"{shown}: {key} is by keyword only" for key in positional if key not in by_place]
    for key, value in keywords.items():
        default = parameters[key].default if key in parameters else inspect.Parameter.empty
        if default is not inspect.Parameter.empty and not agrees(value, default):
            found.append(f"{shown}: {key} is {default!r}")
    required = {
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    left_out = required - {*positional, *keywords}
    if whole and left_out:
        found.append(f"{shown}: leaves out {sorted(left_out)}")
    return found


def read_call(shown: str) -> tuple[list[str], dict[str, ast.expr], bool]:
    """Positional names, keywords, and whether nothing is left out."""
    text = re.sub(r",?\s*\.\.\.\)$", ")", shown)
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    names = [ast.unparse(argument) for argument in call.args]
    return names, {k.arg: k.value for k in call.keywords if k.arg}, text == shown


def agrees(value: ast.expr, default: object) -> bool:
    """Whether the page's default is the signature's; dots stand for any."""
    if isinstance(value, ast.Name):
        return value.id in NAMED_ELSEWHERE and value.id in str(default)
    literal = ast.literal_eval(value)
    return literal is ... or literal == default


PAGE = rows((ROOT / "docs" / "python.md").read_text())
SHOWN = [code for first, _ in PAGE for code in first]


@pytest.mark.parametrize("shown", SHOWN)
def test_each_call_is_as_its_signature(shown: str):
    assert problems(shown) == []


def test_every_public_name_is_in_the_table():
    words = {code.partition("(")[0] for first, second in PAGE for code in first + second}
    assert [name for name in pl.__all__ if name not in words] == []


def test_no_name_has_two_rows():
    names = [shown.partition("(")[0] for shown in SHOWN]
    assert len(names) == len(set(names))


BROKEN = [
    ("forget(adapter)", "has no forget"),
    ("delta(adapter, module)", "no module"),
    ("delta(path, adapter)", "the order is"),
    ("delta(adapter)", "leaves out ['path']"),
    ("load_adapter(path, base='sdxl')", "base is None"),
    ("load_adapter(path, base, quiet)", "quiet is by keyword only"),
    ("load_unet(path, dtype=float64)", "dtype is"),
]


@pytest.mark.parametrize(("shown", "expected"), BROKEN)
def test_what_is_wrong_is_seen(shown: str, expected: str):
    assert any(expected in problem for problem in problems(shown))
