"""Rules: which options hold for which module, and what is said of rules that cannot be followed."""

from typing import Any

import msgspec
import pytest

from prolora_jax.errors import UsageError
from prolora_jax.plans.options import MigrationOptions
from prolora_jax.plans.rules import BadRule, ModuleRule, idle_rules, read_rules

PATHS = ("unet.a.attn1.to_q", "unet.a.attn2.to_q", "unet.a.ff.net.2")


def test_first_rule_that_matches_is_followed_alone():
    first = ModuleRule("*attn2*", scale=0.5, rank="4")
    options = MigrationOptions(
        scale=2.0,
        rank="source",
        exclude=("*x*",),
        rules=(first, ModuleRule(("*ff*", "*attn*"), scale=3.0, method="rotation")),
    )
    one, two, three = (options.options_for(path) for path in PATHS)
    assert (two.scale, two.rank, two.method) == (0.5, "4", options.method)
    assert (one.scale, one.rank, one.method) == (3.0, "source", "rotation")
    assert three is one  # one object for each rule: what is alike is done together
    other = options.options_for("unet.conv_in")
    assert (other.scale, other.rank) == (2.0, "source")
    assert {o.exclude for o in options.variants} == {("*x*",)}
    assert not any(o.rules for o in options.variants)
    assert len(options.variants) == 3


def test_without_rules_all_modules_have_the_options_themselves():
    options = MigrationOptions()
    assert options.options_for("unet.conv_in") is options
    assert options.variants == (options,)


def test_patterns_are_of_whole_paths_and_know_upper_case():
    assert not ModuleRule("attn2").matches(PATHS[1])
    assert not ModuleRule("*ATTN2*").matches(PATHS[1])
    assert ModuleRule("unet.?.attn[12].to_q").matches(PATHS[1])


def test_rules_that_no_module_follows_are_flagged_by_number():
    rules = (ModuleRule("*attn*"), ModuleRule("*nothing*"), ModuleRule("*attn2*"), ModuleRule("*"))
    assert idle_rules(rules, PATHS) == ("idle-rule: 2", "idle-rule: 3")
    assert idle_rules((), PATHS) == ()


def test_rules_are_in_json_as_they_were():
    options = MigrationOptions(rules=(ModuleRule(("a", "b"), scale=0.5), ModuleRule("c")))
    text = msgspec.json.encode(options)
    assert msgspec.json.decode(text, type=MigrationOptions) == options
    assert options.changed() == {"rules": options.rules}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (ModuleRule("*", basis_rank="energy=7"), "--basis-rank energy=7: expected energy=0.9"),
        (ModuleRule("*", rank="0"), "--rank 0: expected exact"),
        (ModuleRule("*", min_similarity=2.0), "--min-similarity 2.0: expected a number"),
        (ModuleRule("*", scale=float("nan")), "--scale nan: expected a finite number"),
        (ModuleRule(()), "found no pattern; expected a path"),
    ],
)
def test_bad_value_is_refused_with_the_number_of_its_rule(rule: ModuleRule, message: str):
    with pytest.raises(BadRule, match=f"^rules: rule 2: (found )?{message}") as caught:
        MigrationOptions(rules=(ModuleRule("*a*"), rule))
    assert (caught.value.exit_code, caught.value.code) == (2, "bad-option")


def test_job_file_has_rules_as_a_list_of_maps():
    document = [
        {"path": "*attn2*", "basis_rank": "gap", "rank": 8, "scale": 2},
        {"path": ["*ff*", "*proj*"], "method": "copy", "min_similarity": 0.5},
    ]
    assert read_rules(document) == (
        ModuleRule("*attn2*", basis_rank="gap", rank="8", scale=2.0),
        ModuleRule(("*ff*", "*proj*"), method="copy", min_similarity=0.5),
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "found 3; expected a map with a path and options"),
        ({"path": "*", "basisrank": "gap"}, r"found basisrank \(did you mean basis_rank\?\)"),
        ({"path": "*", "gate": "phi"}, "found gate; expected path, method, basis_rank, min_"),
        ({"scale": 2.0}, "found a value of another kind: .*`path`"),
        ({"path": "*", "scale": "much"}, r"found a value of another kind: .*`\$.scale`"),
        ({"path": "*", "rank": True}, r"found a value of another kind: .*`\$.rank`"),
    ],
)
def test_bad_rule_of_a_job_file_is_refused_with_its_number(entry: Any, message: str):
    with pytest.raises(BadRule, match=f"^rules: rule 2: {message}"):
        read_rules([{"path": "*"}, entry])


def test_rules_are_a_list():
    with pytest.raises(UsageError, match="^rules: found dict; expected a list, each with a path"):
        read_rules({"path": "*"})
