"""Norms of updates from files: NumPy's in float64, the same bits alone and among others."""

import ml_dtypes
import numpy as np
import pytest

from prolora_jax.method.update_norms import squared_norm, squared_norms


def factors(dtype: type, shape: tuple[int, int, int], count: int = 5, seed: int = 0):
    (out, width, rank), rng = shape, np.random.default_rng(seed)
    ups = rng.standard_normal((count, out, rank)).astype(dtype)
    return ups, rng.standard_normal((count, rank, width)).astype(dtype)


def dense(up: np.ndarray, down: np.ndarray) -> float:
    return float(np.linalg.norm(up.astype(np.float64) @ down.astype(np.float64)) ** 2)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("shape", [(48, 64, 4), (48, 24, 12), (64, 48, 16)])
def test_norms_are_those_of_dense_updates_and_do_not_depend_on_neighbours(dtype, shape):
    ups, downs = factors(dtype, shape)
    found = squared_norms(ups, downs)
    assert found == pytest.approx([dense(*pair) for pair in zip(ups, downs, strict=True)], rel=5e-6)
    alone = [squared_norm(*pair) for pair in zip(ups, downs, strict=True)]
    assert found.tolist() == alone  # bit for bit
    assert squared_norms(ups[1:3], downs[1:3]).tolist() == alone[1:3]


def test_float64_stays_float64():
    (up,), (down,) = factors(np.float64, (48, 64, 4), 1)
    assert squared_norm(up, down) == pytest.approx(dense(up, down), rel=1e-14)


def test_columns_that_cancel_each_other_are_summed_in_float64():
    (up,), (down,) = factors(np.float32, (48, 64, 4), 1)
    both = (
        np.concatenate([up, -up * np.float32(1 + 2.0**-12)], axis=1),
        np.concatenate([down, down]),
    )
    assert squared_norm(*both) == pytest.approx(dense(*both), rel=1e-7)


@pytest.mark.parametrize("size", [1e-24, 1e17])
def test_squares_that_float32_does_not_hold(size):
    (up,), (down,) = factors(np.float32, (48, 64, 4), 1)
    up, down = up * np.float32(size), down * np.float32(size)
    assert squared_norm(up, down) == pytest.approx(dense(up, down), rel=1e-9)


def test_nothing_is_nothing_and_what_is_no_number_is_none():
    (up,), (down,) = factors(np.float16, (48, 64, 4), 1)
    assert squared_norm(np.zeros_like(up), down) == 0.0
    up[3, 2] = np.nan
    assert not np.isfinite(squared_norm(up, down))
    up[3, 2] = np.inf
    assert not np.isfinite(squared_norm(up, down))
