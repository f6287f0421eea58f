"""Every method against the dense reference: from given spans, from weights, where one is empty."""

import numpy as np
import reference as ref
import strategies as gen
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import (
    EQUAL,
    SAME_BASES,
    UNEQUAL,
    Bases,
    Case,
    assert_close,
    assume_decided,
    dense,
    each_case,
    laws,
    reference_pair,
)

from prolora_jax.method.basis import BasisRule, compute_basis
from prolora_jax.method.operators import METHODS, FormKind, effective_method

FROM_WEIGHTS = 1e-4  # law 8(ii): bases rounded to float32, cut no nearer than CLUSTERED
CLUSTERED = 0.1  # docs/method.md 2: angle of rounding above which a span is not determined
EXACT = 1e-12  # float64 identities of the reference
FORMS: tuple[FormKind, ...] = ("thin", "complement", "split", "dense")
SMALL_ANGLE = 1e-6  # float64 knows c = 1 - 1e-15 only to an angle of 4e-8


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_arms_equal_dense_reference(case, data):
    bases, factors = data.draw(gen.bases(case)), data.draw(gen.updates(case))
    min_cos = data.draw(st.sampled_from((0.1, 0.1, 0.5)))
    pair, delta = reference_pair(bases), dense(factors)
    assume_decided(pair, min_cos)
    seen = set()
    for kind in FORMS:
        for method, got in gen.all_dense(bases, factors, min_cos, kind).items():
            wanted = ref.project(method, pair, delta, min_cos)
            what = f"{method}, {kind}"
            assert_close(got, wanted, np.linalg.norm(delta), SAME_BASES, what)
            seen.add(what)
    assert len(seen) == 6 + 6 + 2 + 5  # copy is counted with every form


def determined(case: Case) -> list[str]:
    """Spectra that are not clustered where the source is cut: few draws are then in vain."""
    w = {k: gen.matrix_of(np.random.default_rng(0), *case[:2], k) for k in gen.SPECTRA}
    return [kind for kind in w if ref.rounding_angle(w[kind], case.k_s) < CLUSTERED]


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_arms_from_weights_equal_dense_reference(case, data):
    rng, kind = data.draw(gen.generators()), data.draw(st.sampled_from(determined(case)))
    size = data.draw(st.sampled_from((0.0, 1e-3, 0.1, 10.0)))
    source, other = (gen.matrix_of(rng, case.out, case.into, kind) for _ in range(2))
    target = (source + size * other) * data.draw(st.sampled_from((1e-3, 1.0, 100.0)))
    assume(ref.rounding_angle(source, case.k_s) < CLUSTERED)
    assume(ref.rounding_angle(target, case.k_t) < CLUSTERED)
    pair = ref.pair_of_weights(source, target, case.k_s, case.k_t)
    assume_decided(pair, 0.1)
    factors = data.draw(gen.updates(case))
    delta, got = dense(factors), gen.all_dense(bases_of(source, target, case), factors)
    for method in ref.ARMS:
        wanted = ref.project(method, pair, delta)
        assert_close(got[method], wanted, np.linalg.norm(delta), FROM_WEIGHTS, method)


def bases_of(source, target, case) -> Bases:
    s = compute_basis(source, BasisRule("rank", case.k_s))
    t = compute_basis(target, BasisRule("rank", case.k_t))
    k_s, k_t = case.k_s, case.k_t
    return Bases(s.u[:, :k_s], s.v[:, :k_s], t.u[:, :k_t], t.v[:, :k_t])


@each_case(*EQUAL, *UNEQUAL)
@laws
@given(data=st.data())
def test_reference_agrees_with_itself(case, data):
    """Two independent constructions of the direct rotation; explicit and implicit complements."""
    pair = reference_pair(data.draw(gen.bases(case)))
    for source, target in ((pair.u_s, pair.u_t), (pair.v_s, pair.v_t)):
        np.testing.assert_allclose(source.on + source.off, np.eye(len(source.on)), atol=EXACT)
        rotation = ref.rotation_by_planes(source, target)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(len(rotation)), atol=EXACT)
        if case.k_s == case.k_t and ref.principal_vectors(source, target)[1].min() > 0.1:
            polar = ref.rotation_by_polar(source, target)
            np.testing.assert_allclose(rotation, polar, atol=SMALL_ANGLE)


@each_case(Case(9, 7, 0, 4, 2), Case(9, 7, 4, 0, 2), Case(9, 7, 0, 0, 2))
@laws
@given(data=st.data())
def test_empty_spans_have_nothing_along_them(case, data):
    """The bases of a zero weight at energy=e."""
    bases, factors = data.draw(gen.bases(case)), data.draw(gen.updates(case))
    got, delta, pair = gen.all_dense(bases, factors), dense(factors), reference_pair(bases)
    assert not got["subspace"].any()
    for method in ref.ARMS:
        wanted = ref.project(method, pair, delta)
        assert_close(got[method], wanted, np.linalg.norm(delta), SAME_BASES, method)


@each_case(*EQUAL[1:5], *UNEQUAL, Case(9, 7, 0, 4, 2), Case(9, 7, 7, 0, 2))
@laws
@given(data=st.data())
def test_effective_method_leaves_out_only_zeros(case, data):
    bases, factors = data.draw(gen.bases(case, ("far",))), data.draw(gen.updates(case, ("full",)))
    got, scale = gen.all_dense(bases, factors), np.linalg.norm(dense(factors))
    zero = {m for m in ref.ARMS if np.linalg.norm(got[m]) <= SAME_BASES * scale}
    for method in METHODS:
        simpler = effective_method(method, case.k_s, case.k_t, case[:2])
        if method != "prolora-full":  # never a part of it alone, though it may be zero
            assert (simpler is None) == (method in zero), method
        if simpler is not None:
            assert_close(got[simpler], got[method], scale, SAME_BASES, method)
