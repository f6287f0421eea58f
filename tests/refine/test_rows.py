"""Rows: noised samples of pools, in their shares."""

import numpy as np

from prolora_jax.refine.rows import SamplePool, joined, noised_rows, of_words


def levels(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.cos(np.pi / 2 * times), np.sin(np.pi / 2 * times)


def quiet(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.ones_like(times), np.zeros_like(times)


def pool(value: float, size: int) -> SamplePool:
    clean = np.full((size, 2, 3), value, np.float32) + np.arange(size)[:, None, None] / 100
    words = {"word": np.arange(size), "size": np.ones((size, 2), np.float32)}
    return SamplePool(clean.astype(np.float32), words)


def test_half_of_each_pool_and_each_sample_about_as_often():
    rows = noised_rows((pool(0, 4), pool(5, 3)), 9, quiet, seed=0)
    assert rows.noisy.shape == (9, 2, 3)
    assert (rows.noisy[:5] < 4).all()
    assert (rows.noisy[5:] > 4).all()
    assert set(np.bincount(rows.conditioning["word"][:5], minlength=4)) <= {1, 2}
    # What a sample was told stays with it.
    np.testing.assert_allclose(rows.noisy[:5, 0, 0], rows.conditioning["word"][:5] / 100, atol=1e-6)
    assert rows.conditioning["size"].shape == (9, 2)


def test_noise_is_that_of_the_time():
    flat = SamplePool(np.full((1, 4000), 2, np.float32), np.zeros(1, np.int32))
    rows = noised_rows((flat,), 200, levels, seed=0)
    signal, noise = levels(rows.times)
    np.testing.assert_allclose(rows.noisy.mean(axis=1), 2 * signal, atol=0.1)
    np.testing.assert_allclose(rows.noisy.std(axis=1), noise, atol=0.1)
    assert 0.4 < rows.times.mean() < 0.6
    assert rows.noisy.dtype == rows.times.dtype == np.float32


def test_a_net_of_few_times_is_shown_no_others():
    grid = np.array([0.98, 0.5], np.float32)
    rows = noised_rows((pool(0, 4),), 40, levels, seed=0, grid=grid)
    assert set(rows.times) == set(grid)


def test_the_seed_decides():
    one, again, other = (noised_rows((pool(0, 4),), 6, levels, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.noisy, again.noisy)
    assert not np.array_equal(one.noisy, other.noisy)


def test_parts_are_joined_and_answered():
    one, two = (noised_rows((pool(v, 4),), 3, quiet, seed=0) for v in (0, 5))
    rows = joined([one.answered(one.noisy), two.answered(-two.noisy)])
    np.testing.assert_array_equal(rows.target[:3], one.noisy)
    np.testing.assert_array_equal(rows.target[3:], -two.noisy)
    assert rows.conditioning["word"].shape == (6,)


def test_samples_of_some_words():
    some = of_words(pool(0, 4), np.array([True, False, False, True]))
    assert some.conditioning["word"].tolist() == [0, 3]
    assert some.clean.shape == (2, 2, 3)
