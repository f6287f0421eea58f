"""Distances of distributions against dense forms in float64, their laws, and intervals."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.linalg import sqrtm

from prolora_jax.errors import UsageError
from prolora_jax.evaluation.metrics import mmd as module
from prolora_jax.evaluation.metrics.fd_dino import fd_dino
from prolora_jax.evaluation.metrics.intervals import difference_interval, mean_interval
from prolora_jax.evaluation.metrics.lpips_diversity import lpips_diversity
from prolora_jax.evaluation.metrics.mmd import mmd
from prolora_jax.evaluation.metrics.shares import paired_difference


def rows(count: int, width: int = 5, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)) + shift


def kernel(x: np.ndarray, y: np.ndarray, sigma: float) -> np.ndarray:
    """The formula, pair by pair."""
    return np.array([[np.exp(-((a - b) ** 2).sum() / (2 * sigma**2)) for b in y] for a in x])


def test_mmd_equals_the_formulas(monkeypatch):
    x, y, sigma = rows(7), rows(9, seed=1, shift=0.5), 2.0
    xx, yy, xy = kernel(x, x, sigma), kernel(y, y, sigma), kernel(x, y, sigma)
    biased = xx.mean() + yy.mean() - 2 * xy.mean()
    unbiased = xx[~np.eye(7, dtype=bool)].mean() + yy[~np.eye(9, dtype=bool)].mean() - 2 * xy.mean()
    for block in (3, 1024):  # cut into rows, with a rest, and not
        monkeypatch.setattr(module, "_BLOCK", block)
        found = mmd(x, y, sigma=sigma, scale=10)
        assert found.value == pytest.approx(10 * unbiased, rel=1e-12)
        assert found[1:] == (2, 10, 7, 9, "unbiased")
        found = mmd(x, y, sigma=sigma, scale=10, estimator="biased")
        assert found.value == pytest.approx(10 * biased, rel=1e-12)
        assert found[1:] == (2, 10, 7, 9, "biased")


def test_mmd_of_cmmd_and_its_laws():
    x, y = rows(60), rows(50, seed=1)
    found = mmd(x, y)
    assert (found.sigma, found.scale, found.n, found.m) == (10, 1000, 60, 50)
    assert mmd(x, x, estimator="biased").value == pytest.approx(0, abs=1e-9)
    assert mmd(x, y).value == pytest.approx(mmd(y, x).value, rel=1e-9)
    shifted = [mmd(x, y + s).value for s in (0.0, 0.5, 1.0, 3.0)]
    assert (np.diff(shifted) > 0).all()


def test_what_mmd_refuses():
    with pytest.raises(UsageError, match="MMD: found 1 pictures; expected at least 2; draw more"):
        mmd(rows(1), rows(5))
    assert mmd(rows(1), rows(5), estimator="biased").n == 1
    with pytest.raises(UsageError, match=r"widths 5 and 4, sigma 10.0; expected one width"):
        mmd(rows(3), rows(3, 4))
    with pytest.raises(UsageError, match="sigma 0; expected one width and a positive sigma"):
        mmd(rows(3), rows(3), sigma=0)


# Few pictures of wide features, and many of narrow ones.
@pytest.mark.parametrize(("n", "m", "width"), [(6, 5, 9), (40, 30, 4), (40, 5, 9)])
def test_frechet_equals_the_formula(n, m, width):
    x, y = rows(n, width), 2 * rows(m, width, seed=1) + 0.3
    one, other = np.cov(x.T), np.cov(y.T)
    # A little on the diagonal: the root of a singular matrix is what the formula is bad at.
    little = 1e-12 * np.eye(width)
    root = np.real(np.asarray(sqrtm((one + little) @ (other + little))))
    want = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(one + other - 2 * root)
    found = fd_dino(x, y)
    assert found.value == pytest.approx(want, rel=1e-4 if n <= width else 1e-9, abs=1e-5)
    assert found[1:] == (n, m, width)


def test_frechets_laws():
    x, y = rows(30), rows(30, seed=1)
    assert fd_dino(x, x).value == pytest.approx(0, abs=1e-9)
    assert fd_dino(x, y).value == pytest.approx(fd_dino(y, x).value, rel=1e-9)
    # A shift by s along every axis alone: width s².
    assert fd_dino(x, x + 2).value == pytest.approx(5 * 4, rel=1e-9)
    with pytest.raises(UsageError, match="FD-DINO: found 1 pictures; expected at least 2"):
        fd_dino(x[:1], y)
    with pytest.raises(UsageError, match="FD-DINO: found widths 5 and 3; expected one"):
        fd_dino(x, y[:, :3])


def test_diversity_is_the_mean_of_pairs():
    distances = np.array([[0, 1, 2], [1, 0, 6], [2, 6, 0]], np.float32)
    assert lpips_diversity(distances) == 3
    assert lpips_diversity(np.zeros((4, 4))) == 0
    with pytest.raises(UsageError, match="LPIPS diversity: found 1 pictures; expected at least 2"):
        lpips_diversity(distances[:1, :1])
    distances[0, 1] = np.inf
    with pytest.raises(UsageError, match="found 1 distances that are not finite"):
        lpips_diversity(distances)


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = [
        low <= 0 <= high
        for low, high in (mean_interval(rng.standard_normal(60))[1:] for _ in range(200))
    ]
    assert 0.9 < np.mean(held) < 0.98


def test_pictures_of_one_prompt_are_drawn_together():
    prompts = np.repeat(np.arange(8), 10)
    scores = np.random.default_rng(0).standard_normal(8)[prompts]
    alone, together = mean_interval(scores), mean_interval(scores, groups=[*prompts])
    assert alone.value == pytest.approx(together.value)
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_differences_are_of_pairs():
    first = rows(30, 1)[:, 0]
    assert_allclose(difference_interval(first + 2, first), (2, 2, 2))
    other = rows(30, 1, seed=1)[:, 0]
    assert_allclose(difference_interval(first, other), paired_difference(first, other))
    with pytest.raises(UsageError, match="found 30 scores beside 29; expected as many"):
        difference_interval(first, other[1:])
    with pytest.raises(UsageError, match="interval of 0 scores in 0 groups: expected at least"):
        mean_interval(first[:0])
    with pytest.raises(UsageError, match="interval of 30 scores in 2 groups"):
        mean_interval(first, groups=["a", "b"])
