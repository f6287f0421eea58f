"""Options are checked when they are made, with a message that says what to write."""

import re
import subprocess
import sys
from dataclasses import fields
from typing import Any

import msgspec
import pytest

from prolora_jax.plans.options import BadOption, MigrationOptions, basis_rule, output_rank


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("energy=0.9", ("energy", 0.9)),
        ("rank=320", ("rank", 320)),
        ("fraction=0.5", ("fraction", 0.5)),
        ("numerical", ("numerical", None)),
        ("gap", ("gap", None)),
        ("optimal", ("optimal", None)),
    ],
)
def test_basis_rules(text: str, rule: tuple):
    assert basis_rule(text) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "energy",
        "energy=1.1",
        "energy=0",
        "rank=0",
        "rank=2.5",
        "numerical=1",
        "gap=2",
        "optimal=1",
        "x=1",
    ],
)
def test_bad_basis_rule(text: str):
    with pytest.raises(BadOption, match=r"--basis-rank .*expected energy=0.9 \| rank=320"):
        basis_rule(text)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("exact", ("exact", None)),
        ("source", ("source", None)),
        ("8", ("rank", 8)),
        ("energy=0.99", ("energy", 0.99)),
    ],
)
def test_output_ranks(text: str, rule: tuple):
    assert output_rank(text) == rule


def test_values_are_made_once_and_stay_out_of_json():
    options = MigrationOptions(basis_rank="rank=320", rank="source")
    assert options.basis_rule is options.basis_rule
    assert (options.basis_rule, options.output_rank) == (("rank", 320), ("source", None))
    text = msgspec.json.encode(options)
    assert {*msgspec.json.decode(text)} == {field.name for field in fields(options)}
    assert msgspec.json.decode(text, type=MigrationOptions) == options


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "energy=2", "all"])
def test_bad_output_rank(text: str):
    with pytest.raises(BadOption, match="--rank .*expected exact"):
        output_rank(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rotation_min_cos": 0.0}, "--rotation-min-cos 0.0: expected a number in"),
        ({"min_similarity": 1.5}, "--min-similarity 1.5"),
        ({"min_similarity": float("nan")}, "--min-similarity nan"),
        ({"scale": float("inf")}, "--scale inf: expected a finite number"),
    ],
)
def test_bad_value(values: dict[str, Any], message: str):
    with pytest.raises(BadOption, match=message):
        MigrationOptions(**values)


def test_bad_choice_names_the_choices_and_the_nearest():
    # In a process of its own: here the type checker of the tests would refuse the value first.
    code = "import prolora_jax as pl; pl.MigrationOptions(method='rotations')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert re.search(r"--method rotations: expected copy \|.* Did you mean 'rotation'", run.stderr)


def test_changed_lists_what_differs_from_the_defaults():
    assert MigrationOptions().changed() == {}
    assert MigrationOptions(method="copy", scale=2.0).changed() == {"method": "copy", "scale": 2.0}
