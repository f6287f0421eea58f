"""What a student is given, and when it is given nothing: made-up answers, no nets."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prolora_jax.adapters.adapter import Adapter
from prolora_jax.errors import AdapterRefused, Refusal
from prolora_jax.refine.fitting import require_numbers
from prolora_jax.refine.job import effect
from prolora_jax.refine.job.base_net import Shown
from prolora_jax.refine.job.effect import Effect, lesson, of_teacher, on_source
from prolora_jax.refine.job.in_turn import in_turn
from prolora_jax.refine.job.recipe import RefineRecipe
from prolora_jax.refine.job.refined import PairRefinement, ToRefine
from prolora_jax.refine.job.shared import OfTarget
from prolora_jax.refine.rows import NoisyRows, SamplePool
from prolora_jax.refine.teacher import effect_mismatch

EFFECT = np.array([1.0, 0.01, 0.9])  # the word in the middle is no trigger


@pytest.fixture
def said() -> Any:
    """Answers to six rows of T and six of A, of every word and of the empty one."""
    rng = np.random.default_rng(0)
    words = np.array([0, 1, 2, 3, 1, 2], np.int32)

    def some() -> np.ndarray:
        return rng.standard_normal((6, 4, 2, 2), np.float32)

    rows = [NoisyRows(some(), np.full(6, 0.5, np.float32), words) for _ in "TA"]
    pool = SamplePool(some(), words)
    theirs = OfTarget(Shown(np.linspace(1, 0.01, 10), "epsilon"), pool, rows[0], some(), 1.0)
    found = Effect(EFFECT, rows[1], some(), some(), some())
    return theirs, some(), found, some()


def share(part: np.ndarray, whole: np.ndarray) -> float:
    return float(np.square(part, dtype=np.float64).sum() / np.square(whole, dtype=np.float64).sum())


def test_the_effect_misses_nothing_and_the_absolute_teacher_the_domains(said: Any):
    theirs, plain, found, own = said
    wanted = on_source(plain, found)
    drift = np.concatenate([plain - theirs.own, found.plain - own])
    recipes = RefineRecipe(teacher="effect"), RefineRecipe(teacher="absolute")
    for recipe, expected in zip(recipes, (0.0, share(drift, wanted)), strict=True):
        shown = lesson(theirs, plain, found, own, "refine", recipe)
        before = np.concatenate([theirs.own, own])
        answered = of_teacher(shown, before, theirs, found, "refine")
        assert effect_mismatch(answered, wanted) == pytest.approx(expected, rel=1e-5, abs=1e-10)


def test_a_concept_is_taught_at_its_triggers_alone(said: Any):
    theirs, plain, found, own = said
    shown = lesson(theirs, plain, found, own, "reteach", RefineRecipe())
    before = np.concatenate([theirs.own, own])
    answered = of_teacher(shown, before, theirs, found, "reteach")
    hit = np.isin(theirs.rows.conditioning, [1, 3])
    np.testing.assert_array_equal(answered[:6][~hit], 0)
    np.testing.assert_array_equal(answered[6:][~hit], 0)
    np.testing.assert_array_equal(answered[:6][hit], (found.on_target - theirs.own)[hit])
    np.testing.assert_array_equal(answered[6:][hit], (found.adapted - own)[hit])
    wanted = np.concatenate([theirs.own[~hit], found.adapted[hit]])
    np.testing.assert_array_equal(shown.target, wanted)


def test_what_is_no_number_is_not_learned():
    require_numbers({"a": (np.zeros(2), np.ones(2))}, "ink")
    with pytest.raises(AdapterRefused, match="ink: found NaN or infinite") as refused:
        require_numbers({"a": (np.zeros(2), np.array([1, np.inf]))}, "ink")
    assert refused.value.code == Refusal.NON_FINITE


def test_an_infinite_effect_on_a_word_draws_nothing(said: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(effect, "word_effects", lambda *_: np.array([1.0, np.inf, 0.5]))
    nobody = effect.Speaker._make((None, None))  # who would be asked to draw
    with pytest.raises(AdapterRefused, match="ink: what the source says with it: found NaN or inf"):
        effect.effect_of(nobody, nobody, said[0], RefineRecipe(), "ink")


def test_one_that_cannot_be_taught_stops_no_other():
    asked: list[str] = []

    def made(todo: Sequence[str]) -> Iterator[str]:
        asked.append("".join(todo))
        for name in todo:
            if name in "bd":
                raise AdapterRefused(f"{name}: found NaN", code=Refusal.NON_FINITE)
            yield name.upper()

    found = [(one, str(done)) for one, done in in_turn(made, "abcd")]
    assert found == [("a", "A"), ("b", "b: found NaN"), ("c", "C"), ("d", "d: found NaN")]
    assert asked == ["abcd", "cd"]


def test_a_source_that_refuses_one_is_no_fault_of_those_before_it(tmp_path: Path):
    names, bare = ("a", "b", "c"), Adapter((), "diffusers")

    class Told(PairRefinement):
        """Of whom only the second cannot be asked."""

        def _effect(self, one: ToRefine, target: Any) -> Any:
            if one.name == "b":
                raise AdapterRefused("b: does not fit", code=Refusal.NO_MATCHING_MODULE)

        def _target(self) -> Any:
            """Nothing is drawn."""

        def _source(self, target: Any) -> Any:
            """Nothing is drawn."""

        def _losses(self, target: Any, source: Any) -> Any:
            return {}

        def _student(self, one: ToRefine, target: Any, source: Any, found: Any, losses: Any) -> Any:
            return one.name.upper()

    def unused() -> Any:
        raise AssertionError

    job: Any = Told(unused, unused, RefineRecipe(), tmp_path, "stamp")
    todo = [ToRefine(bare, bare, {}, (), name) for name in names]
    found = [(one.name, str(done)) for one, done in in_turn(job.refine, todo)]
    assert found == [("a", "A"), ("b", "b: does not fit"), ("c", "C")]
