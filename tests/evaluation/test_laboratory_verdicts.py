"""The rules of docs/evidence.md, on results made up so that the answer is known."""

from typing import Any

import numpy as np
import pytest

from prolora_jax.evaluation.laboratory import verdicts
from prolora_jax.evaluation.laboratory.summary import interval, number, table

COPY = 0.8
ADAPTERS = ("invert", "shear", "cross")


def row(target: str, arm: str, adapter: str = "invert", seed: int = 0, **values: Any) -> dict:
    share = values.pop("share", COPY)
    facts = {
        "arrived": [share, share - 0.1, share + 0.1],
        "arrived_at_norm": [values.pop("at_norm", share), 0, 1],
        "own_loss": 1.0,
        "none": {"own_loss": 1.0},
        "skipped": 0,
        "moved": 10,
    }
    return {"target": target, "arm": arm, "adapter": adapter, "seed": seed, **facts, **values}


def results(arm: str, gains: dict[str, float], at_norm: float | None = None) -> list[dict]:
    """`copy` and an arm that is above it by `gains` on each target."""
    rows = []
    for target, gain in gains.items():
        for place, adapter in enumerate(ADAPTERS):
            level = COPY + 0.05 * place
            rows.append(row(target, "copy", adapter, share=level))
            shifted = level + gain if at_norm is None else level + at_norm
            rows.append(row(target, arm, adapter, share=level + gain, at_norm=shifted))
    return rows


def everywhere(gain: float) -> dict[str, float]:
    return {target: gain for target in verdicts.RELATIVES}


EVEN = everywhere(0.05)


@pytest.mark.parametrize(
    ("gains", "at_norm", "passes"),
    [
        (EVEN, None, True),
        (everywhere(0.005), None, False),  # equal is not better
        ({**EVEN, "far": -0.03}, None, False),  # one relative pays for the others
        ({**EVEN, "far": -0.015}, None, True),
        (EVEN, -0.01, False),  # it was only stronger
    ],
)
def test_rule_1(gains, at_norm, passes):
    trial = verdicts.try_arm(results("new", gains, at_norm), "new")
    assert trial.passes == passes
    assert verdicts.recommendation([trial]) == ("new" if passes else "copy")
    assert trial.overall.value == pytest.approx(np.mean(list(gains.values())))


def test_rule_1_needs_an_interval_above_zero():
    rows = results("new", {**EVEN, "far": 0.0})
    for r in rows:
        if r["arm"] == "new" and r["adapter"] == "shear":
            r["arrived"] = [r["arrived"][0] - 0.1, 0, 1]
    trial = verdicts.try_arm(rows, "new", copy="copy")
    assert trial.overall.low < 0
    assert not trial.passes


def test_arms_are_compared_on_the_cells_that_both_have():
    rows = results("new", EVEN)
    rows.append(row("light", "copy", "ring", share=-5.0))
    assert verdicts.difference(rows, "new", "copy").value == pytest.approx(0.05)
    with pytest.raises(ValueError, match="no cell"):
        verdicts.difference(rows, "absent", "copy")


def test_rule_2_takes_the_equal_arm_that_harms_least():
    rows = results("careful", everywhere(-0.005))
    rows += [r for r in results("weak", everywhere(-0.2)) if r["arm"] == "weak"]
    for arm, loss in (("copy", 1.5), ("careful", 0.9), ("weak", 1.0)):
        rows.append(row("stranger", arm, own_loss=loss))
    chosen, facts = verdicts.default_method(rows, ("careful", "weak"))
    assert chosen == "careful"
    assert facts["copy"] == (0.0, pytest.approx(0.5))
    assert facts["careful"][1] == pytest.approx(0.1)
    assert verdicts.default_method(rows, ("weak",))[0] == "copy"


def test_rule_3_prefers_what_is_there_then_the_smallest():
    rows = []
    for arm, share in (("a", 0.5), ("b", 0.795), ("c", 0.8)):
        rows += [row(target, arm, share=share) for target in verdicts.RELATIVES]
    named = {"small": "a", "middle": "b", "large": "c"}
    assert verdicts.best_setting(rows, named, "large")[0] == "large"
    assert verdicts.best_setting(rows, named, "small")[0] == "middle"


def test_rule_4_takes_the_strictest_gate_within_a_cost():
    rows = []
    for arm, share, skipped in (
        ("open", 0.8, 0),
        ("loose", 0.8, 2),
        ("mid", 0.795, 6),
        ("hard", 0.7, 10),
    ):
        rows += [row(target, arm, share=share) for target in verdicts.RELATIVES]
        rows.append(row("stranger", arm, skipped=skipped, moved=10 - skipped))
    found = verdicts.gates(rows, {"0.6": "loose", "0.7": "mid", "0.8": "hard"}, "open")
    assert (found["0.8"].cost, found["0.8"].skipped) == (pytest.approx(0.1), 1.0)
    assert verdicts.strictest(found, "0.6") == "0.7"
    assert verdicts.strictest(found, "0.6", 0.2) == "0.8"
    assert verdicts.strictest({"0.8": found["0.8"]}, "0.8") is None
    even = {name: verdicts.Gate(0.0, 1.0) for name in ("0.6", "0.7", "0.8")}
    assert verdicts.strictest(even, "0.7") == "0.7"
    assert verdicts.strictest(even, "phi 0.7") == "0.6"


@pytest.mark.parametrize(
    ("gains", "used_on", "ships"),
    [
        ({"far": 0.1, "striped": 0.1}, ("striped",), True),
        ({"far": 0.1, "striped": -0.1}, ("striped",), False),
        ({"far": 0.1, "striped": 0.0}, ("striped",), False),
        ({"far": 0.1, "striped": 0.1, "pruned": -0.1}, ("pruned", "striped"), False),
    ],
)
def test_rule_7_judges_a_choice_on_targets_that_did_not_choose(gains, used_on, ships):
    targets = ("light", "far", "pruned", "quick", "striped")
    distance = {"light": 1.0, "far": 0.9, "pruned": 0.99, "quick": 0.99, "striped": 0.92}
    if "pruned" in gains:
        distance["pruned"] = 0.94
    rows = results("way", {target: gains.get(target, 0.0) for target in targets})
    rows += [row(t, "worse", a, share=0.5) for t in targets for a in ADAPTERS]
    rows = [{**one, "phi_half": distance[one["target"]]} for one in rows]
    trial = verdicts.try_auto(rows, ["worse", "way"])
    assert (trial.arm, trial.used_on, trial.ships) == ("way", used_on, ships)
    assert trial.limit == pytest.approx(0.95)


def test_measures_of_a_row():
    one = row("light", "copy", own_loss=1.2, skipped=3, moved=9, samples={"fidelity": 0.7})
    assert number(one, "own_change") == pytest.approx(0.2)
    assert number(one, "skipped_share") == 0.25
    assert number(one, "samples.fidelity") == 0.7
    assert number({**one, "samples": None}, "samples.fidelity") is None
    assert number({**one, "own_loss": None}, "own_change") is None


def test_table_has_means_and_intervals():
    rows = [row("light", "copy", seed=s, share=v) for s, v in enumerate((0.2, 0.4, 0.6))]
    low, high = interval((0.2, 0.4, 0.6))
    assert table(rows).splitlines()[-1] == f"| copy | 0.400 [{low:.3f}, {high:.3f}] |"
    assert table(rows[:1]).splitlines()[-1] == "| copy | 0.200 |"
    assert 0.2 <= low < 0.4 < high <= 0.6
