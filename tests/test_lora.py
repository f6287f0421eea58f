"""Low-rank updates as factors: the arithmetic equals that of the dense matrices."""

import jax
import numpy as np
import pytest
import reference as ref
import strategies as gen
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, assert_close, dense, each_case, laws

from prolora_jax import lora
from prolora_jax.lora import Factors

FLOAT32 = 1e-5  # relative to ‖up‖ ‖down‖: sums of at most 36 float32 products
SQUARES = 1e-5  # relative, of a norm computed through squares
COPIED = 1e-14  # the same float32 numbers, summed in float64 in another order

CASES = (
    Case(24, 24, 1, 1, 4),
    Case(36, 14, 1, 1, 3),
    Case(14, 36, 1, 1, 3),
    Case(1, 18, 1, 1, 3),  # more rank columns than the matrix has rank
    Case(18, 1, 1, 1, 1),
    Case(5, 4, 1, 1, 7),
)

norm, inner, spectrum, delta = map(jax.jit, (lora.norm, lora.inner, lora.spectrum, lora.delta))
recompress = jax.jit(lora.recompress, static_argnums=1)


def size(factors: Factors) -> float:
    """`‖up‖ ‖down‖`, what rounding errors are relative to."""
    up, down = (np.asarray(a, np.float64) for a in (factors.up, factors.down))
    return float(np.linalg.norm(up) * np.linalg.norm(down))


@each_case(*CASES)
@laws
@given(data=st.data())
def test_delta_norm_and_inner_equal_the_dense_ones(case, data):
    a, b = data.draw(gen.updates(case)), data.draw(gen.updates(case))
    assert_close(np.asarray(delta(a), np.float64), dense(a), size(a), FLOAT32)
    assert float(norm(a)) == pytest.approx(np.linalg.norm(dense(a)), rel=SQUARES)
    wanted = np.sum(dense(a) * dense(b))
    assert float(inner(a, b)) == pytest.approx(wanted, abs=FLOAT32 * size(a) * size(b))
    assert float(inner(b, a)) == pytest.approx(wanted, abs=FLOAT32 * size(a) * size(b))


@each_case(*CASES)
@laws
@given(data=st.data())
def test_concat_is_the_sum(case, data):
    a, b = data.draw(gen.updates(case)), data.draw(gen.updates(case))
    both = lora.concat(a, b)
    assert both.down.shape == (2 * case.rank, case.into)
    assert both.up.shape == (case.out, 2 * case.rank)
    assert_close(dense(both), dense(a, b), size(both), COPIED)


@each_case(*CASES)
@laws
@given(data=st.data())
def test_recompression_is_the_best_and_its_error_the_tail(case, data):
    factors = data.draw(gen.updates(case))
    rank = data.draw(st.integers(1, case.rank))
    got = recompress(factors, rank)
    columns = min(rank, case.out, case.into)
    assert got.up.shape == (case.out, columns)
    assert got.down.shape == (columns, case.into)
    error = np.linalg.norm(dense(got) - dense(factors))
    assert error == pytest.approx(ref.tail(dense(factors), rank), abs=FLOAT32 * size(factors))
    if rank >= np.linalg.matrix_rank(dense(factors)):
        assert_close(dense(got), dense(factors), size(factors), FLOAT32)


def test_recompression_drops_the_smallest():
    rng = np.random.default_rng(0)
    x, y, sigma = gen.orthonormal(rng, 9, 3), gen.orthonormal(rng, 8, 3), np.array([5.0, 2.0, 1.0])
    factors = gen.factors_of(y.T, x * sigma)
    for rank in (1, 2, 3):
        wanted = ref.truncate(dense(factors), rank)
        assert_close(dense(recompress(factors, rank)), wanted, sigma[0], FLOAT32)


@each_case(*CASES)
@laws
@given(data=st.data())
def test_spectrum_is_the_singular_form(case, data):
    factors = data.draw(gen.updates(case))
    form, (down, up) = spectrum(factors), spectrum(factors).factors
    n = min(case.rank, case.out, case.into)
    wanted = np.linalg.svd(dense(factors), compute_uv=False)[:n]
    atol = FLOAT32 * size(factors)
    np.testing.assert_allclose(form.sigma, wanted, rtol=0, atol=atol)
    assert_close(dense(form.factors), dense(factors), size(factors), FLOAT32)
    # Columns are orthogonal and share the singular value evenly.
    np.testing.assert_allclose(up.T @ up, np.diag(form.sigma), rtol=0, atol=atol)
    np.testing.assert_allclose(down @ down.T, np.diag(form.sigma), rtol=0, atol=atol)


@each_case(*CASES[:3])
@laws
@given(data=st.data())
def test_gauge_changes_no_number(case, data):
    factors = data.draw(gen.updates(case, ("full",)))
    mix = gen.mixing(data.draw(gen.generators()), case.rank)
    down = np.linalg.solve(mix, np.asarray(factors.down, np.float64))
    mixed = gen.factors_of(down, np.asarray(factors.up, np.float64) @ mix)
    atol = FLOAT32 * size(mixed)
    assert float(norm(mixed)) == pytest.approx(float(norm(factors)), abs=atol)
    np.testing.assert_allclose(spectrum(mixed).sigma, spectrum(factors).sigma, rtol=0, atol=atol)


def test_norm_of_a_cancelling_sum_is_small_and_not_nan():
    factors = gen.factors_of(np.ones((2, 5)), np.ones((6, 2)))
    nothing = lora.concat(factors, Factors(-factors.down, factors.up))
    assert float(norm(nothing)) == 0.0
