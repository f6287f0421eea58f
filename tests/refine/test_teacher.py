"""Teachers on linear nets, where the right answer is known."""

import numpy as np
import pytest

from prolora_jax.refine.teacher import effect, effect_mismatch, taught

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 4))
SOURCE, TARGET, UPDATE = RNG.standard_normal((3, 4, 4))


def test_on_the_source_itself_the_teacher_is_the_source_with_the_adapter():
    adapted = X @ (SOURCE + UPDATE).T
    for kind in ("effect", "absolute"):
        np.testing.assert_allclose(taught(kind, X @ SOURCE.T, adapted, X @ SOURCE.T), adapted)


def test_the_effect_of_a_linear_adapter_is_the_adapter():
    answers = effect(X @ TARGET.T, X @ (SOURCE + UPDATE).T, X @ SOURCE.T)
    learned = np.linalg.lstsq(X, answers)[0].T
    np.testing.assert_allclose(learned, TARGET + UPDATE, atol=1e-12)


def test_the_absolute_teacher_forgets_the_target():
    answers = taught("absolute", X @ TARGET.T, X @ (SOURCE + UPDATE).T, X @ SOURCE.T)
    np.testing.assert_allclose(np.linalg.lstsq(X, answers)[0].T, SOURCE + UPDATE, atol=1e-12)


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.25), (-1, 4)])
def test_mismatch_is_the_share_of_the_effect_that_is_missed(scale: float, expected: float):
    change = X @ UPDATE.T
    assert effect_mismatch(scale * change, change) == pytest.approx(expected)


def test_mismatch_with_no_effect():
    nothing = np.zeros((3, 2))
    assert effect_mismatch(nothing, nothing) == 0
    assert effect_mismatch(nothing + 1, nothing) == float("inf")
