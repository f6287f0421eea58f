"""Subspace similarity: law 7 of method.md 6, and the definitions of method.md 2."""

import numpy as np
import pytest
import reference as ref
import strategies as gen
from hypothesis import given
from hypothesis import strategies as st
from strategies import EQUAL, UNEQUAL, each_case, laws

from prolora_jax.method.similarity import SideSimilarity, side_similarity

STORED = 1e-6  # bases are stored in float32; phi is a mean of squares of at most 36 columns
STANDARD_ERRORS = 4  # a sample mean strays further in 1 of 16000 samples
CHANCE_SAMPLES = 400


def both_sides(bases):
    """Similarity on each side, with the splits of the reference."""
    pair = ref.pair_of_bases(*bases)
    return (
        (side_similarity(bases.u_s, bases.u_t), pair.u_s, pair.u_t),
        (side_similarity(bases.v_s, bases.v_t), pair.v_s, pair.v_t),
    )


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_similarity_equals_the_reference(case, data):
    bases = data.draw(gen.bases(case))
    for (got, source, target), dim in zip(both_sides(bases), case[:2], strict=True):
        phi, level = ref.phi(source, target), ref.chance(case.k_s, case.k_t, dim)
        assert got.phi == pytest.approx(phi, abs=STORED)
        assert got.chance == level
        corrected = ref.corrected(phi, level)
        if corrected is None:
            assert got.corrected is None
        else:  # the error of phi, magnified
            assert got.corrected == pytest.approx(corrected, abs=STORED / (1 - level))


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_similarity_is_symmetric_and_between_zero_and_one(case, data):
    bases = data.draw(gen.bases(case))
    for (got, _, _), (back, _, _) in zip(
        both_sides(bases), both_sides(bases.reversed), strict=True
    ):
        assert 0.0 <= got.phi <= 1.0
        assert got.phi == pytest.approx(back.phi, abs=STORED)
        assert got.chance == back.chance


@each_case(*EQUAL)
@laws
@given(data=st.data())
def test_equal_spans_have_similarity_one(case, data):
    """Whatever columns span them."""
    bases, rng = data.draw(gen.bases(case)), data.draw(gen.generators())
    turned = (bases.u_s @ gen.orthonormal(rng, case.k_s, case.k_s)).astype(np.float32)
    flipped = bases.u_s * rng.choice([-1.0, 1.0], case.k_s).astype(np.float32)
    for other in (bases.u_s, turned, flipped):
        assert side_similarity(bases.u_s, other).phi == pytest.approx(1.0, abs=STORED)


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_similarity_does_not_depend_on_the_columns_of_a_span(case, data):
    bases, rng = data.draw(gen.bases(case)), data.draw(gen.generators())
    turned = (bases.v_t @ gen.orthonormal(rng, case.k_t, case.k_t)).astype(np.float32)
    phi = side_similarity(bases.v_s, bases.v_t).phi
    assert side_similarity(bases.v_s, turned).phi == pytest.approx(phi, abs=STORED)


def test_with_own_ranks_similarity_measures_containment():
    identity = np.eye(10, dtype=np.float32)
    got = side_similarity(identity[:, :2], identity[:, :8])
    assert got == SideSimilarity(phi=1.0, chance=0.8)
    assert side_similarity(identity[:, :8], identity[:, :2]) == got


def test_chance_correction_is_not_clamped():
    identity = np.eye(10, dtype=np.float32)
    got = side_similarity(identity[:, :2], identity[:, 2:4])
    assert got.phi == 0.0
    assert got.corrected == pytest.approx(-0.25)


def test_similarity_of_whole_spaces_says_nothing():
    rng = np.random.default_rng(0)
    a, b = (gen.orthonormal(rng, 6, 6).astype(np.float32) for _ in range(2))
    got = side_similarity(a, b)
    assert got.phi == pytest.approx(1.0, abs=STORED)
    assert got.chance == 1.0
    assert got.corrected is None
    # One span is everything, the other is not: no information either.
    assert side_similarity(a, b[:, :2]).corrected is None


def test_an_empty_span_is_similar_to_nothing():
    identity = np.eye(5, dtype=np.float32)
    assert side_similarity(identity[:, :0], identity[:, :2]) == SideSimilarity(0.0, 0.4)
    assert side_similarity(identity[:, :0], identity[:, :0]).phi == 0.0


@pytest.mark.parametrize(("dim", "k_s", "k_t"), [(12, 3, 3), (12, 9, 9), (12, 2, 7), (30, 6, 2)])
def test_chance_is_the_mean_over_random_spans(dim, k_s, k_t):
    rng = np.random.default_rng(2)

    def sample() -> SideSimilarity:
        frames = (gen.orthonormal(rng, dim, k).astype(np.float32) for k in (k_s, k_t))
        return side_similarity(*frames)

    samples = [sample() for _ in range(CHANCE_SAMPLES)]
    phis = np.array([s.phi for s in samples])
    error = STANDARD_ERRORS * phis.std() / np.sqrt(CHANCE_SAMPLES)
    assert phis.mean() == pytest.approx(samples[0].chance, abs=float(error))
