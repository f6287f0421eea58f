"""Singular form from Gram matrices: against dense SVDs, and on updates that are hard for it."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
import strategies as gen
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, assert_close, each_case, laws

from prolora_jax.method.encoding import HostFactors
from prolora_jax.method.projection import gram, to_file_factors
from prolora_jax.method.singular import gauge, singular_form, union

FLOAT32 = 1e-5  # relative to ||up|| ||down||: sums of at most 36 float32 products
ROUNDING = 3e-7  # of the update: that of its float32 output

CASES = (
    Case(24, 24, 1, 1, 4),
    Case(36, 14, 1, 1, 3),
    Case(14, 36, 1, 1, 3),
    Case(1, 18, 1, 1, 3),  # more rank columns than the matrix has rank
    Case(18, 1, 1, 1, 1),
    Case(5, 4, 1, 1, 7),
)


def dense(factors: HostFactors) -> np.ndarray:
    return factors.up.astype(np.float64) @ factors.down.astype(np.float64)


def drawn(data: st.DataObject, case: Case, *kinds) -> HostFactors:
    factors = data.draw(gen.updates(case, *kinds))
    return HostFactors(np.asarray(factors.down), np.asarray(factors.up))


def size(factors: HostFactors) -> float:
    """`||up|| ||down||`, what rounding errors are relative to."""
    return float(np.linalg.norm(factors.up) * np.linalg.norm(factors.down))


@each_case(*CASES)
@laws
@given(data=st.data())
def test_it_is_the_singular_form_and_its_head_the_best_of_its_rank(case, data):
    factors = drawn(data, case)
    form, sigma = singular_form(factors)
    n = min(case.rank, case.out, case.into)
    wanted = np.linalg.svd(dense(factors), compute_uv=False)[:n]
    atol = FLOAT32 * size(factors)
    np.testing.assert_allclose(sigma[:n], wanted, rtol=0, atol=atol)
    np.testing.assert_allclose(sigma[n:], 0.0, rtol=0, atol=atol)
    assert_close(dense(form), dense(factors), size(factors), FLOAT32)
    # Columns are orthogonal and share the singular value evenly.
    np.testing.assert_allclose(form.up.T @ form.up, np.diag(sigma), rtol=0, atol=atol)
    np.testing.assert_allclose(form.down @ form.down.T, np.diag(sigma), rtol=0, atol=atol)
    rank = data.draw(st.integers(1, case.rank))
    head = HostFactors(form.down[:rank], form.up[:, :rank])
    error = np.linalg.norm(dense(head) - dense(factors))
    assert error == pytest.approx(ref.tail(dense(factors), rank), abs=atol)


@each_case(*CASES[:3])
@laws
@given(data=st.data())
def test_gauge_changes_no_singular_value(case, data):
    factors = drawn(data, case, ("full",))
    mix = gen.mixing(data.draw(gen.generators()), case.rank)
    mixed = gen.factors_of(
        np.linalg.solve(mix, factors.down.astype(np.float64)), factors.up.astype(np.float64) @ mix
    )
    mixed = HostFactors(np.asarray(mixed.down), np.asarray(mixed.up))
    atol = FLOAT32 * size(mixed)
    before, after = singular_form(factors)[1], singular_form(mixed)[1]
    np.testing.assert_allclose(after, before, rtol=0, atol=atol)


def random(out: int, width: int, rank: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rank, width)), rng.normal(size=(out, rank))


def plain() -> tuple[np.ndarray, np.ndarray]:
    return random(40, 60, 8)


def lopsided_gauge() -> tuple[np.ndarray, np.ndarray]:
    """Columns whose scale sits in `up` or in `down` by up to 1e12: the update is `plain`'s."""
    down, up = plain()
    scale = np.logspace(-6, 6, 8)
    return down / scale[:, None], up * scale


def decaying() -> tuple[np.ndarray, np.ndarray]:
    """Singular values over six decades."""
    down, up = plain()
    return down, np.linalg.qr(up)[0] * np.logspace(0, -6, 8)


def repeated_column() -> tuple[np.ndarray, np.ndarray]:
    """Rank 7 of 8."""
    down, up = plain()
    up[:, 3] = up[:, 5]
    return down, up


def padded() -> tuple[np.ndarray, np.ndarray]:
    down, up = plain()
    down[5:], up[:, 5:] = 0.0, 0.0
    return down, up


def more_columns_than_rows() -> tuple[np.ndarray, np.ndarray]:
    return random(5, 60, 8)


def zero() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((8, 60)), np.zeros((40, 8))


HARD = [plain, lopsided_gauge, decaying, repeated_column, padded, more_columns_than_rows, zero]


