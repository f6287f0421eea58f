"""Rules 8 to 13 of docs/evidence.md, on results made up so that the answer is known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prolora_jax.evaluation.laboratory import refine_page
from prolora_jax.evaluation.laboratory.refine_verdicts import (
    guard_failures,
    guard_limit,
    missed_gains,
    try_refine_auto,
    try_teacher,
    try_worth,
)
from prolora_jax.evaluation.laboratory.sweep import Sweep
from prolora_jax.io.documents import read_yaml

SWEEP = Path(__file__).parents[2] / "configs" / "laboratory" / "refine_sweep.yaml"

DISTANCE = {
    "pruned": 0.01,
    "stranger": 0.16,
    "light": 0.64,
    "far": 2.5,
    "quick": 0.04,
    "blurred": 1,
}
COPY = 0.7


def rows(gains: Mapping[str, tuple[float, float]], own: float = 0.0, seeds: int = 3) -> list[dict]:
    """A style and a concept by target; gains of `refine` and of `reteach` over `copy`."""
    made: list[dict[str, Any]] = []
    for target, (refined, retaught) in gains.items():
        for seed in range(seeds):
            for kind, adapter in (("style", "invert"), ("concept", "cross")):
                style = kind == "style"
                for arm, gain in (
                    ("copy", 0.0),
                    ("refine", refined),
                    ("reteach", 0.0 if style else retaught),
                ):
                    share = COPY + gain + 0.01 * seed
                    made.append(
                        {
                            "target": target,
                            "adapter": adapter,
                            "kind": kind,
                            "seed": seed,
                            "arm": arm,
                            "arrived": [share, share, share],
                            "own_loss": 1.0 + (own if arm != "copy" else 0.0),
                            "none": {"own_loss": 0.1},
                            "disagreement": DISTANCE[target],
                            "student": None if arm == "copy" else {"style": style},
                        }
                    )
    return made


@pytest.mark.parametrize(
    ("gain", "own", "passes"),
    [(0.06, 0.0, True), (0.04, 0.0, False), (0.06, 0.009, True), (0.06, 0.011, False)],
)
def test_worth_its_steps(gain: float, own: float, passes: bool):
    found = try_worth(rows({"pruned": (gain, 0), "quick": (gain, 0)}, own), "refine", ["pruned"])
    assert found.gain.value == pytest.approx(gain)
    assert found.own_cost == pytest.approx(own)
    assert found.passes == passes


def test_one_bad_cell_widens_the_interval():
    made = rows({"pruned": (0.3, 0), "quick": (-0.15, 0)})
    found = try_worth(made, "refine", ["pruned", "quick"])
    assert found.gain.value > 0.05
    assert found.gain.low < 0
    assert not found.passes


def test_only_concepts_count_for_reteach():
    made = rows({"far": (-0.5, 0.4)})
    assert try_worth(made, "reteach", ["far"], "concept").gain.value == pytest.approx(0.4)
    assert try_worth(made, "reteach", ["far"]).gain.value == pytest.approx(0.2)
    assert try_worth(made, "refine", ["far"], "style").own_cost is None


def test_the_limit_lies_between_the_last_that_held_and_the_first_that_failed():
    gains = {"pruned": (0.1, 0), "stranger": (0.5, 0), "light": (-0.02, 0), "far": (0.1, 0)}
    assert guard_limit(rows(gains)) == pytest.approx((0.16 * 0.64) ** 0.5)
    assert guard_limit(rows(gains | {"light": (-0.009, 0)})) == 0.3  # equal is no failure
    assert guard_limit(rows(gains | {"pruned": (-0.02, 0)})) is None


def test_a_pair_that_tests_the_limit_does_not_choose_it():
    gains = {"pruned": (0.1, 0), "far": (-0.5, 0), "quick": (-0.2, 0), "blurred": (-0.2, 0)}
    limit = guard_limit(rows(gains))
    assert limit is not None
    assert limit == pytest.approx((0.01 * 2.5) ** 0.5)
    failed = guard_failures(rows(gains), limit)
    assert {cell[0] for cell in failed} == {"quick"}  # blurred lies above the limit
    assert failed["quick", "invert", 0] == pytest.approx(0.2)
    assert ("quick", "cross", 0) not in failed


def test_auto_takes_the_guard_then_the_kind_then_the_copy():
    made = rows({"quick": (0.1, 0.2), "blurred": (-0.4, 0.3)})
    auto = try_refine_auto(made, 0.3)
    assert {cell[:2]: way for cell, way in auto.ways.items()} == {
        ("quick", "invert"): "refine",
        ("quick", "cross"): "refine",
        ("blurred", "invert"): "copy",
        ("blurred", "cross"): "reteach",
    }
    assert auto.gain.value == pytest.approx((0.1 + 0.1 + 0 + 0.3) / 4)
    assert auto.ships
    assert not try_refine_auto(made, 2.0).ships  # a guard that lets everything pass


def with_absolute(made: list[dict], gain: float, own: float) -> list[dict]:
    """The same, and `refine` with the absolute teacher."""
    more = []
    for one in (row for row in made if row["arm"] == "refine"):
        share = one["arrived"][0] + gain
        changed = {"arm": "refine teacher=absolute", "arrived": [share] * 3}
        more.append(one | changed | {"own_loss": one["own_loss"] + own})
    return [*made, *more]


@pytest.mark.parametrize(
    ("gain", "own", "better"),
    [(0.02, 0.0, True), (0.009, 0.0, False), (0.02, 0.001, False), (-0.1, -0.1, False)],
)
def test_the_absolute_teacher_has_to_gain_and_to_cost_nothing(gain, own, better):
    made = with_absolute(rows({"pruned": (0.1, 0), "far": (0.1, 0)}), gain, own)
    found = try_teacher(made, 0.3)
    assert found.is_better == better
    assert found.gain.value == pytest.approx(gain)


def test_a_pair_beyond_the_limit_says_nothing_of_teachers():
    near = with_absolute(rows({"pruned": (0.1, 0)}), 0.02, 0.0)
    far = with_absolute(rows({"far": (0.1, 0)}), -0.5, 0.0)
    assert try_teacher([*near, *far], 0.3).is_better


def test_the_page_says_what_ran_and_what_the_rules_make_of_it():
    gains = {"pruned": (0.1, 0.2), "quick": (0.1, 0.2), "stranger": (0.6, 0.7), "far": (-1, 0.5)}
    made = with_absolute(rows(gains), 0.02, 0.0)
    for one in made:
        one |= {"control": one["arm"].split()[0], "phi_half": 0.9}
    page = refine_page.refine(made)
    assert "24 of 198 planned cells" in page
    assert "| refine | pruned, quick | +0.100 [+0.100, +0.100] | +0.0000 | yes |" in page
    assert "Not run yet: pruned-s1, pruned-s2." in page
    assert "from pruned, stranger, far: 0.632" in page
    assert "on which `refine` would have gained: none." in page
    assert missed_gains(made, 0.1) == {"stranger": pytest.approx(0.6)}
    assert "It waits." in page  # for pairs that have not run
    assert "it is better by losses" in page
    assert "| far | 2.500 | 0.900 |" in page
    named = {"copy match=block": 0.9, "copy match=name": 0.6, "copy": 0.9}
    shifted = [one | {"target": "shifted"} for one in made if one["arm"] == "refine"]
    made += [
        one | {"arm": arm, "control": "", "arrived": [share] * 3}
        for one in shifted
        for arm, share in named.items()
    ]
    assert "On `shifted`, blocks minus names: +0.300 [" in refine_page.refine(made)


def test_cells_are_counted_as_planned():
    sweep = read_yaml(SWEEP, Sweep)
    planned = len(sweep.targets) * len(sweep.adapters) * len(sweep.seeds)
    assert planned == refine_page.PLANNED
