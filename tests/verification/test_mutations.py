"""Everything that `verify` reads, changed one thing at a time: noticed, or said to be unchecked.

The right files come from `reference`. `scripts/mutate_verify.py` does the same over a real pair.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from migrated import Files, make_files

from prolora_jax.errors import ProloraError, UsageError
from prolora_jax.plans.fields import unknown_in_text
from prolora_jax.plans.report import MigrationReport
from prolora_jax.verification.adapter import verify_adapter

ARMS = [
    {},
    {"method": "prolora", "rank": "2", "rescale": "norm", "scale": 0.5},
    {"method": "rotation", "below": "copy"},
    {"method": "subspace", "rank": "energy=0.9"},
]
UNKNOWABLE = {"location", "prolora_version"}
"""Where files were, and which version it was: listed as not checked."""


def leaves(value: Any, place: tuple = ()) -> Iterator[tuple]:
    if place:
        yield place
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield from leaves(inner, (*place, key))


def at(document: Any, place: tuple) -> Any:
    for key in place:
        document = document[key]
    return document


def others(value: Any) -> list[Any]:
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1]
        case float():
            return [value + 0.01 * max(abs(value), 0.1)]
        case str():
            return [f"{value}x"]
        case [first, *_]:
            return [[*value, first]]
        case [] | {}:
            return []
        case dict():
            return [{}]
    return [0.5]


def is_noticed(files: Files, report: dict[str, Any]) -> bool:
    try:
        return not verify_adapter(
            files.output, files.source_lora, files.source, files.target, report
        ).ok
    except ProloraError:
        return True


@pytest.mark.parametrize("arm", ARMS)
def test_every_field_of_the_report_is_noticed(arm):
    files = make_files(**arm)
    right = json.loads(files.report.to_json())
    assert not is_noticed(files, right)
    missed, tried = [], 0
    for place in leaves(right):
        for value in (*others(at(right, place)), None):
            changed = copy.deepcopy(right)
            at(changed, place[:-1])[place[-1]] = value
            if changed == right:
                continue
            if UNKNOWABLE & set(place) and not is_noticed(files, changed):
                continue
            tried += 1
            if not is_noticed(files, changed):
                missed.append((place, value))
    assert missed == []
    assert tried > 100


def test_a_field_that_no_report_has_is_noticed():
    files = make_files()
    right = json.loads(files.report.to_json())
    objects = [place for place in ((), *leaves(right)) if isinstance(at(right, place), dict)]
    assert len(objects) > 10
    for place in objects:
        changed = copy.deepcopy(right)
        at(changed, place)["more"] = 1
        if place[-1:] in {("counts",), ("packings",)}:  # their names are data
            assert is_noticed(files, changed)
            continue
        found = verify_adapter(files.output, files.source_lora, files.source, files.target, changed)
        name = ".".join(map(str, (*place, "more")))
        assert found.problems == (f"report has {name}, which is no field of it",)


@pytest.mark.parametrize("name", ["rank_out", "rank_in", "k_source"])
def test_an_endless_whole_number_is_refused(name: str):
    files = make_files()
    report = json.loads(files.report.to_json())
    report["modules"][0][name] = 10**400
    with pytest.raises(UsageError, match="a whole number of more than 64 bits"):
        verify_adapter(files.output, files.source_lora, files.source, files.target, report)


def test_a_field_that_stands_twice_in_a_report_is_noticed():
    told = make_files().report
    text = told.to_json()
    assert unknown_in_text(text.encode(), told) == ()
    assert unknown_in_text(f'{{"carried": [], {text[1:]}'.encode(), told) == ("carried (twice)",)
    deep = f'{{"more": {"[" * 200_000}{"]" * 200_000}, {text[1:]}'
    assert unknown_in_text(deep.encode(), told) == ("one that is nested too deep",)


@pytest.mark.parametrize("arm", ARMS)
def test_every_field_of_the_header_is_noticed(arm):
    files = make_files(**arm)
    report, text = files.report.to_dict(), files.output.metadata["prolora"]
    facts = json.loads(text)
    for place in leaves(facts):
        for value in others(at(facts, place)):
            changed = copy.deepcopy(facts)
            at(changed, place[:-1])[place[-1]] = value
            assert is_noticed(with_strings(files, prolora=json.dumps(changed)), report), place
    for strings in ({"prolora": "{"}, {"prolora": "3"}, {"note": "x"}, {"format": "tf"}):
        assert is_noticed(with_strings(files, **strings), report), strings


def with_strings(files: Files, **strings: str) -> Files:
    metadata = {**files.output.metadata, **strings}
    return replace(files, output=replace(files.output, metadata=metadata))


def test_header_without_its_entry_is_noticed():
    files = make_files()
    files = replace(files, output=replace(files.output, metadata={"format": "pt"}))
    found = files.verify()
    assert found.problems == ("header: found no entry `prolora`, which every output has",)


OTHER_OPTIONS = [
    {"scale": 2.0},
    {"scale": 1.01},
    {"method": "rotation"},
    {"method": "copy"},
    {"below": "copy"},
    {"min_similarity": -1.0},
    {"min_similarity": 0.99},
    {"basis_rank": "fraction=0.3"},
    {"basis_rank": "gap"},
    {"basis_rank": "optimal"},
    {"rank": "2"},
    {"rank": "mean=2"},
    {"rank": "budget=400"},
    {"rescale": "norm"},
    {"dtype": "float16"},
    {"include": ("*a",)},
    {"exclude": ("*b",)},
]
NO_EFFECT = [
    {"min_similarity": 0.71},
    {"gate_sides": "left"},
    {"identical": "project"},
    {"pair_rank": "own"},
    {"match_score": "similarity"},
    {"rotation_min_cos": 0.2},
    {"exclude": ("*nothing*",)},
    {"dtype": "same"},
    {"alpha_zero": "rank"},
    {"allow_partial": True},
    {"uniform_rank": True},
    {"factor_rank": "max=2"},
    {"dora": "keep"},
]


@pytest.mark.parametrize("changed", OTHER_OPTIONS, ids=str)
def test_option_in_report_and_header_alike_is_noticed(changed):
    assert not make_files().with_options(**changed).verify().ok


@pytest.mark.parametrize("changed", NO_EFFECT, ids=str)
def test_option_without_effect_is_said_to_be_unchecked(changed):
    found = make_files().with_options(**changed).verify()
    assert found.ok, found.problems
    (name,) = changed
    (said,) = [line for line in found.not_checked if line.startswith("options whose")]
    assert f"{name} (" in said


@pytest.mark.parametrize("key", ["text_encoder.x", "more"])
def test_tensor_that_nothing_accounts_for_is_noticed(key):
    files = make_files()
    extras = {**files.output.extras, key: np.arange(4.0)}
    found = replace(files, output=replace(files.output, extras=extras)).verify()
    assert not found.ok
    assert any(problem.startswith(f"{key}: ") for problem in found.problems)


def test_input_that_is_another_is_noticed():
    files = make_files()
    first = files.source_lora.modules[-1]  # skipped: no number of the output depends on it
    modules = (*files.source_lora.modules[:-1], replace(first, up=2 * first.up))
    found = replace(files, source_lora=replace(files.source_lora, modules=modules)).verify()
    assert any(problem.startswith("report has fingerprint") for problem in found.problems)


def test_report_is_the_same_after_json():
    files = make_files()
    told = msgspec.json.decode(files.report.to_json(), type=MigrationReport)
    assert told == files.report
