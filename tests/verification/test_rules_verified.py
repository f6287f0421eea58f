"""Rules are checked module by module: outputs that follow them, and others that do not."""

from dataclasses import replace
from typing import Any

import pytest
from migrated import make_files

from prolora_jax.plans.rules import ModuleRule

OVERRIDES: list[dict[str, Any]] = [
    {"scale": -0.5},
    {"rank": "2"},
    {"rank": "energy=0.5"},
    {"method": "rotation"},
    {"method": "subspace"},
    {"basis_rank": "gap"},
    {"basis_rank": "optimal"},
    {"basis_rank": "fraction=0.3"},
    {"min_similarity": 0.999},
]


@pytest.mark.parametrize("override", OVERRIDES[:-1], ids=str)
@pytest.mark.parametrize("every", [{}, {"method": "prolora", "rescale": "norm"}], ids=str)
def test_output_by_a_rule_verifies(override: dict[str, Any], every: dict[str, Any]):
    rule = ModuleRule("unet.[ab]", **override)
    own = {"unet.a": override, "unet.b": override}
    found = make_files(own=own, rules=(rule, ModuleRule("*", min_similarity=0.7)), **every).verify()
    assert found.ok, (found.problems, [c.problems for c in found.modules if c.problems])
    (said,) = [line for line in found.not_checked if line.startswith("options whose")]
    assert "rules (patterns that take" in said


@pytest.mark.parametrize("override", OVERRIDES, ids=str)
def test_rule_that_was_not_followed_is_noticed_where_it_holds(override: dict[str, Any]):
    files = make_files().with_options(rules=(ModuleRule("unet.a", **override),))
    found = files.verify()
    failed = {check.path for check in found.modules if check.verdict == "failed"}
    assert not found.ok
    assert failed == {"unet.a"}


@pytest.mark.parametrize("override", OVERRIDES[:-1], ids=str)
def test_rule_that_was_followed_elsewhere_is_noticed(override: dict[str, Any]):
    rule = ModuleRule("unet.b", **override)
    found = make_files(own={"unet.a": override}, rules=(rule,)).verify()
    failed = {check.path for check in found.modules if check.verdict == "failed"}
    assert failed == {"unet.a", "unet.b"}


def test_order_of_rules_counts():
    rules = ModuleRule("unet.a", scale=0.5), ModuleRule("unet.[ab]", scale=2.0)
    files = make_files(own={"unet.a": {"scale": 0.5}, "unet.b": {"scale": 2.0}}, rules=rules)
    assert files.verify().ok
    assert not files.with_options(rules=rules[::-1]).verify().ok


def test_rule_that_no_module_follows_has_to_be_flagged():
    rules = (ModuleRule("*nothing*", scale=0.5),)
    files = make_files(rules=rules)
    assert "report has flags [] of the file, recomputed ['idle-rule: 1']" in files.verify().problems
    assert replace(files, report=replace(files.report, flags=("idle-rule: 1",))).verify().ok


def test_option_that_every_module_has_from_a_rule_is_said_to_be_open():
    files = make_files(rules=(ModuleRule("*", min_similarity=0.7, scale=1.0),))
    found = files.with_options(scale=3.0).verify()
    assert found.ok, found.problems
    (said,) = [line for line in found.not_checked if line.startswith("options whose")]
    assert "scale (every module follows a rule that has its own)" in said
