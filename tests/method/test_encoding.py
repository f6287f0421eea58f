"""Rank columns, balance and dtypes of the output."""

import ml_dtypes
import numpy as np
import pytest

from prolora_jax.method import encoding
from prolora_jax.method.encoding import DTYPES, HostFactors, OutputRank


def factors(rank: int = 4, seed: int = 0) -> HostFactors:
    rng = np.random.default_rng(seed)
    return HostFactors(
        rng.normal(size=(rank, 30)).astype(np.float32),
        rng.normal(size=(20, rank)).astype(np.float32),
    )


def dense(f: HostFactors) -> np.ndarray:
    return f.up.astype(np.float64) @ f.down.astype(np.float64)


def test_balance_changes_no_number_of_the_update_and_evens_the_norms():
    skewed = HostFactors(factors().down * 1e-4, factors().up * np.float32(3000))
    even = encoding.balance(skewed)
    np.testing.assert_array_equal(dense(even), dense(skewed))
    ratio = np.linalg.norm(even.up, axis=0) / np.linalg.norm(even.down, axis=1)
    assert ((ratio >= 0.5) & (ratio <= 2.0)).all()


def test_balanced_float16_keeps_what_a_blind_cast_loses():
    skewed = HostFactors(factors().down * np.float32(1e-6), factors().up)
    blind = HostFactors(skewed.down.astype(np.float16), skewed.up.astype(np.float16))
    kept = encoding.cast(skewed, DTYPES["float16"])
    norm = np.linalg.norm(dense(skewed))
    assert np.linalg.norm(dense(kept) - dense(skewed)) < 1e-3 * norm
    assert np.linalg.norm(dense(blind) - dense(skewed)) > 1e-2 * norm


@pytest.mark.parametrize("name", list(DTYPES))
def test_cast_gives_the_dtype(name: str):
    cast = encoding.cast(factors(), DTYPES[name])
    assert cast.up.dtype == cast.down.dtype == DTYPES[name]


def test_float32_is_left_bit_for_bit():
    before = factors()
    after = encoding.cast(before, DTYPES["float32"])
    np.testing.assert_array_equal(after.up, before.up)
    np.testing.assert_array_equal(after.down, before.down)


def test_number_too_large_for_float16():
    huge = HostFactors(factors().down * np.float32(1e6), factors().up * np.float32(1e6))
    with pytest.raises(OverflowError, match="does not fit float16"):
        encoding.cast(huge, DTYPES["float16"])
    encoding.cast(huge, np.dtype(ml_dtypes.bfloat16))


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
