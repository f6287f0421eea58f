"""Measures of the laboratory, on cases that can be worked out by hand."""

import numpy as np
import pytest

from prolora_jax.evaluation.metrics.shares import (
    diversity,
    gap_share,
    paired_difference,
    squared_mmd,
)


def test_share_of_a_constant_gap_has_no_spread():
    none, trained = np.full(10, 2.0), np.full(10, 1.0)
    assert gap_share(none, np.full(10, 1.25), trained) == pytest.approx((0.75, 0.75, 0.75))


def test_share_of_no_adapter_is_zero_and_of_the_trained_one_is_one():
    rng = np.random.default_rng(0)
    none, trained = rng.random(50) + 1, rng.random(50)
    assert gap_share(none, none, trained) == pytest.approx((0, 0, 0))
    assert gap_share(none, trained, trained) == pytest.approx((1, 1, 1))


def test_share_is_of_mean_losses_not_a_mean_of_shares():
    none, arm, trained = np.array([4.0, 2.0]), np.array([2.0, 2.0]), np.array([0.0, 1.0])
    assert gap_share(none, arm, trained).value == pytest.approx((3 - 2) / (3 - 0.5))


def test_interval_is_paired():
    # Pictures differ a hundred times more than the arms do; the pairing takes that out.
    level = np.random.default_rng(1).random(200) * 100
    low, high = gap_share(level + 1, level + 0.5, level)[1:]
    assert high - low < 1e-9


def test_interval_holds_the_value_and_shrinks_with_the_number_of_pictures():
    rng = np.random.default_rng(2)
    widths = []
    for count in (50, 800):
        none = rng.random(count) + 1
        value, low, high = gap_share(none, none - rng.random(count), none - 1)
        assert low < value < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_paired_difference():
    first = np.array([3.0, 5.0, 7.0])
    assert paired_difference(first, first - 2) == pytest.approx((2, 2, 2))


def test_mmd_of_two_points_each():
    x, y = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])
    # Off-diagonal pairs within x: distance 1; within y: 2; between: 0, 2, 1, 1.
    k = [np.exp(-(d**2) / 2) for d in range(3)]
    expected = k[1] + k[2] - 2 * (k[0] + k[2] + 2 * k[1]) / 4
    assert squared_mmd(x, y, scale=1.0) == pytest.approx(expected)


def test_mmd_tells_distributions_apart():
    rng = np.random.default_rng(3)
    same = squared_mmd(rng.normal(size=(200, 3)), rng.normal(size=(200, 3)))
    other = squared_mmd(rng.normal(size=(200, 3)) + 1, rng.normal(size=(200, 3)))
    assert abs(same) < 0.01
    assert other > 0.1


def test_default_scale_of_mmd_is_the_references_median_distance():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(5, 2)), np.array([[0.0, 0.0], [3.0, 4.0]])
    assert squared_mmd(x, y) == pytest.approx(squared_mmd(x, y, scale=5.0))


def test_diversity_is_the_mean_distance():
    assert diversity(np.array([[0.0], [1.0], [3.0]])) == pytest.approx((1 + 3 + 2) / 3)
