"""Measures by cosines against a naive form, their laws, and what they refuse."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.spatial.distance import cdist

from prolora_jax.errors import UsageError
from prolora_jax.evaluation.metrics.clip_i import clip_i
from prolora_jax.evaluation.metrics.clip_t import clip_t
from prolora_jax.evaluation.metrics.csd import csd
from prolora_jax.evaluation.metrics.dino import dino
from prolora_jax.evaluation.metrics.hps import hps

RTOL = 1e-12  # float64 on both sides
SETS = [clip_i, dino, csd]


def rows(count: int, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def by_scipy(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 1 - cdist(x.astype(np.float64), y.astype(np.float64), "cosine")


def test_pairs_equal_scipy():
    x, y = rows(6), rows(6, seed=1)
    want = np.diag(by_scipy(x, y))
    assert_allclose(clip_t(x, y), want, rtol=RTOL)
    for measure in SETS:
        assert_allclose(measure(x, y, paired=True), want, rtol=RTOL)


@pytest.mark.parametrize("measure", SETS)
def test_sets_equal_scipy_and_are_symmetric(measure: Any):
    x, y = rows(6), rows(9, seed=1)
    assert_allclose(measure(x, y), by_scipy(x, y).mean(axis=1), rtol=RTOL)
    assert measure(x, y).mean() == pytest.approx(measure(y, x).mean(), rel=1e-9)
    assert_allclose(measure(x, x, paired=True), 1, rtol=RTOL)
    # Lengths do not count.
    assert_allclose(measure(x * 7, y * np.float32(0.1)), measure(x, y), rtol=1e-6)


@pytest.mark.parametrize("measure", SETS)
def test_distortions_are_ordered(measure: Any):
    x, noise = rows(40, 30), rows(40, 30, seed=1)
    found = [measure(x + s * noise, x, paired=True).mean() for s in (0.0, 0.2, 0.6, 2.0)]
    assert (np.diff(found) < 0).all()


def test_hps_is_the_cosine():
    x, y = rows(6).astype(np.float64), rows(6, seed=1).astype(np.float64)
    want = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(x, y, strict=True)]
    assert_allclose(hps(x, y), want, rtol=RTOL)


def test_what_is_refused():
    x = rows(4)
    with pytest.raises(UsageError, match=r"CLIP-T: found \(4, 5\) beside \(3, 5\); expected as"):
        clip_t(x, x[:3])
    with pytest.raises(UsageError, match="HPS: found .* beside"):
        hps(x, x[:, :3])
    with pytest.raises(UsageError, match="DINO: found embeddings of width 5 beside 4"):
        dino(x, x[:, :4])
    with pytest.raises(UsageError, match="CLIP-I: found 0 pictures; expected at least 1"):
        clip_i(x[:0], x)
    bad = x.copy()
    bad[2, 1] = np.nan
    with pytest.raises(UsageError, match="CSD: found 1 rows with numbers .* the first 2"):
        csd(x, bad)
    bad[2] = 0
    with pytest.raises(UsageError, match=r"CSD: found an embedding of length zero \(row 2\)"):
        csd(bad, x)
