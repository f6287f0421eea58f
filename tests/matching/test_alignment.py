"""Alignment of two lists against every alignment there is."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prolora_jax.matching.alignment import Alignment, align, fitting_modules, only_alignment


def every_alignment(rows: int, columns: int) -> list[tuple[tuple[int, int], ...]]:
    """Every monotone one-to-one alignment of any size."""
    return [
        tuple(zip(i, j, strict=True))
        for size in range(min(rows, columns) + 1)
        for i in combinations(range(rows), size)
        for j in combinations(range(columns), size)
    ]


def brute_force(scores: np.ndarray, fitting: np.ndarray) -> list[tuple]:
    """(number of pairs, fitting modules, score, pairs) of every allowed alignment, best first."""
    allowed = (fitting > 0) & np.isfinite(scores)
    found = [
        (
            len(pairs),
            sum(int(fitting[i, j]) for i, j in pairs),
            sum(scores[i, j] for i, j in pairs),
            pairs,
        )
        for pairs in every_alignment(*scores.shape)
        if all(allowed[i, j] for i, j in pairs)
    ]
    return sorted(found, reverse=True)


SIZES = st.integers(1, 5)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(SIZES, SIZES, st.integers(0, 10_000), st.sampled_from([1, 2, 4]))
def test_the_best_alignment_and_its_margin(rows: int, columns: int, seed: int, shapes: int):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, columns))
    # shapes = 1: everything fits; more: some pairs fit with fewer modules, or with none.
    fitting = (
        np.ones((rows, columns), int) if shapes == 1 else rng.integers(0, shapes, scores.shape)
    )
    ranking = brute_force(scores, fitting)
    pairs, margin = align(scores, fitting)
    assert pairs == ranking[0][3]
    rivals = [entry for entry in ranking[1:] if entry[:2] == ranking[0][:2]]
    if rivals:
        assert margin == pytest.approx(ranking[0][2] - rivals[0][2])
    else:
        assert margin is None
    assert fitting_modules(fitting) == ranking[0][1]
    assert only_alignment(fitting) == (None if rivals else pairs)


def test_the_shorter_side_is_fully_used():
    scores = np.array([[0.1, -0.9], [-0.5, -0.2], [0.9, -0.4]])
    pairs, _ = align(scores)
    assert len(pairs) == 2


def test_forbidden_pairs_are_not_used():
    scores = np.array([[-np.inf, 0.0], [0.0, 1.0], [0.0, 0.5]])
    assert align(scores)[0] == ((1, 0), (2, 1))


def test_no_alignment_when_every_pair_is_forbidden():
    assert align(np.full((3, 2), -np.inf)) == ((), None)
    assert align(np.ones((3, 2)), np.zeros((3, 2), int)) == ((), None)


def test_shapes_come_before_scores():
    fitting = np.array([[2, 1], [2, 1], [1, 4]])
    scores = np.array([[0.1, 0.9], [0.2, 0.9], [0.9, -1.0]])
    pairs, margin = align(scores, fitting)
    assert pairs == ((1, 0), (2, 1))
    assert margin == pytest.approx(0.1)


@pytest.mark.parametrize(("margin", "weak"), [(None, False), (0.049, True), (0.05, False)])
def test_margin_below_one_twentieth_is_weak(margin: float | None, weak: bool):
    assert Alignment("unet.mid_block.attentions.0", 2, 1, ((0, 0),), margin).weak is weak
