"""Trigger words and self-made words, on effects whose answer is known."""

import numpy as np
import pytest

from prolora_jax.refine.triggers import (
    draw_words,
    effects,
    is_style,
    trigger_words,
    word_shares,
)


def test_effects_are_mean_squares_by_word():
    plain = np.random.default_rng(0).standard_normal((3, 5, 2, 2))
    change = np.array([0.0, 1.0, 3.0])
    found = effects(plain + change[:, None, None, None], plain)
    np.testing.assert_allclose(found, change**2, atol=1e-12)


def test_a_concept_has_few_triggers_and_a_style_most_words():
    concept = np.array([0.01, 0.04, 1.0, 0.02])
    assert trigger_words(concept).tolist() == [False, False, True, False]
    assert not is_style(trigger_words(concept))
    assert is_style(trigger_words(np.array([0.5, 0.9, 1.0, 0.01])))
    assert not is_style(trigger_words(np.array([1.0, 1.0, 0.0, 0.0])))  # half is not more than half


def test_words_near_the_limit():
    assert trigger_words(np.array([1.0, 0.0501, 0.0499])).tolist() == [True, True, False]


def test_half_of_the_words_are_even_and_half_go_by_effect():
    shares = word_shares(np.array([3.0, 1.0, 0.0, 0.0]))
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.125, 0.125])


def test_an_adapter_without_effect_has_no_triggers():
    nothing = np.zeros(4)
    np.testing.assert_allclose(word_shares(nothing), 0.25)
    assert not trigger_words(nothing).any()


def test_drawn_words_have_their_shares():
    shares = np.array([0.5, 0.25, 0.25])
    words = draw_words(shares, 20_000, 7, np.random.default_rng(0))
    found = [np.mean(words == word) for word in (0, 1, 2, 7)]
    assert found == pytest.approx([0.45, 0.225, 0.225, 0.1], abs=0.01)
    assert words.dtype == np.int32
    none = draw_words(shares, 50, 7, np.random.default_rng(0), null_share=0.0)
    assert 7 not in none
