"""Ways beyond the paper, on matrices whose right answer is known, and on the demo's nets."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prolora_jax.evaluation.demo import demo_contest
from prolora_jax.evaluation.laboratory.activations import recorded_inputs
from prolora_jax.evaluation.laboratory.beyond import BEYOND, Move, as_factors, deltas
from prolora_jax.evaluation.laboratory.trials import Contest

PATH = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
REMOVED = PATH.replace("blocks.0.attn1", "blocks.1.attn1")


class MadeUp(Move):
    """A move whose facts are given, not looked up."""

    def __init__(self, **facts: Any):
        self.__dict__.update(facts)


def made_up(*, drift: float = 1.0, turned: float = 1.0, seed: int = 0) -> MadeUp:
    """One module 6 x 5 with an update, two weights and 40 rows of inputs to each."""
    rng = np.random.default_rng(seed)
    delta, source, change = (rng.standard_normal((6, 5)) for _ in range(3))
    x_s = rng.standard_normal((40, 5))
    x_t = x_s + turned * rng.standard_normal((40, 5))
    return MadeUp(
        copied={PATH: delta},
        projected={PATH: -delta},
        given={PATH: delta, REMOVED: rng.standard_normal((6, 5))},
        sources={PATH: PATH},
        weights=lambda path: (source, source + drift * change),
        similarity=lambda path: 0.8,
        inputs=lambda of: ({PATH: x_s}, {PATH: x_t}),
        contest=SimpleNamespace(pair=SimpleNamespace(phi_half=0.9)),
    )


@pytest.mark.parametrize("way", sorted(BEYOND.keys() - {"folded", "damped", "pair-scaled"}))
def test_nothing_changes_where_target_and_source_are_equal(way: str):
    move = made_up(drift=0.0, turned=0.0)
    move.__dict__["similarity"] = lambda path: 1.0
    np.testing.assert_allclose(BEYOND[way](move, 0.5)[PATH], move.copied[PATH], atol=1e-12)


def test_drift_takes_away_what_points_its_way_and_never_turns_round():
    move = made_up()
    source, target = move.weights(PATH)
    left, _, right = np.linalg.svd(source)
    basis = lambda x: left.T @ x @ right.T  # noqa: E731
    before, after = basis(move.copied[PATH]), basis(BEYOND["drift-removed"](move, 1.0)[PATH])
    drift = basis(target - source)
    same = before * drift > 0
    assert same.any()
    assert not same.all()
    np.testing.assert_allclose(after[~same], before[~same], atol=1e-12)
    shrunk = np.maximum(np.abs(before[same]) - np.abs(drift[same]), 0)
    np.testing.assert_allclose(np.abs(after[same]), shrunk, atol=1e-12)
    assert np.all(after[same] * before[same] >= -1e-12)


def test_projected_out_leaves_nothing_along_the_drift():
    move = made_up(seed=1)
    source, target = move.weights(PATH)
    drift = target - source
    move.copied[PATH] += drift  # so that it points the drift's way
    left = BEYOND["drift-projected-out"](move, 1.0)[PATH]
    assert abs(np.sum(left * drift)) < 1e-10
    move.copied[PATH] = -drift
    np.testing.assert_array_equal(BEYOND["drift-projected-out"](move, 1.0)[PATH], -drift)


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_ridge_is_the_least_squares_answer(strength: float):
    move = made_up()
    (x_s, x_t), delta = (side[PATH] for side in move.inputs("noise")), move.copied[PATH]
    weight = np.sqrt(strength * np.sum(x_t**2) / 5)
    rows = np.concatenate((x_t, weight * np.eye(5)))
    wanted = np.concatenate((x_s @ delta.T, weight * delta.T))
    expected = np.linalg.lstsq(rows, wanted)[0].T
    np.testing.assert_allclose(BEYOND["ridge-on-noise"](move, strength)[PATH], expected, atol=1e-10)


def test_scales():
    move = made_up()
    delta, (source, target) = move.copied[PATH], move.weights(PATH)
    ratio = np.linalg.norm(target) / np.linalg.norm(source)
    np.testing.assert_allclose(BEYOND["norm-matched"](move, 1.0)[PATH], ratio * delta)
    np.testing.assert_allclose(BEYOND["pair-scaled"](move, 2.0)[PATH], 1.2 * delta)
    np.testing.assert_allclose(BEYOND["damped"](move, 2.0)[PATH], 0.64 * delta)
    np.testing.assert_array_equal(BEYOND["chosen"](move, 0.8)[PATH], delta)
    np.testing.assert_array_equal(BEYOND["chosen"](move, 0.9)[PATH], -delta)


def test_folding_adds_removed_blocks_to_the_one_before():
    move = made_up()
    expected = move.copied[PATH] + 0.5 * move.given[REMOVED]
    np.testing.assert_allclose(BEYOND["folded"](move, 0.5)[PATH], expected)


@cache
def contest() -> Contest:
    return demo_contest()


@pytest.mark.parametrize("of", ["noise", "samples"])
def test_inputs_of_all_linear_modules_are_recorded_for_the_same_pictures(of: str):
    workshop = contest().pair.workshop
    first, second = recorded_inputs(workshop, "source", "pruned", of, 4)
    shared = contest().pair.bases.matching().pairs
    linear = [p for p, m in contest().pair.bases.target.spec.modules.items() if m.kind_is("linear")]
    for path in linear:
        assert second[path].shape == first[shared[path]].shape
    # Pictures, not noise of their own: what enters first is the same but for the weights before.
    path = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    np.testing.assert_array_equal(first[path], second[path])  # the words of the prompt


@pytest.mark.parametrize("way", sorted(BEYOND))
def test_every_way_moves_a_real_adapter(way: str):
    move = Move(contest())
    made = deltas(as_factors(BEYOND[way](move, 0.5)))
    assert made.keys() == move.copied.keys()
    norms = [sum(np.sum(d**2) for d in side.values()) for side in (made, move.copied)]
    assert 0.3 < norms[0] / norms[1] < 3
