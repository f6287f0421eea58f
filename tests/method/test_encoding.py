"""Rank columns and norms of the output."""

import numpy as np
import pytest

from prolora_jax.method import encoding
from prolora_jax.method.encoding import HostFactors, OutputRank


def factors(rank: int = 4, seed: int = 0) -> HostFactors:
    rng = np.random.default_rng(seed)
    return HostFactors(
        rng.normal(size=(rank, 30)).astype(np.float32),
        rng.normal(size=(20, rank)).astype(np.float32),
    )


def dense(f: HostFactors) -> np.ndarray:
    return f.up.astype(np.float64) @ f.down.astype(np.float64)


def test_padding_adds_nothing():
    padded = encoding.pad_rank(factors(3), 8)
    assert padded.rank == 8
    np.testing.assert_array_equal(dense(padded), dense(factors(3)))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (OutputRank("energy", 0.9), 1),
        (OutputRank("energy", 0.95), 2),
        (OutputRank("energy", 1.0), 3),
        (OutputRank("rank", 2), 2),
        (OutputRank("rank", 9), 4),
        (OutputRank("source"), 3),
        (OutputRank("exact"), 4),
    ],
)
def test_columns_to_keep(wanted: OutputRank, expected: int):
    sigma = np.array([3.0, 0.9, 0.1, 0.0])  # squares: 9, 0.81, 0.01, 0
    assert wanted.columns(sigma, rank_in=3) == expected


@pytest.mark.parametrize(
    ("wanted", "most", "met"),
    [
        (OutputRank("exact"), 8, True),
        (OutputRank("source"), 4, False),
        (OutputRank("rank", 6), 6, False),
        (OutputRank("rank", 9), 8, False),
        (OutputRank("energy", 0.9), 8, False),
    ],
)
def test_what_a_rank_asks_of_factors_of_twice_the_inputs(wanted: OutputRank, most: int, met: bool):
    assert wanted.at_most(8, rank_in=4) == most
    assert wanted.is_met_by(8, rank_in=4) is met
    assert wanted.is_met_by(4, rank_in=4) is (wanted.kind in ("exact", "source"))


def test_update_norm():
    assert encoding.update_norm(factors()) == pytest.approx(np.linalg.norm(dense(factors())))
