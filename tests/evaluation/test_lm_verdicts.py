"""Rules 15 to 22 of docs/evidence.md, on results made up so that the answer is known."""

from collections.abc import Mapping

import pytest

from prolora_jax.errors import Refusal
from prolora_jax.evaluation.laboratory.lm.arms import MOVES, SHIFTED, STUDENT
from prolora_jax.evaluation.laboratory.lm.page import lm_page
from prolora_jax.evaluation.laboratory.lm.verdicts import (
    CONTINUED,
    DEPTHS,
    TWINS,
    lm_verdicts,
    with_refine,
)

SHARES = {
    **{arm: 0.9 for arm in MOVES},
    "copy match=name": 0.4,
    "half": 0.7,
    SHIFTED: -0.1,
    STUDENT: 0.98,
}
DISAGREEMENT = {"near": 0.05, "middle": 0.2, "far": 0.9}
TARGETS = ("same", *TWINS, *DEPTHS, *CONTINUED, "stranger")


def made(
    changes: Mapping[tuple[str, str], float] | None = None, *, exact: float = 1.0
) -> list[dict]:
    """A row for every arm, target, adapter and seed; shares by target and arm may differ."""
    changes, rows = changes or {}, []
    for target in TARGETS:
        for adapter in ("style", "secret"):
            for seed in range(3):
                for arm, usual in SHARES.items():
                    strange = target == "stranger" and arm not in (STUDENT, SHIFTED)
                    refused = strange and MOVES[arm].min_similarity > -1
                    share = 0.0 if strange else usual
                    share = changes.get((target, arm), share) + 0.001 * seed
                    rows.append(
                        {
                            "target": target,
                            "adapter": adapter,
                            "kind": adapter,
                            "seed": seed,
                            "arm": arm,
                            "arrived": [share, share, share],
                            "own_loss": 2.0,
                            "exact": share if adapter == "secret" else None,
                            "exact_none": 0.0 if adapter == "secret" else None,
                            "exact_trained": exact if adapter == "secret" else None,
                            "refused": Refusal.UNRELATED.value if refused else "",
                            "disagreement": DISAGREEMENT.get(target, 0.01)
                            if arm == STUDENT
                            else None,
                            "cpu_seconds": 3.6,
                            "training_seconds": 0.0,
                        }
                    )
    return rows


def passes(changes: Mapping[tuple[str, str], float] | None = None) -> dict[int, bool | None]:
    return {verdict.rule: verdict.passes for verdict in lm_verdicts(made(changes))}


def test_all_rules_hold_where_all_is_as_expected() -> None:
    assert passes() == dict.fromkeys(range(15, 23), True)


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        (15, {("nf4", "prolora open"): 0.92}),
        (15, {("q4", "prolora-full"): 0.88}),
        (16, {("healed", "copy match=name"): 0.7}),
        (17, {("near", SHIFTED): 0.2}),
        (18, {("same", "half"): 0.87}),
        (18, {("same", "prolora-full open"): 0.88}),
        (19, {(t, STUDENT): 0.92 for t in ("healed", "near", "middle")}),
        (20, {("middle", STUDENT): 0.85}),
        (21, {("stranger", "copy forced"): 0.3}),
        (22, {(t, "rotation"): 0.95 for t in (*TWINS, *DEPTHS, *CONTINUED)}),
    ],
)
def test_a_rule_fails_on_what_it_forbids(rule: int, changes: dict) -> None:
    assert passes(changes)[rule] is False


def test_refine_keeps_the_copy_where_the_models_disagree() -> None:
    refined = [row for row in with_refine(made()) if row["arm"] == "refine"]
    shares = {row["target"]: row["arrived"][0] for row in refined if row["seed"] == 0}
    assert shares["middle"] == 0.98
    assert shares["far"] == 0.9
    assert "stranger" not in shares  # the command refuses it
    # What the student does above the limit counts for no rule but the one that names it.
    (guard,) = (v for v in lm_verdicts(made()) if v.rule == 20)
    assert "would have gained on far" in guard.text


def test_own_loss_counts_against_refine() -> None:
    rows = made()
    for row in rows:
        row["own_loss"] += 0.02 * (row["arm"] == STUDENT)
    (worth,) = (verdict for verdict in lm_verdicts(rows) if verdict.rule == 19)
    assert worth.passes is False
    assert "own loss +0.0" in worth.text


def test_secrets_that_were_not_learned_do_not_count() -> None:
    page = lm_page("Made", made(exact=0.5))
    assert f"{len(TARGETS) * 6} cells, seeds 0, 1, 2, of which {len(TARGETS) * 3} count" in page


def test_what_has_not_run_is_said() -> None:
    rows = [row for row in made() if row["target"] == "near"]
    found = {verdict.rule: verdict for verdict in lm_verdicts(rows)}
    assert found[15].passes is None
    assert str(found[15]).startswith("* Rule 15 not run")
    assert found[17].passes is True
    assert "| shifted | -0.099 |" in lm_page("Made", rows)
