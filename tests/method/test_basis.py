"""Bases and rank rules (method.md 1)."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import reference as ref
import strategies as gen
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import laws

from prolora_jax.method.basis import (
    GAP_WINDOW,
    Basis,
    BasisRule,
    common_rank,
    compute_basis,
    cut_angle,
    numerical_rank,
)
from prolora_jax.method.decomposition import decompose
from prolora_jax.method.noise import marchenko_pastur_median, threshold_factor
from prolora_jax.plans.options import basis_rule

SHAPES = ((24, 24), (36, 14), (14, 36), (1, 18), (18, 1), (1, 1), (96, 64))

ORTHONORMAL = 1e-6  # float32 rounding of unit columns, dimension <= 96
SIGMA = 5e-8  # absolute, of sigma_1: a Gram matrix knows sigma only to sqrt(float64 eps)
RECONSTRUCTED = 1e-6  # U diag(s) V^T against W, relative: float32 rounding of U and V
SPAN = 5e-6  # spectral norm between projectors, float32 columns of a cut below CLUSTERED
CLUSTERED = 0.1  # docs/method.md 2: angle of rounding above which a span is not determined
DECIDED = 1e-2  # relative distance of a singular value from the numerical threshold
FLOAT64 = 1e-12  # formulas evaluated twice in float64

NUMERICAL, GAP, OPTIMAL = BasisRule("numerical"), BasisRule("gap"), BasisRule("optimal")

shapes = st.sampled_from(SHAPES)


def assert_orthonormal(columns) -> None:
    gram = columns.astype(np.float64).T @ columns.astype(np.float64)
    np.testing.assert_allclose(gram, np.eye(len(gram)), rtol=0, atol=ORTHONORMAL)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@laws
@given(data=st.data())
def test_basis_holds_the_singular_triplets(shape, data):
    weight = data.draw(gen.weights(*shape))
    n = min(shape)
    basis = compute_basis(weight, BasisRule("rank", n))
    _, sigma, _ = ref.svd(weight)
    assert basis.u.dtype == basis.v.dtype == np.float32
    assert basis.s.dtype == np.float64
    assert basis.u.shape == (shape[0], n)
    assert basis.v.shape == (shape[1], n)
    assert_orthonormal(basis.u)
    assert_orthonormal(basis.v)
    np.testing.assert_allclose(basis.s, sigma, rtol=0, atol=SIGMA * sigma[0])
    assert np.all(np.diff(basis.s) <= 0)
    rebuilt = (basis.u.astype(np.float64) * basis.s) @ basis.v.astype(np.float64).T
    assert np.linalg.norm(rebuilt - weight) <= RECONSTRUCTED * np.linalg.norm(weight)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@laws
@given(data=st.data())
def test_leading_columns_span_what_the_reference_says(shape, data):
    weight = data.draw(gen.weights(*shape))
    k = data.draw(st.integers(1, min(shape)))
    basis = compute_basis(weight, BasisRule("rank", k))
    u, _, v = ref.svd(weight)
    assume(ref.rounding_angle(weight, k) < CLUSTERED)
    for got, wanted in ((basis.u, u), (basis.v, v)):
        assert_orthonormal(got[:, :k])
        a, b = ref.split_basis(got[:, :k]), ref.split_vectors(wanted, k)
        assert ref.projector_distance(a, b) <= SPAN


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@laws
@given(data=st.data())
def test_short_side_is_whole_and_long_side_serves_the_rule(shape, data):
    weight = data.draw(gen.weights(*shape))
    rule = data.draw(
        st.sampled_from(
            ("energy=0.5", "energy=0.95", "rank=1", "fraction=0.5", "gap", "optimal")
        ).map(basis_rule)
    )
    basis, rule = compute_basis(weight, rule), rule.for_shape(shape)
    short, long = (basis.u, basis.v) if shape[0] <= shape[1] else (basis.v, basis.u)
    if shape[0] != shape[1]:
        assert short.shape == (min(shape), min(shape))
        assert_orthonormal(short)
    assert long.shape[0] == max(shape)
    assert basis.extent.columns >= rule.retained(basis.s)
    assert len(basis.s) == min(shape)  # always all of them
    assert_orthonormal(long)


def test_default_keeps_95_percent_of_the_energy():
    weight = gen.matrix_of(np.random.default_rng(0), 40, 20, "decaying")
    _, sigma, _ = ref.svd(weight)
    assert compute_basis(weight).extent.columns == ref.rank_of(sigma, ("energy", 0.95))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zero_weight_has_orthonormal_columns_and_rank_zero(shape):
    basis = compute_basis(np.zeros(shape), BasisRule("rank", min(shape)))
    assert_orthonormal(basis.u)
    assert_orthonormal(basis.v)
    assert not basis.s.any()
    rules = BasisRule("energy", 0.9), NUMERICAL, GAP, OPTIMAL.for_shape(shape)
    assert [rule.retained(basis.s) for rule in rules] == [0, 0, 0, 0]
    assert compute_basis(np.zeros(shape)).extent.columns == 0


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_weight_of_any_dtype_is_decomposed_in_float64(dtype):
    weight = gen.matrix_of(np.random.default_rng(3), 30, 20, "decaying").astype(dtype)
    got, wanted = compute_basis(weight), compute_basis(weight.astype(np.float64))
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("ratio", [1e-2, 0.9e-4, 1e-6, 1e-9, 1e-13])
def test_long_side_is_orthonormal_however_small_the_last_singular_value(ratio, transposed):
    """Both routes of `decompose`, and the switch between them."""
    rng = np.random.default_rng(4)
    sigma = np.geomspace(1.0, ratio, 20)
    weight = (gen.orthonormal(rng, 30, 20) * sigma) @ gen.orthonormal(rng, 20, 20).T
    u, s, v = decompose(weight.T if transposed else weight)
    for columns in (u, v):
        assert_orthonormal(columns)
    np.testing.assert_allclose((u * s) @ v.T, weight.T if transposed else weight, atol=SIGMA)


# --- rank rules -------------------------------------------------------------------------------

RULES = st.one_of(
    st.builds(BasisRule, st.just("energy"), st.floats(0.01, 1.0)),
    st.builds(BasisRule, st.just("rank"), st.integers(1, 40)),
    st.builds(BasisRule, st.just("fraction"), st.sampled_from((0.25, 0.5, 0.75, 1.0))),
    st.sampled_from((NUMERICAL, GAP, OPTIMAL)),
)
LONGER = (1, 2, 9)  # a wide weight's longer side over its shorter one


@settings(laws, max_examples=40)
@given(
    rule=RULES,
    kind=st.sampled_from(gen.SPECTRA),
    n=st.sampled_from((1, 8, 24)),
    longer=st.sampled_from(LONGER),
)
def test_rank_rules_equal_the_reference(rule, kind, n, longer):
    sigma = 3.7 * gen.spectrum_of(kind, n)
    # A threshold met exactly is decided by rounding.
    for threshold in {"energy": (rule[1],), "gap": GAP_WINDOW}.get(rule[0], ()):
        shares = np.cumsum(sigma**2) / np.sum(sigma**2)
        assume(np.all(np.abs(shares - threshold) > FLOAT64))
    wanted = ref.rank_of(sigma, ("optimal", n, n * longer) if rule == OPTIMAL else rule)
    if rule[0] == "fraction":
        wanted = max(wanted, 1)
    assert rule.for_shape((n, n * longer)).retained(sigma) == wanted
    assert rule.for_shape((n * longer, n)).retained(sigma) == wanted


def test_energy_rule_counts_squares_and_stops_at_the_first_that_suffices():
    sigma = np.array([3.0, 2.0, 2.0, 1.0])  # squares 9, 4, 4, 1 of 18
    shares = {0.5: 1, 0.51: 2, 13 / 18: 2, 0.73: 3, 17 / 18: 3, 0.95: 4, 1.0: 4}
    assert {e: BasisRule("energy", e).retained(sigma) for e in shares} == shares


def test_rank_rule_is_capped_and_fraction_is_rounded_but_at_least_one():
    sigma = np.ones(10)
    assert BasisRule("rank", 320).retained(sigma) == 10
    assert BasisRule("fraction", 0.26).retained(sigma) == 3
    assert BasisRule("fraction", 0.01).retained(sigma) == 1


def test_unknown_rank_rule_is_refused():
    kind: Any = "magic"
    with pytest.raises(
        ValueError, match="'magic': expected energy, rank, fraction, numerical, gap"
    ):
        BasisRule(kind, 1.0).retained(np.ones(3))


def test_optimal_without_a_shape_is_refused():
    with pytest.raises(ValueError, match="rank rule 'optimal': expected a value"):
        OPTIMAL.retained(np.ones(3))


def test_gap_is_relative_and_within_its_window():
    # Squares 900, 100, 81, 9, 4, 1 of 1095: half of it after 1, 99 % after 4.
    assert GAP.retained(np.array([30.0, 10.0, 9.0, 3.0, 2.0, 1.0])) == 1  # the first of two equal
    assert GAP.retained(np.array([30.0, 11.0, 9.9, 3.0, 2.0, 1.0])) == 3  # relative, not absolute
    # 1 / 1000 is the largest gap of all, and keeps more than 99 %.
    assert GAP.retained(np.array([3.0, 2.0, 1.9, 1.5, 1e-2, 1e-5])) == 4
    # The whole is no candidate, and nothing lies behind it: the last cut of all is taken.
    assert GAP.retained(np.array([3.0, 2.9, 2.0])) == 2
    assert GAP.retained(np.array([3.0])) == 1


@pytest.mark.parametrize("rule", [GAP, OPTIMAL])
@pytest.mark.parametrize("shape", [(60, 60), (60, 150), (150, 60)], ids=str)
def test_gap_and_optimal_find_a_strong_signal_in_noise(rule, shape):
    rng = np.random.default_rng(8)
    noise = rng.normal(size=shape)
    signal = gen.orthonormal(rng, shape[0], 5) @ gen.orthonormal(rng, shape[1], 5).T
    weight = noise + 20.0 * np.sqrt(max(shape)) * signal
    assert rule.for_shape(shape).retained(ref.svd(weight)[1]) == 5
    if rule is OPTIMAL:  # nothing stands out of noise alone: the leading vector is kept
        assert rule.for_shape(shape).retained(ref.svd(noise)[1]) == 1


@pytest.mark.parametrize("beta", [1e-3, 1 / 18, 0.2, 0.5, 0.9, 1.0])
def test_threshold_factor_is_the_published_one(beta):
    found = threshold_factor(round(beta * 18000), 18000)
    assert found == pytest.approx(ref.omega(beta), rel=1e-9)
    # The paper's own approximation, said to be off by at most 0.02.
    assert abs(found - (0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43)) <= 0.02
    if beta == 1.0:
        assert round(found, 3) == 2.858  # in the paper's abstract


def test_median_of_the_marchenko_pastur_law_is_that_of_noise():
    rng = np.random.default_rng(7)
    for long in (400, 1000):
        sigma = np.linalg.svd(rng.normal(size=(400, long)), compute_uv=False)
        # Eigenvalues of noise are rigid: each keeps to within a few places of its own.
        assert abs(np.sum(sigma**2 / long < marchenko_pastur_median(400 / long)) - 200) <= 4


@settings(laws, max_examples=40)
@given(data=st.data())
def test_numerical_rank_sees_through_the_rounding_of_the_decomposition(data):
    weight = data.draw(gen.weights(*data.draw(shapes)))
    sigma = ref.svd(weight)[1]
    assume(np.all(np.abs(sigma / sigma[0] / ref.NUMERICAL_RANK_RTOL - 1) > DECIDED))
    wanted = ref.rank_of(sigma, ("numerical",))
    assert numerical_rank(compute_basis(weight, NUMERICAL).s) == wanted


def test_common_rank_is_the_larger_one_or_each_its_own():
    assert common_rank(3, 99, "max") == common_rank(99, 3, "max") == (99, 99)
    assert common_rank(3, 99, "own") == (3, 99)
    s_s, s_t = gen.spectrum_of("decaying", 20), gen.spectrum_of("flat", 20)
    ks = [BasisRule("energy", 0.87).retained(s) for s in (s_s, s_t)]
    for mode in ("max", "own"):
        assert common_rank(ks[0], ks[1], mode) == ref.pair_ranks(s_s, s_t, ("energy", 0.87), mode)


# --- the cut ---------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [np.zeros(4), np.zeros(0)])
def test_numerical_rank_of_nothing_is_zero(nothing):
    assert numerical_rank(nothing) == 0


def test_cut_angle_by_hand():
    sigma, noise = np.array([4.0, 3.0, 1.0]), 2**-10 * np.sqrt(26 / 12)  # squares add up to 26
    square, wide = 3.0, np.sqrt(3 * 7)
    for k, gap in ((1, 1.0), (2, 2.0)):
        assert cut_angle(sigma, k, (3, 3)) == pytest.approx(noise / square / gap, rel=1e-5)
    assert cut_angle(sigma, 3, (3, 3)) == 0.0  # square: nothing is cut
    # Of a wide one the long side is cut against zero.
    assert cut_angle(sigma, 3, (3, 7)) == pytest.approx(noise / wide, rel=1e-5)
    assert cut_angle(sigma, 0, (3, 7)) == 0.0
    equal = np.array([4.0, 3.0, 3.0, 1.0])
    for nothing_between in (equal, np.zeros(4)):
        assert cut_angle(nothing_between, 2, (4, 4)) == np.pi / 2


@pytest.mark.parametrize("shape", [(60, 60), (40, 90)], ids=str)
def test_cut_angle_is_what_rounding_does(shape):
    """Spans of a weight and of its float16 copy, at every cut, half of the gaps small."""
    rng = np.random.default_rng(5)
    n = min(shape)
    sigma = np.repeat(np.arange(n, 0, -2.0), 2)[:n]
    sigma[1::2] -= 10.0 ** -(np.arange(1.0, n // 2 + 1)[: n // 2] ** 0.5)
    weight = (gen.orthonormal(rng, shape[0], n) * sigma) @ gen.orthonormal(rng, shape[1], n).T
    (u, _, _), (u_half, _, _) = ref.svd(weight), ref.svd(weight.astype(np.float16))
    told, seen = [], []
    for k in range(1, n):
        told.append(np.sin(cut_angle(sigma, k, shape)))
        seen.append(np.linalg.norm(u[:, k:].T @ u_half[:, :k], 2))
    ratio = np.array(seen) / told
    assert 0.5 < np.median(ratio) < 2.0
    assert ratio.max() < 10.0


def test_few_cuts_of_a_large_random_weight_are_clustered():
    """With 1280 singular values most gaps are below a thousandth of the largest one."""
    sigma = np.linalg.svd(np.random.default_rng(6).normal(size=(1280, 1280)), compute_uv=False)
    assert np.median(sigma[:-1] - sigma[1:]) < 1e-3 * sigma[0]
    flagged = [cut_angle(sigma, k, (1280, 1280)) > CLUSTERED for k in range(1, 1280)]
    assert np.mean(flagged) < 0.01
    # Values in pairs: each cut within a pair is flagged, none between pairs is.
    paired = np.repeat(np.linspace(2.0, 1.0, 640), 2)
    flagged = [cut_angle(paired, k, (1280, 1280)) > CLUSTERED for k in range(1, 1280)]
    assert flagged == [k % 2 == 1 for k in range(1, 1280)]


def test_columns_is_what_both_sides_can_serve():
    u, v = np.zeros((5, 5), np.float32), np.zeros((9, 2), np.float32)
    assert Basis(u, np.zeros(5), v).extent.columns == 2
