"""The guard: R from four losses, in words, and what follows."""

from typing import Any

import pytest

from prolora_jax.errors import UsageError
from prolora_jax.refine.guard import LIMIT, disagreement, sentence, way


def r(s_on_t: float, t_on_s: float, t_own: float, s_own: float) -> float:
    return disagreement(
        source_on_target=s_on_t, target_on_source=t_on_s, target_own=t_own, source_own=s_own
    )


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        # (L_s(T), L_t(S), L_t(T), L_s(S)), as they were measured in trials
        ((0.261, 0.263, 0.257, 0.260), 0.01),
        ((0.325, 0.275, 0.290, 0.239), 0.13),
        ((0.285, 0.424, 0.178, 0.239), 0.70),
        ((1.198, 0.809, 0.298, 0.260), 2.60),
    ],
)
def test_r(losses: tuple[float, float, float, float], expected: float):
    assert r(*losses) == pytest.approx(expected, abs=0.008)


def test_nets_that_agree_have_no_disagreement():
    assert r(0.2, 0.3, 0.2, 0.3) == pytest.approx(0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_loss_that_is_none_is_refused(bad: float):
    with pytest.raises(UsageError, match=r"L_t\(S\), the loss .* Got .*; expected a positive"):
        r(0.2, bad, 0.2, 0.3)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-0.002, "the same kind of pictures: refine will help"),
        (0.01, "the same kind of pictures: refine will help"),
        (0.13, "nearly the same kind"),
        (0.70, "different kinds of pictures"),
        (2.6, "different domains"),
    ],
)
def test_the_sentence_by_value(value: float, words: str):
    assert words in sentence(value)


def test_a_sentence_promises_help_only_below_the_limit():
    for limit in (0.02, LIMIT, 1.7):
        for value in (0.0, 0.01, 0.04, 0.2, 0.5, 1.2, 3.0):
            promised = "refine will help" in sentence(value, limit)
            assert promised == ("classes may blur" in sentence(value, limit))
            assert promised == (way(value, style=True, limit=limit) == "refine")


def test_guard_first_then_kind():
    cases: dict[tuple[float, bool], Any] = {
        (0.1, True): "refine",
        (0.1, False): "refine",
        (LIMIT, True): "copy",
        (LIMIT, False): "reteach",
    }
    assert {key: way(key[0], style=key[1]) for key in cases} == cases
