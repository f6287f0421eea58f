"""Law 5 of method.md 6: what `rotation` keeps, carries, gives back and leaves still."""

import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
import strategies as gen
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import (
    EQUAL,
    SAME_BASES,
    UNEQUAL,
    assert_close,
    assume_decided,
    dense,
    each_case,
    laws,
    reference_pair,
)

from prolora_jax.method import projection
from prolora_jax.method.operators import FormKind, Side

SPAN = 2e-5  # spectral norm between two float32 projectors of dimension <= 36
ORTHOGONAL = 1e-5  # float32 inner products of unit vectors, dimension <= 36
MOVES = 0.11  # cosines above this are above --rotation-min-cos = 0.1 in any rounding


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_rotation_keeps_every_singular_value(case, data):
    bases, factors = data.draw(gen.bases(case)), data.draw(gen.updates(case))
    got = np.linalg.svd(gen.all_dense(bases, factors)["rotation"], compute_uv=False)
    wanted = np.linalg.svd(dense(factors), compute_uv=False)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=SAME_BASES * wanted[0])


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_rotation_there_and_back_returns_the_update(case, data):
    bases, factors = data.draw(gen.bases(case)), data.draw(gen.updates(case))
    assume_decided(reference_pair(bases), 0.1)
    (there,) = gen.all_arms(bases, factors)["rotation"]
    back = gen.all_dense(bases.reversed, there)["rotation"]
    assert_close(back, dense(factors), np.linalg.norm(dense(factors)), SAME_BASES)


@each_case(*EQUAL)
@laws
@given(data=st.data())
def test_rotation_carries_the_source_span_onto_the_target_span(case, data):
    bases = data.draw(gen.bases(case, ("near",)))
    for source, target in ((bases.u_s, bases.u_t), (bases.v_s, bases.v_t)):
        wanted = ref.split_basis(target)
        assume(ref.principal_vectors(ref.split_basis(source), wanted)[1].min() > MOVES)
        moved = moved_columns(gen.side("rotation", source, target), source)
        assert ref.projector_distance(ref.split_basis(moved), wanted) <= SPAN


def moved_columns(side: Side, columns: np.ndarray) -> np.ndarray:
    rows = jnp.asarray(np.ascontiguousarray(columns.T)[None])
    (part,) = projection.apply_side(side.form, side.operator, rows).parts
    return np.asarray(part[0]).T


@pytest.mark.parametrize("kind", ["thin", "complement", "dense"])
def test_rotation_counts_what_it_leaves_still(kind: FormKind):
    identity = np.eye(6, dtype=np.float32)
    slanted = identity.copy()
    slanted[:, 1] = [0, 0.05, 0, 0, np.sqrt(1 - 0.05**2), 0]
    spans = identity[:, :4], slanted[:, [0, 1, 2]]
    side = gen.side("rotation", *spans, 0.1, kind)
    assert side.still == 2  # one pair at 87 degrees, one unpaired
    still = moved_columns(side, identity[:, [1, 3]])
    np.testing.assert_allclose(still, identity[:, [1, 3]], atol=ORTHOGONAL)
    side = gen.side("rotation", *spans, 0.01, kind)
    assert side.still == 1
    moved = moved_columns(side, identity[:, [1]])
    np.testing.assert_allclose(moved[:, 0], slanted[:, 1], atol=ORTHOGONAL)