@pytest.mark.parametrize("case", HARD, ids=lambda case: case.__name__)
def test_on_the_device_with_gram_matrices_in_float64(case):
    """As a migration does it: Gram matrices and the last products on the device."""
    down, up = (a.astype(np.float32) for a in case())
    wanted = up.astype(np.float64) @ down.astype(np.float64)
    rows = [jnp.asarray(a[None]) for a in (up.T, down)]
    with jax.enable_x64(True):
        grams = [np.asarray(gram(block, jnp.float64)) for block in rows]
    assert all(g.dtype == np.float64 for g in grams)
    form = gauge(*grams)
    mixing = (form.up.astype(np.float32), form.down.astype(np.float32))
    stored = to_file_factors((rows[0],), (rows[1],), mixing, jnp.ones(1), "float32")
    new_up, new_down = (np.asarray(a[0], np.float64) for a in (stored.up, stored.down))
    norm, expected = np.linalg.norm(wanted), np.linalg.svd(wanted, compute_uv=False)
    n = min(8, len(expected))
    assert np.linalg.norm(new_up @ new_down - wanted) <= ROUNDING * norm
    assert np.abs(form.sigma[0, :n] - expected[:n]).max() <= ROUNDING * expected[0]
    assert (np.diff(form.sigma) <= 0).all()
    for side in (new_up.T @ new_up, new_down @ new_down.T):
        assert np.abs(side - np.diag(form.sigma[0])).max() <= 3 * ROUNDING * expected[0]


def turned(rng: np.random.Generator, dim: int, rank: int, condition: float) -> np.ndarray:
    """Rows of a given condition, none of them a singular vector."""
    frame, turn = gen.orthonormal(rng, dim, rank), gen.orthonormal(rng, rank, rank)
    return ((frame * np.geomspace(1, 1 / condition, rank)) @ turn).T.astype(np.float32)


@pytest.mark.parametrize(("a", "b"), list(product((1.0, 1e3, 1e6), repeat=2)))
def test_the_error_of_a_cut_is_not_above_that_of_qr_and_svd_in_float32(a: float, b: float):
    """What is lost beyond the tail, as a share of the update."""
    rng = np.random.default_rng(3)
    up, down = turned(rng, 96, 12, a), turned(rng, 80, 12, b)
    wanted = up.T.astype(np.float64) @ down.astype(np.float64)
    form, _ = singular_form(HostFactors(down, up.T))
    (q_up, r_up), (q_down, r_down) = np.linalg.qr(up.T), np.linalg.qr(down.T)
    x, sigma, y = np.linalg.svd(r_up @ r_down.T)
    for rank in (3, 6, 12):
        ours = HostFactors(form.down[:rank], form.up[:, :rank])
        theirs = HostFactors(y[:rank] @ q_down.T, q_up @ x[:, :rank] * sigma[:rank])
        tail = ref.tail(wanted, rank)
        excess = [
            max(np.linalg.norm(dense(f) - wanted) ** 2 - tail**2, 0.0) ** 0.5
            for f in (ours, theirs)
        ]
        assert excess[0] <= 1.5 * excess[1] + ROUNDING * np.linalg.norm(wanted)


def test_union_of_orthogonal_parts_and_one_by_one():
    """Two parts with orthogonal ranges, several updates at once: each as if it were alone."""
    rng = np.random.default_rng(4)
    frames = [gen.orthonormal(rng, dim, dim) for dim in (30, 26)]
    ups = [rng.normal(size=(5, 4, 15)) @ frames[0][:, i * 15 :][:, :15].T for i in (0, 1)]
    downs = [rng.normal(size=(5, 4, 13)) @ frames[1][:, i * 13 :][:, :13].T for i in (0, 1)]
    parts = [gauge(u @ u.mT, d @ d.mT) for u, d in zip(ups, downs, strict=True)]
    whole = union(parts)
    up, down = (np.concatenate(side, axis=1) for side in (ups, downs))
    for i in range(5):
        wanted = up[i].T @ down[i]
        new_up, new_down = whole.up[i] @ up[i], whole.down[i] @ down[i]
        np.testing.assert_allclose(new_up.T @ new_down, wanted, atol=1e-12)
        expected = np.linalg.svd(wanted, compute_uv=False)[:8]
        np.testing.assert_allclose(whole.sigma[i], expected, rtol=1e-10)
        alone = union(
            [
                gauge((u @ u.mT)[i : i + 1], (d @ d.mT)[i : i + 1])
                for u, d in zip(ups, downs, strict=True)
            ]
        )
        assert all(a[0].tobytes() == b[i].tobytes() for a, b in zip(alone, whole, strict=True))
